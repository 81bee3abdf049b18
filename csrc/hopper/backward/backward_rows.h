// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/address.h"
#include "csrc/hopper/backward/backward_steps.h"
#include "csrc/hopper/device/arithmetic.h"
#include "csrc/hopper/device/barrier.h"
#include "csrc/hopper/device/memory.h"
#include "csrc/hopper/device/thread.h"
#include "csrc/hopper/tensor_map.h"

/// What surrounds the main backward kernel, row by row: the statistics of the rows before it, dQ out of its sums after
/// it, and the gates' gradient.
///
/// Gated attention's out = z O_global + (1 - z) O_local has for row i and key j the weight
///   P_ij = exp(s_ij - lambda_i), where on local keys      exp(-lambda) = z exp(-lse_global) + (1 - z) exp(-lse_local),
///                                 and on all other keys   exp(-lambda) = z exp(-lse_global),
/// and dS_ij = P_ij (dP_ij - D_i), where D is the mean over the branches, weighted by their parts of P, of
///   D_branch = dO.O_branch. With delta = O_global - O_local: D_global = dO.out + (1 - z) dO.delta and D_local = dO.out
///   - z dO.delta. A head whose gate is 0 or 1 has one branch, lambda = lse and D = dO.out.
namespace prulong::kernels {

/// Threads of a CTA that prepares or finishes a tile.
constexpr int kBackwardRowThreads = 256;

struct BackwardRows {
  Batch batch;
  const ScheduleState* state;
  PackedTensor dout;
  const void *out, *delta;
  const float *lse_global, *lse_local;
  float scale;
  float* statistics;   // see backward_steps.h
  float* dq_sums;      // alike
  float* dgate_parts;  // [query heads, scratch tiles]
  int* additions;      // see backward_steps.h; null if not counted
  void* dq;
  float* dgate;
};

namespace backward {

/// lambda (in powers of two) and D of a row.
struct RowStatistics {
  float lambda, mean;
};
/// For local keys, and for the others.
struct GatedStatistics {
  RowStatistics local, complement;
};

/// Of a row of a fractional head: gate z, log-sum-exps in powers of two, dot = dO.out, change = dO.delta.
PRULONG_DEVICE GatedStatistics gated_statistics(float z, float lse_global, float lse_local, float dot, float change) {
  const float global = device::log2_fast(z) - lse_global, local = device::log2_fast(1 - z) - lse_local;
  const float larger = device::largest(global, local);
  const float sum = device::exp2_fast(global - larger) + device::exp2_fast(local - larger);
  const float lambda = -(larger + device::log2_fast(sum));
  const float share = device::exp2_fast(global + lambda);  // of the global branch in P
  const float mean_global = dot + (1 - z) * change, mean_local = dot - z * change;
  return {{lambda, share * mean_global + (1 - share) * mean_local}, {-global, mean_global}};
}

/// Dot product of 8 elements.
template <ElementType kType>
PRULONG_DEVICE float dot(device::Word4 a, device::Word4 b) {
  const uint32_t x[] = {a.x, a.y, a.z, a.w}, y[] = {b.x, b.y, b.z, b.w};
  float sum = 0;
  PRULONG_UNROLL
  for (int i = 0; i < 4; ++i) {
    sum = device::fused(device::unpack_low<kType>(x[i]), device::unpack_low<kType>(y[i]), sum);
    sum = device::fused(device::unpack_high<kType>(x[i]), device::unpack_high<kType>(y[i]), sum);
  }
  return sum;
}

/// Sum over the CTA, in a fixed order; thread 0 has it. Uses kBackwardRowThreads / 8 bytes of shared memory.
PRULONG_DEVICE float sum_of_block(float value) {
  using namespace device;  // NOLINT
  PRULONG_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  const Shared sums = shared_memory();
  if (lane_index() == 0) store_shared(sums + 4 * warp_index(), value);
  sync_cta();
  float sum = 0;
  for (int w = 0; w < kBackwardRowThreads / kWarpThreads; ++w) sum += load_shared<float>(sums + 4 * w);
  return sum;
}

/// CTA (tile, query head), the heads of a tile side by side: statistics of its rows, its part of the gate's gradient,
/// and zeros for its sums of dQ.
template <ElementType kType, int kHeadDim>
PRULONG_DEVICE void prepare_rows(const BackwardRows& a) {
  using namespace device;  // NOLINT
  constexpr int kRows = backward_tile_rows(kHeadDim);
  constexpr int kLanes = kHeadDim / 8;  // of a row, 8 elements each
  constexpr float kLog2e = 1.4426950408889634f;
  if (a.state->invalid != 0) return;
  const Batch& batch = a.batch;
  const int tile = block_index() / batch.query_heads, head = block_index() % batch.query_heads;
  const int kv_head = head / batch.group();
  const ScratchTile place = scratch_tile(batch, tile, kRows);
  const HeadKind kind = head_kind(batch, kv_head);
  const int thread = thread_index();
  float change_sum = 0;
  if (place.rows > 0) {
    float* const statistics = a.statistics + statistics_offset(batch, 0, head, tile, kRows);
    float* const complement = a.statistics + statistics_offset(batch, 1, head, tile, kRows);
    for (int first = 0; first < kRows; first += kBackwardRowThreads / kLanes) {
      const int r = first + thread / kLanes, lane = thread % kLanes;
      const bool valid = r < place.rows;
      const int row = place.row + r;
      float product = 0, change = 0;
      if (valid) {
        const int64_t vector = packed_row(row, batch.query_heads, head) * kLanes + lane;
        const Word4 dout = load_global(static_cast<const Word4*>(a.dout.data) +
                                       (row * a.dout.token_stride + head * a.dout.head_stride) / 8 + lane);
        product = dot<kType>(dout, load_global(static_cast<const Word4*>(a.out) + vector));
        if (kind == HeadKind::kFractional) {
          change = dot<kType>(dout, load_global(static_cast<const Word4*>(a.delta) + vector));
        }
      }
      PRULONG_UNROLL
      for (int mask = kLanes / 2; mask > 0; mask /= 2) {
        product += shuffle_xor(product, mask);
        change += shuffle_xor(change, mask);
      }
      if (lane != 0) continue;
      GatedStatistics result = {{__builtin_inff(), 0}, {__builtin_inff(), 0}};
      if (valid) {
        const int64_t at = lse_place(batch, head, row);
        const float global = kind == HeadKind::kLocal ? 0 : kLog2e * load_global(a.lse_global + at);
        const float local = kind == HeadKind::kGlobal ? 0 : kLog2e * load_global(a.lse_local + at);
        if (kind == HeadKind::kFractional) {
          result = gated_statistics(batch.gate[kv_head], global, local, product, change);
          change_sum += change;
        } else {
          result.local = {kind == HeadKind::kGlobal ? global : local, product};
        }
      }
      store_global(statistics + r, result.local.lambda);
      store_global(statistics + kRows + r, result.local.mean);
      if (kind == HeadKind::kFractional) {
        store_global(complement + r, result.complement.lambda);
        store_global(complement + kRows + r, result.complement.mean);
      }
    }
    Word4* const sums = reinterpret_cast<Word4*>(a.dq_sums + dq_offset(batch, head, tile, kRows));
    for (int i = thread; i < kRows * kHeadDim / 4; i += kBackwardRowThreads) store_global(sums + i, Word4{0, 0, 0, 0});
    if (a.additions != nullptr && thread < 2)
      store_global(a.additions + additions_offset(batch, head, tile, kRows) + thread, 0);
  }
  if (kind != HeadKind::kFractional) return;
  const float sum = sum_of_block(change_sum);
  if (thread == 0) store_global(a.dgate_parts + int64_t{head} * scratch_tiles(batch, kRows) + tile, sum);
}
constexpr int kPrepareSharedBytes = 4 * kBackwardRowThreads / device::kWarpThreads;

/// CTA (tile, query head), then CTA (KV head): dQ of the tile, the gate's gradient.
template <ElementType kType, int kHeadDim>
PRULONG_DEVICE void finish_rows(const BackwardRows& a) {
  using namespace device;  // NOLINT
  constexpr int kRows = backward_tile_rows(kHeadDim);
  constexpr int kStride = 2 * kHeadDim + 16;  // bytes of a row in shared memory: no bank conflicts
  if (a.state->invalid != 0) return;
  const Batch& batch = a.batch;
  const int tiles = scratch_tiles(batch, kRows), thread = thread_index();
  const int kv_head = block_index() - tiles * batch.query_heads;
  if (kv_head >= 0) {
    float sum = 0;
    if (head_kind(batch, kv_head) == HeadKind::kFractional) {
      const int64_t count = int64_t{batch.group()} * tiles;
      const float* const parts = a.dgate_parts + kv_head * count;
      for (int64_t i = thread; i < count; i += kBackwardRowThreads) sum += load_global(parts + i);
    }
    sum = sum_of_block(sum);
    const float z = batch.gate != nullptr ? batch.gate[kv_head] : 0;
    if (thread == 0) store_global(a.dgate + kv_head, z >= 0 && z <= 1 ? sum : __builtin_nanf(""));
    return;
  }
  const int tile = block_index() / batch.query_heads, head = block_index() % batch.query_heads;
  const ScratchTile place = scratch_tile(batch, tile, kRows);
  if (place.rows == 0) return;
  const Word4* const sums = reinterpret_cast<const Word4*>(a.dq_sums + dq_offset(batch, head, tile, kRows));
  const Shared memory = shared_memory();
  for (int i = thread; i < kRows * kHeadDim / 4; i += kBackwardRowThreads) {
    union {
      Word4 words;
      float values[4];
    } u = {load_global(sums + i)};
    const int fragment = i / 1024, j = i / 128 % 8, t = i % 128;
    const int row = 16 * (t / 32) + t % 32 / 4 + (kRows == 128 ? 64 * fragment : 0);
    const int column = 8 * j + 2 * (t % 4) + (kHeadDim == 128 ? 64 * fragment : 0);
    const Shared to = memory + row * kStride + column * 2;
    store_shared(to, pack<kType>(u.values[0] * a.scale, u.values[1] * a.scale));
    store_shared(to + 8 * kStride, pack<kType>(u.values[2] * a.scale, u.values[3] * a.scale));
  }
  sync_cta();
  constexpr int kLanes = kHeadDim / 8;
  Word4* const dq = static_cast<Word4*>(a.dq) + packed_row(place.row, batch.query_heads, head) * kLanes;
  for (int i = thread; i < place.rows * kLanes; i += kBackwardRowThreads) {
    const int row = i / kLanes, lane = i % kLanes;
    store_global(dq + int64_t{row} * batch.query_heads * kLanes + lane,
                 load_shared<Word4>(memory + row * kStride + lane * 16));
  }
}
template <int kHeadDim>
constexpr int kFinishSharedBytes = backward_tile_rows(kHeadDim) * (2 * kHeadDim + 16);

}  // namespace backward
}  // namespace prulong::kernels
