// SPDX-License-Identifier: MIT
#include "csrc/elementwise/gate_mix.h"

#include "csrc/elementwise/vector.h"

namespace prulong::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kTokensPerPart = 64;
constexpr int kWidth = kVectorWidth;
constexpr int64_t kMaxBlocks = 16384;

// Where each head's rows lie in the branches' tensors, in shared memory: [heads] global, [heads] local places, then the
// branches' head counts.
struct Places {
  int* global;
  int* local;
  int global_heads, local_heads;
};

__device__ Places find_places(const float* gate, int heads, int* shared) {
  Places places{shared, shared + heads, 0, 0};
  for (int h = static_cast<int>(threadIdx.x); h < heads; h += kThreads) {
    int global = 0, local = 0;
    for (int before = 0; before < h; ++before) {
      global += gate[before] > 0 ? 1 : 0;
      local += gate[before] < 1 ? 1 : 0;
    }
    places.global[h] = global;
    places.local[h] = local;
  }
  __syncthreads();
  places.global_heads = places.global[heads - 1] + (gate[heads - 1] > 0 ? 1 : 0);
  places.local_heads = places.local[heads - 1] + (gate[heads - 1] < 1 ? 1 : 0);
  return places;
}

// Calls body(gate, vector of out, of o_global, of o_local) for every vector of every token, one token per block and
// turn.
template <typename Body>
__device__ void for_each_vector(const float* gate, int64_t tokens, int heads, int vectors_per_row, const Places& places,
                                Body body) {
  for (int64_t t = blockIdx.x; t < tokens; t += gridDim.x) {
    for (int e = static_cast<int>(threadIdx.x); e < heads * vectors_per_row; e += kThreads) {
      const int h = e / vectors_per_row;
      const int i = e - h * vectors_per_row;
      body(gate[h], t * heads * vectors_per_row + e, (t * places.global_heads + places.global[h]) * vectors_per_row + i,
           (t * places.local_heads + places.local[h]) * vectors_per_row + i);
    }
  }
}

template <typename T>
__global__ void gate_mix(GateMixParams p) {
  extern __shared__ int shared[];
  const auto heads = static_cast<int>(p.heads);
  const Places places = find_places(p.gate, heads, shared);
  for_each_vector(p.gate, p.tokens, heads, static_cast<int>(p.row / kWidth), places,
                  [&](float z, int64_t at, int64_t at_global, int64_t at_local) {
                    Vector<T> delta = {};
                    Vector<T> out;
                    if (z >= 1) {
                      out = load<T>(p.o_global, at_global);
                    } else if (z <= 0) {
                      out = load<T>(p.o_local, at_local);
                    } else {
                      const Vector<T> global = load<T>(p.o_global, at_global);
                      out = load<T>(p.o_local, at_local);
                      for (int i = 0; i < kWidth; ++i) {
                        const float local = to_float(out.element[i]);
                        const float difference = to_float(global.element[i]) - local;
                        delta.element[i] = from_float<T>(difference);
                        out.element[i] = from_float<T>(local + z * difference);
                      }
                    }
                    store(p.out, at, out);
                    if (p.delta != nullptr) store(p.delta, at, delta);
                  });
}

template <typename T>
__global__ void gate_split(GateSplitParams p) {
  extern __shared__ int shared[];
  const auto heads = static_cast<int>(p.heads);
  const Places places = find_places(p.gate, heads, shared);
  for_each_vector(p.gate, p.tokens, heads, static_cast<int>(p.row / kWidth), places,
                  [&](float z, int64_t at, int64_t at_global, int64_t at_local) {
                    const Vector<T> out = load<T>(p.out, at);
                    if (z >= 1) {
                      store(p.o_global, at_global, out);
                    } else if (z <= 0) {
                      store(p.o_local, at_local, out);
                    } else {
                      const Vector<T> delta = load<T>(p.delta, at);
                      Vector<T> global, local;
                      for (int i = 0; i < kWidth; ++i) {
                        const float mixed = to_float(out.element[i]);
                        const float difference = to_float(delta.element[i]);
                        global.element[i] = from_float<T>(mixed + (1 - z) * difference);
                        local.element[i] = from_float<T>(mixed - z * difference);
                      }
                      store(p.o_global, at_global, global);
                      store(p.o_local, at_local, local);
                    }
                  });
}

// The sum of all threads' values, in thread 0. The tree is fixed.
__device__ float block_sum(float value) {
  __shared__ float sums[kThreads];
  sums[threadIdx.x] = value;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (static_cast<int>(threadIdx.x) < width) sums[threadIdx.x] += sums[threadIdx.x + width];
    __syncthreads();
  }
  return sums[0];
}

