// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/schedule.h"
#include "tests/csrc/hopper/gpu_arrays.h"

/// The gradients of gated attention from their definition, pair by pair in double precision, on the GPU.
namespace prulong::kernels {

static __device__ double element(const Element* x, int64_t token, int heads, int head, int dim, int e) {
  return double(__bfloat162float(x[(token * heads + head) * dim + e]));
}
static __device__ double warp_sum(double x) {
  for (int m = 16; m > 0; m /= 2) x += __shfl_xor_sync(~0u, x, m);
  return x;
}
struct ReferenceRow {
  double lse[2], mean[2];  // global, local
};
struct Reference {
  Batch b;
  double scale;
  const Element *q, *k, *v, *dout;
  ReferenceRow* rows;  // [heads, tokens]
  double *dq, *dk, *dv;
  double *dgate, *dgate_noise;  // and the sum of the squares of its terms
  Element *out, *delta;
  float *lse_global, *lse_local;
};
static __device__ int document_of(const Batch& b, int row) {
  int d = 0;
  while (b.q_bounds[d + 1] <= row) ++d;
  return d;
}
// Score and dP of row and key, the warp's lanes sharing the dimensions.
static __device__ double2 pair_of(const Reference& r, int row, int head, int key) {
  const Batch& b = r.b;
  double s = 0, dp = 0;
  for (int e = threadIdx.x % 32; e < b.head_dim; e += 32) {
    s += element(r.q, row, b.query_heads, head, b.head_dim, e) *
         element(r.k, key, b.kv_heads, head / b.group(), b.head_dim, e);
    dp += element(r.dout, row, b.query_heads, head, b.head_dim, e) *
          element(r.v, key, b.kv_heads, head / b.group(), b.head_dim, e);
  }
  return {r.scale * warp_sum(s), warp_sum(dp)};
}
// P and dS of a pair.
static __device__ double2 weights_of(const Reference& r, const ReferenceRow& row, double2 pair, double z, bool local) {
  const double global_p = z * exp(pair.x - row.lse[0]), local_p = local ? (1 - z) * exp(pair.x - row.lse[1]) : 0;
  return {global_p + local_p, global_p * (pair.y - row.mean[0]) + local_p * (pair.y - row.mean[1])};
}
// A warp per row and head.
static __global__ void reference_rows(Reference r) {
  const Batch& b = r.b;
  const int n = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (n >= b.q_tokens * b.query_heads) return;
  const int row = n % b.q_tokens, head = n / b.q_tokens, begin = b.q_bounds[document_of(b, row)];
  const double z = b.gate[head / b.group()];
  double sum[2] = {}, mean[2] = {}, out[2][4] = {};
  for (int key = begin; key <= row; ++key) {  // scores are small: no maximum
    const double2 pair = pair_of(r, row, head, key);
    const bool local = visible(Branch::kLocal, b.locality, row - begin, key - begin);
    for (int branch = 0; branch < (local ? 2 : 1); ++branch) {
      const double p = exp(pair.x);
      sum[branch] += p;
      mean[branch] += p * pair.y;
      for (int i = 0; i < b.head_dim / 32; ++i) {
        out[branch][i] += p * element(r.v, key, b.kv_heads, head / b.group(), b.head_dim, i * 32 + lane);
      }
    }
  }
  ReferenceRow result;
  for (int branch = 0; branch < 2; ++branch) {
    result.lse[branch] = log(sum[branch]);
    result.mean[branch] = mean[branch] / sum[branch];
  }
  double dq[4] = {}, noise = 0;
  for (int key = begin; key <= row; ++key) {
    const bool local = visible(Branch::kLocal, b.locality, row - begin, key - begin);
    const double ds = weights_of(r, result, pair_of(r, row, head, key), z, local).y;
    for (int i = 0; i < b.head_dim / 32; ++i) {
      dq[i] += r.scale * ds * element(r.k, key, b.kv_heads, head / b.group(), b.head_dim, i * 32 + lane);
    }
  }
  for (int i = 0; i < b.head_dim / 32; ++i) {
    const int64_t at = (int64_t{row} * b.query_heads + head) * b.head_dim + i * 32 + lane;
    const double global = out[0][i] / sum[0], local = out[1][i] / sum[1];
    r.out[at] = __double2bfloat16(z * global + (1 - z) * local);
    r.delta[at] = __double2bfloat16(global - local);
    r.dq[at] = dq[i];
    const double term = (global - local) * double(__bfloat162float(r.dout[at]));
    noise += term * term;
  }
  noise = warp_sum(noise);
  if (lane == 0) {
    r.rows[n] = result;
    r.lse_global[n] = float(result.lse[0]);
    r.lse_local[n] = float(result.lse[1]);
    if (z > 0 && z < 1) {
      atomicAdd(&r.dgate[head / b.group()], result.mean[0] - result.mean[1]);
      atomicAdd(&r.dgate_noise[head / b.group()], noise);
    }
  }
}
// A warp per key and KV head.
static __global__ void reference_keys(Reference r) {
  const Batch& b = r.b;
  const int n = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (n >= b.k_tokens * b.kv_heads) return;
  const int key = n % b.k_tokens, kv_head = n / b.k_tokens, d = document_of(b, key), begin = b.q_bounds[d];
  double dk[4] = {}, dv[4] = {};
  for (int head = kv_head * b.group(); head < (kv_head + 1) * b.group(); ++head) {
    for (int row = key; row < b.q_bounds[d + 1]; ++row) {
      const bool local = visible(Branch::kLocal, b.locality, row - begin, key - begin);
      const double2 w =
          weights_of(r, r.rows[head * b.q_tokens + row], pair_of(r, row, head, key), b.gate[kv_head], local);
      for (int i = 0; i < b.head_dim / 32; ++i) {
        dv[i] += w.x * element(r.dout, row, b.query_heads, head, b.head_dim, i * 32 + lane);
        dk[i] += r.scale * w.y * element(r.q, row, b.query_heads, head, b.head_dim, i * 32 + lane);
      }
    }
  }
  for (int i = 0; i < b.head_dim / 32; ++i) {
    const int64_t at = (int64_t{key} * b.kv_heads + kv_head) * b.head_dim + i * 32 + lane;
    r.dk[at] = dk[i];
    r.dv[at] = dv[i];
  }
}

}  // namespace prulong::kernels
