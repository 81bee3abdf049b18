// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "csrc/hopper/decode/decode.h"

/// Who reads which keys in the decode kernel. The key blocks of all lists (KV heads of sequences, in this order) stand
/// in one row, each list behind some units that stand for the cost of its start, and every CTA takes an equal share of
/// the row. So a list may lie in several CTAs, and a CTA in several lists. Plain arithmetic for host and device.
namespace prulong::kernels::decode {

/// What a list costs besides its key blocks, in key blocks: queries, the merge of the consumers, outputs.
constexpr int kStartCost = 1;

/// One KV head of one sequence: a list of entries, and the queries that look at it.
struct List {
  int sequence, kv_head;
  int first_token, tokens;  // queries, of the packed ones
  int length;
  bool valid;  // else its rows become NaN
  Branch branch;
  KeyBlocks blocks;

  /// Units in the row of all lists.
  PRULONG_HOST_DEVICE int cost() const { return tokens > 0 ? blocks.size() + kStartCost : 0; }
};

/// Of the sequence's place among the packed queries; all sequences must be good.
PRULONG_HOST_DEVICE bool good_sequence(const Batch& batch, int sequence) {
  const int begin = batch.q_bounds[sequence], end = batch.q_bounds[sequence + 1];
  return begin >= 0 && end >= begin && end <= batch.q_tokens && (sequence > 0 || begin == 0) &&
         (sequence + 1 < batch.documents || end == batch.q_tokens) &&
         int64_t{end - begin} * batch.group() <= kDecodeRows;
}

/// index: sequence * kv_heads + KV head. Of a good sequence; of another one some list without meaning.
PRULONG_HOST_DEVICE List list_at(const Batch& batch, int index) {
  List list;
  list.sequence = index / batch.kv_heads;
  list.kv_head = index - list.sequence * batch.kv_heads;
  list.first_token = batch.q_bounds[list.sequence];
  const int64_t tokens = static_cast<int64_t>(batch.q_bounds[list.sequence + 1]) - list.first_token;
  list.tokens = tokens > 0 && tokens <= kDecodeRows ? static_cast<int>(tokens) : 0;
  list.length = batch.paged.lengths[index];
  list.valid = batch.paged.fits(list.length, list.tokens);
  if (!list.valid) list.length = list.tokens;  // one key block, none of which is read
  list.branch = batch.is_global[list.kv_head] ? Branch::kGlobal : Branch::kLocal;
  list.blocks = {{0, 0}, {0, 0}};
  if (list.tokens > 0) {
    list.blocks = key_blocks(list.branch, batch.locality, {list.length - list.tokens, list.length});
  }
  return list;
}

/// The row of all lists' units, and how it is shared out.
struct Row {
  int units, processors;

  /// CTAs with a share: as many as there are units at most.
  PRULONG_HOST_DEVICE int shares() const { return detail::lesser(units, processors); }
  /// First unit of CTA 0 <= n <= shares().
  PRULONG_HOST_DEVICE int begin(int n) const { return static_cast<int>(int64_t{n} * units / shares()); }
  /// The CTA that has a unit.
  PRULONG_HOST_DEVICE int owner(int unit) const {
    return static_cast<int>(((int64_t{unit} + 1) * shares() - 1) / units);
  }
};

/// The part of a list's key blocks that a CTA takes.
struct Piece {
  List list;
  Range steps;            // of list.blocks
  int first_cta, pieces;  // the list lies in `pieces` CTAs from first_cta on
};

/// Place of the partial result of piece 0 <= n < pieces, where there are several. A CTA begins at most one list that
/// others go on with, and goes on with at most one.
PRULONG_HOST_DEVICE int partial_slot(const Piece& piece, int n) { return 2 * (piece.first_cta + n) + (n == 0 ? 1 : 0); }

/// A CTA's way through its share.
class Walk {
 public:
  /// list, unit: the list in which the share begins, and its first unit.
  PRULONG_HOST_DEVICE Walk(const Batch& batch, Row row, int cta, int list, int unit)
      : batch_(batch), row_(row), begin_(row.begin(cta)), end_(row.begin(cta + 1)), list_(list), unit_(unit) {}

  /// Goes on to the next piece; false if there is none.
  PRULONG_HOST_DEVICE bool next(Piece* piece) {
    while (unit_ < end_) {
      piece->list = list_at(batch_, list_++);
      const int cost = piece->list.cost();
      if (cost == 0) continue;
      const int first = unit_ + kStartCost, blocks = cost - kStartCost;
      unit_ += cost;
      piece->steps = {detail::greater(begin_ - first, 0), detail::lesser(end_ - first, blocks)};
      if (piece->steps.size() == 0) continue;
      piece->first_cta = row_.owner(first);
      piece->pieces = row_.owner(unit_ - 1) - piece->first_cta + 1;
      return true;
    }
    return false;
  }

 private:
  const Batch& batch_;
  const Row row_;
  const int begin_, end_;
  int list_, unit_;
};

}  // namespace prulong::kernels::decode
