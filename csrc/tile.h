// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/host_device.h"

/// Which tiles of the score matrix a backend visits, and which of them need a mask. Plain integer arithmetic for host
/// and device, so that tests hold it against brute-force masks.
///
/// Positions count within one document and are those of its keys: with q_length queries and k_length keys, query row r
/// has position r + k_length - q_length (rows are aligned at the end).
namespace prulong::kernels {

/// Keys in a key block.
constexpr int kKeyBlock = 128;

/// What one pass over a query's keys j <= i covers: all of them, the locally visible ones (j < sink or i - j < window),
/// or the others. Local and complement together are global, and disjoint.
enum class Branch { kGlobal, kLocal, kComplement };

/// What a head computes: the global branch, the local one, or both, mixed by a gate strictly between 0 and 1.
enum class HeadKind { kGlobal, kLocal, kFractional };

/// Of a head with gate z. Whatever is neither 0 nor 1 counts as fractional.
template <class Real>
PRULONG_HOST_DEVICE HeadKind head_kind(Real z) {
  return z == 0 ? HeadKind::kLocal : z == 1 ? HeadKind::kGlobal : HeadKind::kFractional;
}

/// sink >= 0, window >= 1. No function here overflows, but query_positions() wants positions plus a window below 2^31.
struct Locality {
  int sink, window;
};

/// A document's rows in the packed tensors.
struct DocumentRows {
  int q_begin, q_length, k_begin, k_length;
  /// Which document of the batch.
  int index = 0;
  /// Position of query row 0.
  PRULONG_HOST_DEVICE int first_position() const { return k_length - q_length; }
};

/// Half-open.
struct Range {
  int begin, end;
  PRULONG_HOST_DEVICE int size() const { return end > begin ? end - begin : 0; }
};

/// Is key j visible to the query at position i?
PRULONG_HOST_DEVICE bool visible(Branch branch, Locality locality, int i, int j) {
  const bool local = j < locality.sink || i - j < locality.window;
  return j <= i && (branch == Branch::kGlobal || local == (branch == Branch::kLocal));
}

namespace detail {
PRULONG_HOST_DEVICE int lesser(int a, int b) { return a < b ? a : b; }
PRULONG_HOST_DEVICE int greater(int a, int b) { return a > b ? a : b; }
/// Blocks that hold any of the items [begin, end); empty if there are none.
PRULONG_HOST_DEVICE Range blocks_of(int begin, int end, int size) {
  if (begin >= end) return {0, 0};
  return {begin / size, (end - 1) / size + 1};
}
}  // namespace detail

/// Key blocks that queries visit: `near` right to left, then `far` right to left, which lies left of it. No block
/// twice.
struct KeyBlocks {
  Range near, far;
  PRULONG_HOST_DEVICE int size() const { return near.size() + far.size(); }
  /// The block of step 0 <= n < size().
  PRULONG_HOST_DEVICE int at(int n) const {
    const int in_near = near.size();
    return n < in_near ? near.end - 1 - n : far.end - 1 - (n - in_near);
  }
};

/// Key blocks with a key visible to any of the queries at `positions` (not empty, from 0 to k_length).
PRULONG_HOST_DEVICE KeyBlocks key_blocks(Branch branch, Locality locality, Range positions) {
  const int last = positions.end - 1;
  if (branch == Branch::kGlobal) return {detail::blocks_of(0, last + 1, kKeyBlock), {0, 0}};
  if (branch == Branch::kComplement) {
    return {detail::blocks_of(locality.sink, last - locality.window + 1, kKeyBlock), {0, 0}};
  }
  const Range near = detail::blocks_of(detail::greater(0, positions.begin - locality.window + 1), last + 1, kKeyBlock);
  Range far = detail::blocks_of(0, detail::lesser(locality.sink, last + 1), kKeyBlock);
  far.end = detail::lesser(far.end, near.begin);
  return {near, far};
}

/// Is any pair of the tile positions x keys (both not empty) invisible? Keys at or past the document's end count as
/// invisible by themselves: they lie right of every position.
PRULONG_HOST_DEVICE bool needs_mask(Branch branch, Locality locality, Range positions, Range keys) {
  const int last = positions.end - 1, last_key = keys.end - 1;
  if (branch == Branch::kGlobal) return last_key > positions.begin;
  if (branch == Branch::kComplement) {
    return keys.begin < locality.sink || positions.begin - last_key < locality.window;
  }
  const int outside_sink = detail::greater(keys.begin, locality.sink);
  return last_key > positions.begin || (last_key >= locality.sink && last - outside_sink >= locality.window);
}

/// Is any pair of the tile positions x keys (both not empty) visible?
PRULONG_HOST_DEVICE bool any_visible(Branch branch, Locality locality, Range positions, Range keys) {
  const int last = positions.end - 1, last_key = keys.end - 1;
  if (branch == Branch::kComplement) {
    const int first_key = detail::greater(keys.begin, locality.sink);
    return first_key <= last_key && last - first_key >= locality.window;
  }
  if (keys.begin > last) return false;
  return branch == Branch::kGlobal || keys.begin < locality.sink || positions.begin - last_key < locality.window;
}

/// Query positions below k_length that see any key of the block `keys` (not empty), as one range that may hold
/// positions which see none; cut it into tiles and mask.
PRULONG_HOST_DEVICE Range query_positions(Branch branch, Locality locality, Range keys, int k_length) {
  if (branch == Branch::kGlobal) return {keys.begin, k_length};
  if (branch == Branch::kComplement) {
    const int first = detail::greater(keys.begin, locality.sink);
    if (first >= keys.end) return {0, 0};
    return {detail::lesser(first + locality.window, k_length), k_length};
  }
  if (keys.begin < locality.sink) return {keys.begin, k_length};
  return {keys.begin, detail::lesser(keys.end - 1 + locality.window, k_length)};
}

/// Work item of a forward kernel: one query tile of one query head.
struct QueryItem {
  Branch branch;
  int query_head, kv_head;
  DocumentRows document;
  Range rows;  // of the document's queries
  /// The steps of KeyBlocks to take: all of them, unless a tile's keys are shared out to several items. May be empty.
  Range steps;
  /// -1, or where to leave the result of some of the steps: in a slot of partial results, instead of the outputs.
  int partial = -1;
};

/// Work item of the backward kernel: one key block of one KV head, for all query heads of its group.
struct KeyItem {
  bool fractional;  // 0 < gate < 1: local and complement steps
  Branch branch;    // the only branch of a head whose gate is 0 (local) or 1 (global)
  int kv_head;
  DocumentRows document;
  Range keys;  // of the document's keys
};

}  // namespace prulong::kernels