// Block (part, head): the products of kTokensPerPart tokens.
template <typename T>
__global__ void gate_gradient_parts_kernel(GateGradientParams p) {
  const int64_t h = blockIdx.y;
  const float z = p.gate[h];
  if (z <= 0 || z >= 1) return;
  const int64_t first = blockIdx.x * kTokensPerPart;
  const int tokens = static_cast<int>(min(kTokensPerPart, p.tokens - first));
  const int vectors_per_row = static_cast<int>(p.row / kWidth);
  float sum = 0;
  for (int e = static_cast<int>(threadIdx.x); e < tokens * vectors_per_row; e += kThreads) {
    const int t = e / vectors_per_row;
    const int64_t at = ((first + t) * p.heads + h) * vectors_per_row + (e - t * vectors_per_row);
    const Vector<T> dout = load<T>(p.dout, at);
    const Vector<T> delta = load<T>(p.delta, at);
    for (int i = 0; i < kWidth; ++i) sum += to_float(dout.element[i]) * to_float(delta.element[i]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) p.partial[h * gridDim.x + blockIdx.x] = sum;
}

__global__ void gate_gradient_sum(const float* gate, const float* partial, int64_t parts, float* dgate) {
  const float z = gate[blockIdx.x];
  float sum = 0;
  if (z > 0 && z < 1) {
    for (int64_t i = threadIdx.x; i < parts; i += kThreads) sum += partial[blockIdx.x * parts + i];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) dgate[blockIdx.x] = sum;
}

// One block per row.
template <typename T>
__global__ void softmax_merge(SoftmaxMergeParams p) {
  extern __shared__ float weights[];  // [heads]: the part's share of each head's sum
  const int64_t r = blockIdx.x;
  const int64_t place = p.row_index != nullptr ? p.row_index[r] : p.first_row + r;
  const auto heads = static_cast<int>(p.heads);
  for (int h = static_cast<int>(threadIdx.x); h < heads; h += kThreads) {
    float& lse = p.lse[h * p.lse_stride + place];
    const float part = p.part_lse[h * p.rows + r];
    const float top = fmaxf(lse, part);
    const float old_sum = expf(lse - top);
    const float part_sum = expf(part - top);
    weights[h] = part_sum / (old_sum + part_sum);
    lse = top + logf(old_sum + part_sum);
  }
  __syncthreads();
  const int vectors_per_head = static_cast<int>(p.dim / kWidth);
  for (int e = static_cast<int>(threadIdx.x); e < heads * vectors_per_head; e += kThreads) {
    const float weight = weights[e / vectors_per_head];
    const int64_t at = place * heads * vectors_per_head + e;
    const Vector<T> part = load<T>(p.part_out, r * heads * vectors_per_head + e);
    Vector<T> out = load<T>(p.out, at);
    for (int i = 0; i < kWidth; ++i) {
      const float old = to_float(out.element[i]);
      out.element[i] = from_float<T>(old + weight * (to_float(part.element[i]) - old));
    }
    store(p.out, at, out);
  }
}

unsigned count_blocks(int64_t tokens) { return static_cast<unsigned>(tokens < kMaxBlocks ? tokens : kMaxBlocks); }

}  // namespace

int64_t gate_gradient_parts(int64_t tokens) { return (tokens + kTokensPerPart - 1) / kTokensPerPart; }

cudaError_t launch_gate_mix(const GateMixParams& params, cudaStream_t stream) {
  if (params.tokens == 0 || params.heads == 0) return cudaSuccess;
  const size_t shared = 2 * static_cast<size_t>(params.heads) * sizeof(int);
  return launch_for_type(params.type, [&](auto element) {
    gate_mix<decltype(element)><<<count_blocks(params.tokens), kThreads, shared, stream>>>(params);
  });
}

cudaError_t launch_gate_split(const GateSplitParams& params, cudaStream_t stream) {
  if (params.tokens == 0 || params.heads == 0) return cudaSuccess;
  const size_t shared = 2 * static_cast<size_t>(params.heads) * sizeof(int);
  return launch_for_type(params.type, [&](auto element) {
    gate_split<decltype(element)><<<count_blocks(params.tokens), kThreads, shared, stream>>>(params);
  });
}

cudaError_t launch_gate_gradient(const GateGradientParams& params, cudaStream_t stream) {
  if (params.heads == 0) return cudaSuccess;
  if (params.tokens == 0) {
    return cudaMemsetAsync(params.dgate, 0, static_cast<size_t>(params.heads) * sizeof(float), stream);
  }
  const int64_t parts = gate_gradient_parts(params.tokens);
  const dim3 grid(static_cast<unsigned>(parts), static_cast<unsigned>(params.heads));
  const cudaError_t status = launch_for_type(params.type, [&](auto element) {
    gate_gradient_parts_kernel<decltype(element)><<<grid, kThreads, 0, stream>>>(params);
  });
  if (status != cudaSuccess) return status;
  gate_gradient_sum<<<static_cast<unsigned>(params.heads), kThreads, 0, stream>>>(params.gate, params.partial, parts,
                                                                                  params.dgate);
  return cudaGetLastError();
}

cudaError_t launch_softmax_merge(const SoftmaxMergeParams& params, cudaStream_t stream) {
  if (params.rows == 0 || params.heads == 0) return cudaSuccess;
  const size_t shared = static_cast<size_t>(params.heads) * sizeof(float);
  return launch_for_type(params.type, [&](auto element) {
    softmax_merge<decltype(element)><<<static_cast<unsigned>(params.rows), kThreads, shared, stream>>>(params);
  });
}

}  // namespace prulong::kernels
