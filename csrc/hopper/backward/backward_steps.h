// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "csrc/hopper/device/platform.h"
#include "csrc/hopper/schedule.h"

/// What the backward kernels agree on: query tiles, where a tile's rows lie in the scratch arrays, and the tiles that a
/// key item visits, in order.
namespace prulong::kernels {

/// Query rows of a tile.
PRULONG_HOST_DEVICE constexpr int backward_tile_rows(int head_dim) { return head_dim == 128 ? 64 : 128; }

// Scratch arrays hold whole tiles of `rows` rows. A document's tiles begin at tile q_begin / rows + its index, so no
// two documents share a tile; the tiles between two documents belong to nobody. The tiles of all heads are counted in
// 32 bits.
PRULONG_HOST_DEVICE int first_scratch_tile(int q_begin, int document, int rows) { return q_begin / rows + document; }
PRULONG_HOST_DEVICE int scratch_tiles(const Batch& batch, int rows) { return batch.q_tokens / rows + batch.documents; }

/// The rows of one scratch tile.
struct ScratchTile {
  int row;   // first row in the packed tensors
  int rows;  // of the document, from there on; 0: the tile is nobody's
};
PRULONG_HOST_DEVICE ScratchTile scratch_tile(const Batch& batch, int tile, int rows) {
  const int* bounds = batch.q_bounds;
  int document = 0, end = batch.documents;  // the last document that begins at or before the tile
  while (end - document > 1) {
    const int middle = (document + end) / 2;
    (first_scratch_tile(bounds[middle], middle, rows) <= tile ? document : end) = middle;
  }
  const int in_document = tile - first_scratch_tile(bounds[document], document, rows);
  const int length = bounds[document + 1] - bounds[document];
  if (in_document < 0 || in_document * rows >= length) return {0, 0};
  return {bounds[document] + in_document * rows, detail::lesser(rows, length - in_document * rows)};
}

// Statistics of a tile's rows: `rows` floats lambda (in powers of two; P = 2^(scale log2(e) q.k - lambda)), then `rows`
// floats D (dS = P (dP - D)). Set 0 is for local keys, or all keys of a head whose gate is 0 or 1; set 1 for the
// complement.
constexpr int kStatisticsSets = 2;
PRULONG_HOST_DEVICE int64_t statistics_offset(const Batch& batch, int set, int query_head, int tile, int rows) {
  return int64_t{(set * batch.query_heads + query_head) * scratch_tiles(batch, rows) + tile} * (2 * rows);
}
/// Sums of dQ: a tile is 64 x 64 accumulator fragments of a warpgroup, one after the other; a fragment's elements 4 j
/// to 4 j + 3 of thread t are floats 512 j + 4 t and on.
PRULONG_HOST_DEVICE int64_t dq_offset(const Batch& batch, int query_head, int tile, int rows) {
  return int64_t{query_head * scratch_tiles(batch, rows) + tile} * (rows * batch.head_dim);
}

/// Counts of the additions to a half of a tile's dQ.
PRULONG_HOST_DEVICE int64_t additions_offset(const Batch& batch, int query_head, int tile, int rows) {
  return int64_t{query_head * scratch_tiles(batch, rows) + tile} * 2;
}

/// The parts of the scratch memory, in floats and ints from its start.
struct BackwardScratch {
  int64_t statistics, dq_sums, dgate_parts, additions, size;
};
inline BackwardScratch backward_scratch(const Batch& batch) {
  const int tile_rows = backward_tile_rows(batch.head_dim);
  const int64_t tiles = int64_t{batch.query_heads} * scratch_tiles(batch, tile_rows);
  const int64_t rows = tiles * tile_rows;
  const auto round_up = [](int64_t floats) { return (floats + 63) / 64 * 64; };
  BackwardScratch scratch;
  scratch.statistics = 0;
  scratch.dq_sums = kStatisticsSets * 2 * rows;
  scratch.dgate_parts = scratch.dq_sums + rows * batch.head_dim;
  scratch.additions = scratch.dgate_parts + round_up(tiles);
  scratch.size = scratch.additions + round_up(2 * tiles);
  return scratch;
}

/// CTAs of the kernels around the main one.
inline int64_t prepare_blocks(const Batch& batch) {
  return int64_t{scratch_tiles(batch, backward_tile_rows(batch.head_dim))} * batch.query_heads;
}
inline int64_t finish_blocks(const Batch& batch) { return prepare_blocks(batch) + batch.kv_heads; }

/// Positions that see the key at position j, as one range.
PRULONG_HOST_DEVICE Range seeing_positions(Branch branch, Locality locality, int j) {
  constexpr int kEnd = 0x7fffffff;
  if (branch == Branch::kGlobal) return {j, kEnd};
  if (branch == Branch::kLocal) return {j, j < locality.sink ? kEnd : j + locality.window};
  return {j < locality.sink ? kEnd : j + locality.window, kEnd};
}

/// How many key blocks left of `block` visit the tile of query positions `tile` in a pass of the branch, for a block
/// that visits the tile in any branch.
PRULONG_HOST_DEVICE int visits_before(Branch branch, Locality locality, Range tile, int k_length, int block) {
  if (branch == Branch::kGlobal) return block;
  if (branch == Branch::kLocal) {
    const int sinks = (locality.sink + kKeyBlock - 1) / kKeyBlock;
    const int beyond = tile.begin - locality.window - kKeyBlock + 1;  // a block from here on has no key in a window
    const int first_near = beyond < 0 ? 0 : beyond / kKeyBlock + 1;
    return detail::lesser(block, sinks) + detail::greater(0, block - detail::greater(sinks, first_near));
  }
  const int past =
      detail::lesser(tile.end, k_length) - locality.window;  // the last query's first key in its window + 1
  if (past <= locality.sink) return 0;
  return detail::greater(0, detail::lesser(block, (past - 1) / kKeyBlock + 1) - locality.sink / kKeyBlock);
}
/// The place of a pass among all additions to the tile's dQ, which come in the order of key blocks, then passes;
/// `only`: branch of the one pass of a head that is not fractional.
PRULONG_HOST_DEVICE int additions_before(bool fractional, Branch only, int pass, Locality locality, Range tile,
                                         int k_length, int block) {
  if (!fractional) return visits_before(only, locality, tile, k_length, block);
  return visits_before(Branch::kLocal, locality, tile, k_length, block + pass) +
         visits_before(Branch::kComplement, locality, tile, k_length, block);
}

/// What one key item does, as all warps of a CTA know it: for every query head of the group, the passes; in a pass its
/// tiles from left to right.
struct BackwardItem {
  int kv_head, group;
  int key_begin, keys;  // position of the block's first key; how many there are, at most kKeyBlock
  int k_row;            // of the first key in the packed tensors
  int q_row, q_rows;    // of the document in the packed tensors
  int first_position;   // of its row 0
  int first_tile;       // its first scratch tile
  Branch branch[2];     // of the passes, if there are two
  int steps;            // in all; -1: no more items
  Range tiles[2];       // of the document; the second is empty unless the head is fractional
};
static_assert(sizeof(BackwardItem) == 64);

PRULONG_HOST_DEVICE BackwardItem backward_item(const Batch& batch, const KeyItem& item, int rows) {
  const DocumentRows& document = item.document;
  BackwardItem result;
  result.kv_head = item.kv_head;
  result.group = batch.group();
  result.key_begin = item.keys.begin;
  result.keys = item.keys.size();
  result.k_row = document.k_begin + item.keys.begin;
  result.q_row = document.q_begin;
  result.q_rows = document.q_length;
  result.first_position = document.first_position();
  result.first_tile = first_scratch_tile(document.q_begin, document.index, rows);
  result.branch[0] = item.fractional ? Branch::kLocal : item.branch;
  result.branch[1] = item.fractional ? Branch::kComplement : item.branch;
  result.steps = 0;
  PRULONG_UNROLL
  for (int pass = 0; pass < 2; ++pass) {
    result.tiles[pass] = {0, 0};
    if (pass == 1 && !item.fractional) continue;
    const Range positions = query_positions(result.branch[pass], batch.locality, item.keys, document.k_length);
    result.tiles[pass] = detail::blocks_of(detail::greater(0, positions.begin - result.first_position),
                                           positions.end - result.first_position, rows);
    result.steps += result.group * result.tiles[pass].size();
  }
  return result;
}

}  // namespace prulong::kernels
