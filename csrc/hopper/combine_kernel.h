// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/address.h"
#include "csrc/hopper/combine.h"
#include "csrc/hopper/device/arithmetic.h"
#include "csrc/hopper/device/barrier.h"
#include "csrc/hopper/device/memory.h"
#include "csrc/hopper/device/thread.h"
#include "csrc/hopper/poison.h"

namespace prulong::kernels::combine {

using namespace device;  // NOLINT: the primitives are this code's vocabulary

constexpr int kThreads = 256;
constexpr int kWidth = 8;    // elements of a vector: 16 bytes
constexpr int kTokens = 16;  // that a block takes at a time
constexpr int kRows = 16;    // of a split tile, likewise

/// Two elements of a fractional head: out, and delta into *delta.
template <ElementType kType>
PRULONG_DEVICE uint32_t combine_pair(uint32_t local, uint32_t complement, float weight, float gate, uint32_t* delta) {
  const GatedElement low = combine_element(unpack_low<kType>(local), unpack_low<kType>(complement), weight, gate);
  const GatedElement high = combine_element(unpack_high<kType>(local), unpack_high<kType>(complement), weight, gate);
  *delta = pack<kType>(low.delta, high.delta);
  return pack<kType>(low.out, high.out);
}

/// Rows of heads with a fractional gate: those after the local ones in the list of short heads.
template <ElementType kType>
PRULONG_DEVICE void combine_branches(const CombineParams& p) {
  const Batch& batch = p.schedule.batch;
  const ScheduleState& state = *p.schedule.state;
  const int group = batch.group(), vectors = batch.head_dim / kWidth;  // 8 or 16: a row's lie in one warp
  const int per_token = (state.short_heads - state.local_heads) * group * vectors;
  const int* const heads = p.schedule.heads + batch.kv_heads + state.local_heads;
  auto* const outs = static_cast<Word4*>(p.out);
  auto* const deltas = static_cast<Word4*>(p.delta);
  for (int first = block_index() * kTokens; first < batch.q_tokens && per_token > 0; first += block_count() * kTokens) {
    const int count = detail::lesser(kTokens, batch.q_tokens - first) * per_token;
    for (int base = 0; base < count; base += kThreads) {
      // Whole warps stay to the end: all lanes of a row read its statistics before one of them changes them.
      const int i = base + thread_index();
      const bool active = i < count;
      const int token = first + (active ? i / per_token : 0), in_token = active ? i % per_token : 0;
      const int row = in_token / vectors, vector = in_token % vectors;
      const int kv_head = heads[row / group], query_head = kv_head * group + row % group;
      const int64_t statistics = lse_place(batch, query_head, token);
      const JoinWeights join =
          join_weights(load_global(p.lse_local + statistics), load_global(p.lse_global + statistics));
      sync_warp();
      if (!active) continue;
      if (vector == 0) store_global(p.lse_global + statistics, join.lse);
      const int64_t at = packed_row(token, batch.query_heads, query_head) * vectors + vector;
      const float gate = batch.gate[kv_head];
      const Word4 local = load_global(outs + at), complement = load_global(deltas + at);
      Word4 out, delta;
      out.x = combine_pair<kType>(local.x, complement.x, join.second, gate, &delta.x);
      out.y = combine_pair<kType>(local.y, complement.y, join.second, gate, &delta.y);
      out.z = combine_pair<kType>(local.z, complement.z, join.second, gate, &delta.z);
      out.w = combine_pair<kType>(local.w, complement.w, join.second, gate, &delta.w);
      store_global(outs + at, out);
      store_global(deltas + at, delta);
    }
  }
}

/// A vector of a row of a split tile: the weighted sum of its pieces' results. first_row: of piece 0 among all rows of
/// partial results; the next piece's row is `stride` further.
template <ElementType kType>
PRULONG_DEVICE void merge_vector(const CombineParams& p, int64_t first_row, int64_t stride, int pieces, int vector,
                                 int vectors, Word4* out, float* lse) {
  JoinWeights join = {-INFINITY, 0};
  for (int n = 0; n < pieces; ++n) join = join_weights(join.lse, load_global(p.partial_lse + first_row + n * stride));
  float sums[kWidth] = {};
  for (int n = 0; n < pieces; ++n) {
    const int64_t row = first_row + n * stride;
    const float part_lse = load_global(p.partial_lse + row);
    const float weight = part_lse == -INFINITY ? 0 : expf(part_lse - join.lse);
    const auto* const part = reinterpret_cast<const Float4*>(p.partial_out) + (row * vectors + vector) * 2;
    const Float4 low = load_global(part), high = load_global(part + 1);
    const float values[kWidth] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    PRULONG_UNROLL
    for (int e = 0; e < kWidth; ++e) sums[e] += weight * values[e];
  }
  store_global(out, Word4{pack<kType>(sums[0], sums[1]), pack<kType>(sums[2], sums[3]), pack<kType>(sums[4], sums[5]),
                          pack<kType>(sums[6], sums[7])});
  if (vector == 0) store_global(lse, join.lse);
}

template <ElementType kType>
PRULONG_DEVICE void merge_pieces(const CombineParams& p) {
  const Schedule& schedule = p.schedule;
  const Batch& batch = schedule.batch;
  const ScheduleState& state = *schedule.state;
  const int group = batch.group(), members = state.long_heads * group;
  const int parts = detail::divide_up(schedule.query_rows, kRows);  // of a tile
  const int vectors = batch.head_dim / kWidth;
  // Tiles by members fit 32 bits, their parts need not: a block counts the two apart.
  const int step = block_count() / parts, part_step = block_count() % parts;
  int item = block_index() / parts, part = block_index() % parts;
  for (; item < state.long_tiles * members; item += step, part += part_step) {
    if (part >= parts) {
      part -= parts;
      if (++item == state.long_tiles * members) break;
    }
    const Tile& tile = schedule.long_tiles[item / members];
    if (tile.slot < 0 || tile.piece != 0) continue;
    const int member = item % members;
    const int query_head = schedule.heads[member / group] * group + member % group;
    const int begin = part * kRows;
    const int tile_rows = detail::lesser(schedule.query_rows, tile.document.q_length - tile.first);
    const int rows = detail::lesser(kRows, tile_rows - begin);
    // Partial results are numbered as QueryItem::partial is.
    const int64_t stride = int64_t{members} * schedule.query_rows;
    for (int v = thread_index(); v < rows * vectors; v += kThreads) {
      const int row = begin + v / vectors, vector = v % vectors;
      const int64_t first_row = partial_row(tile.slot * members + member, schedule.query_rows, row);
      const int token = tile.document.q_begin + tile.first + row;
      merge_vector<kType>(
          p, first_row, stride, tile.pieces, vector, vectors,
          static_cast<Word4*>(p.out) + packed_row(token, batch.query_heads, query_head) * vectors + vector,
          p.lse_global + lse_place(batch, query_head, token));
    }
  }
}

/// Any number of blocks of kThreads threads.
template <ElementType kType>
PRULONG_DEVICE void run(const CombineParams& p) {
  const Batch& batch = p.schedule.batch;
  if (p.schedule.state->invalid != 0) {
    const int64_t rows = int64_t{batch.q_tokens} * batch.query_heads;
    poison<kThreads>(p.out, rows * batch.head_dim * 2);
    if (p.delta != nullptr) poison<kThreads>(p.delta, rows * batch.head_dim * 2);
    poison<kThreads>(p.lse_global, rows * 4);
    if (p.lse_local != nullptr) poison<kThreads>(p.lse_local, rows * 4);
    return;
  }
  if (p.delta != nullptr) combine_branches<kType>(p);
  if (p.partial_out != nullptr) merge_pieces<kType>(p);
}

PRULONG_DEVICE void run(const PoisonParams& p) {
  if (p.state->invalid == 0) return;
  for (int i = 0; i < 4; ++i) {
    if (p.data[i] != nullptr) poison<kThreads>(p.data[i], p.bytes[i]);
  }
}

}  // namespace prulong::kernels::combine
