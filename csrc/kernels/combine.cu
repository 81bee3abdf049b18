// SPDX-License-Identifier: MIT
#include "csrc/kernels/combine.h"

#include "csrc/kernels/device/arithmetic.h"
#include "csrc/kernels/device/memory.h"

namespace prulong::kernels {
namespace {

using device::Word4;

constexpr int kThreads = 256;
constexpr int kBlocks = 8 * 132;        // what a Hopper GPU holds at a time; each takes its share
constexpr int kWidth = 8;               // elements of a vector: 16 bytes
constexpr int kTokens = 16;             // that a block takes at a time
constexpr int kRows = 16;               // of a split tile, likewise
constexpr uint32_t kNaNs = 0x7fff7fff;  // a NaN of float, and two of bfloat16 as of float16

template <ElementType kType, class Function>
__device__ uint32_t map_pair(uint32_t a, uint32_t b, Function function, uint32_t* second) {
  const GatedElement low = function(device::unpack_low<kType>(a), device::unpack_low<kType>(b));
  const GatedElement high = function(device::unpack_high<kType>(a), device::unpack_high<kType>(b));
  *second = device::pack<kType>(low.delta, high.delta);
  return device::pack<kType>(low.out, high.out);
}

__device__ void poison(void* data, int64_t bytes) {
  auto* words = static_cast<uint32_t*>(data);
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < bytes / 4; i += int64_t{gridDim.x} * kThreads) {
    words[i] = kNaNs;
  }
}

// Rows of heads with a fractional gate: those after the local ones in the list of short heads.
template <ElementType kType>
__device__ void combine_branches(const CombineParams& p) {
  const Batch& batch = p.schedule.batch;
  const ScheduleState& state = *p.schedule.state;
  const int group = batch.group(), vectors = batch.head_dim / kWidth;  // 8 or 16: a row's lie in one warp
  const int fractional = state.short_heads - state.local_heads;
  const int per_token = fractional * group * vectors;
  const int* heads = p.schedule.heads + batch.kv_heads + state.local_heads;
  auto* outs = static_cast<Word4*>(p.out);
  auto* deltas = static_cast<Word4*>(p.delta);
  for (int first = static_cast<int>(blockIdx.x) * kTokens; first < batch.q_tokens && per_token > 0;
       first += static_cast<int>(gridDim.x) * kTokens) {
    const int count = detail::lesser(kTokens, batch.q_tokens - first) * per_token;
    // Whole warps take part to the end: lanes of a row wait for each other before one of them changes its statistics.
    for (int base = 0; base < count; base += kThreads) {
      const int i = base + static_cast<int>(threadIdx.x);
      const bool active = i < count;
      const int token = first + (active ? i / per_token : 0);
      const int in_token = active ? i % per_token : 0;
      const int row = in_token / vectors, vector = in_token % vectors;
      const int kv_head = heads[row / group];
      const int query_head = kv_head * group + row % group;
      const int64_t statistics = int64_t{query_head} * batch.q_tokens + token;
      const JoinWeights join = join_weights(p.lse_local[statistics], p.lse_global[statistics]);
      __syncwarp();
      if (!active) continue;
      if (vector == 0) p.lse_global[statistics] = join.lse;
      const int64_t at = (int64_t{token} * batch.query_heads + query_head) * vectors + vector;
      const float gate = batch.gate[kv_head];
      const auto combine = [&](float local, float complement) {
        return combine_element(local, complement, join.second, gate);
      };
      const Word4 local = outs[at], complement = deltas[at];
      Word4 out, delta;
      out.x = map_pair<kType>(local.x, complement.x, combine, &delta.x);
      out.y = map_pair<kType>(local.y, complement.y, combine, &delta.y);
      out.z = map_pair<kType>(local.z, complement.z, combine, &delta.z);
      out.w = map_pair<kType>(local.w, complement.w, combine, &delta.w);
      outs[at] = out;
      deltas[at] = delta;
    }
  }
}

// Rows of split tiles: a weighted sum of their pieces' results.
template <ElementType kType>
__device__ void merge_pieces(const CombineParams& p) {
  const Schedule& schedule = p.schedule;
  const Batch& batch = schedule.batch;
  const ScheduleState& state = *schedule.state;
  const int group = batch.group(), members = state.long_heads * group;
  const int parts = detail::divide_up(schedule.query_rows, kRows);  // of a tile
  const int vectors = batch.head_dim / kWidth;
  for (int i = static_cast<int>(blockIdx.x); i < state.long_tiles * members * parts; i += static_cast<int>(gridDim.x)) {
    const Tile& tile = schedule.long_tiles[i / (members * parts)];
    if (tile.slot < 0 || tile.piece != 0) continue;
    const int member = i / parts % members;
    const int query_head = schedule.heads[member / group] * group + member % group;
    const int begin = i % parts * kRows;
    const int rows =
        detail::lesser(kRows, detail::lesser(schedule.query_rows, tile.document.q_length - tile.first) - begin);
    for (int v = static_cast<int>(threadIdx.x); v < rows * vectors; v += kThreads) {
      const int row = begin + v / vectors, vector = v % vectors;
      // Row of piece n: its partial result's row, as QueryItem::partial numbers them.
      const auto row_of = [&](int n) {
        return (int64_t{tile.slot + n} * members + member) * schedule.query_rows + row;
      };
      JoinWeights join = {-INFINITY, 0};
      for (int n = 0; n < tile.pieces; ++n) join = join_weights(join.lse, p.partial_lse[row_of(n)]);
      float sums[kWidth] = {};
      for (int n = 0; n < tile.pieces; ++n) {
        const float lse = p.partial_lse[row_of(n)];
        const float weight = lse == -INFINITY ? 0 : expf(lse - join.lse);
        const auto* part = reinterpret_cast<const float4*>(p.partial_out) + (row_of(n) * vectors + vector) * 2;
        const float4 low = part[0], high = part[1];
        const float values[kWidth] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        for (int e = 0; e < kWidth; ++e) sums[e] += weight * values[e];
      }
      const int64_t token = tile.document.q_begin + tile.first + row;
      if (vector == 0) p.lse_global[int64_t{query_head} * batch.q_tokens + token] = join.lse;
      static_cast<Word4*>(p.out)[(token * batch.query_heads + query_head) * vectors + vector] = {
          device::pack<kType>(sums[0], sums[1]), device::pack<kType>(sums[2], sums[3]),
          device::pack<kType>(sums[4], sums[5]), device::pack<kType>(sums[6], sums[7])};
    }
  }
}

template <ElementType kType>
__global__ void __launch_bounds__(kThreads) combine_kernel(const __grid_constant__ CombineParams p) {
  const Batch& batch = p.schedule.batch;
  if (p.schedule.state->invalid != 0) {
    poison(p.out, int64_t{batch.q_tokens} * batch.query_heads * batch.head_dim * 2);
    return;
  }
  if (p.delta != nullptr) combine_branches<kType>(p);
  if (p.partial_out != nullptr) merge_pieces<kType>(p);
}

__global__ void __launch_bounds__(kThreads) poison_kernel(const __grid_constant__ PoisonParams p) {
  if (p.state->invalid == 0) return;
  for (int i = 0; i < 4; ++i) {
    if (p.data[i] != nullptr) poison(p.data[i], p.bytes[i]);
  }
}

}  // namespace

cudaError_t launch_combine(const CombineParams& params, cudaStream_t stream) {
  switch (params.type) {
    case ElementType::kBFloat16:
      combine_kernel<ElementType::kBFloat16><<<kBlocks, kThreads, 0, stream>>>(params);
      return cudaGetLastError();
    case ElementType::kFloat16:
      combine_kernel<ElementType::kFloat16><<<kBlocks, kThreads, 0, stream>>>(params);
      return cudaGetLastError();
    case ElementType::kFloat32:
      break;
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_poison(const PoisonParams& params, cudaStream_t stream) {
  poison_kernel<<<kBlocks, kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace prulong::kernels
