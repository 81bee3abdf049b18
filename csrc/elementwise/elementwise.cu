// SPDX-License-Identifier: MIT
#include "csrc/elementwise/elementwise.h"

#include "csrc/elementwise/vector.h"

namespace prulong::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 16384;

unsigned count_blocks(int64_t vectors) {
  const int64_t blocks = (vectors + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

__device__ int64_t first_vector() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ int64_t vector_step() { return static_cast<int64_t>(gridDim.x) * kThreads; }

__device__ float sigmoid(float x) { return 1.0F / (1.0F + __expf(-x)); }

template <typename T>
__global__ void swiglu(SwiGluParams p) {
  for (int64_t v = first_vector(); v < p.size / kVectorWidth; v += vector_step()) {
    const Vector<T> gate = load<T>(p.gate, v), up = load<T>(p.up, v);
    Vector<T> out;
    for (int i = 0; i < kVectorWidth; ++i) {
      const float g = to_float(gate.element[i]);
      out.element[i] = from_float<T>(g * sigmoid(g) * to_float(up.element[i]));
    }
    store(p.out, v, out);
  }
}

template <typename T>
__global__ void swiglu_gradient(SwiGluGradientParams p) {
  for (int64_t v = first_vector(); v < p.size / kVectorWidth; v += vector_step()) {
    const Vector<T> grad = load<T>(p.grad, v), gate = load<T>(p.gate, v), up = load<T>(p.up, v);
    Vector<T> dgate, dup;
    for (int i = 0; i < kVectorWidth; ++i) {
      const float d = to_float(grad.element[i]);
      const float g = to_float(gate.element[i]);
      const float s = sigmoid(g);
      dgate.element[i] = from_float<T>(d * to_float(up.element[i]) * s * (1.0F + g * (1.0F - s)));
      dup.element[i] = from_float<T>(d * g * s);
    }
    store(p.dgate, v, dgate);
    store(p.dup, v, dup);
  }
}

template <typename T>
__global__ void rope(RopeParams p) {
  const int64_t row = p.half / kVectorWidth;  // vectors of half a head
  for (int64_t v = first_vector(); v < p.tokens * p.heads * row; v += vector_step()) {
    const int64_t head = v / row, i = v - head * row;
    const int64_t turn = head / p.heads * row + i, at = head * 2 * row + i;
    const Vector<T> cos = load<T>(p.cos, turn), sin = load<T>(p.sin, turn);
    const Vector<T> x1 = load<T>(p.x, at), x2 = load<T>(p.x, at + row);
    Vector<T> out1, out2;
    for (int j = 0; j < kVectorWidth; ++j) {
      const float c = to_float(cos.element[j]);
      const float s = p.back ? -to_float(sin.element[j]) : to_float(sin.element[j]);
      const float a = to_float(x1.element[j]), b = to_float(x2.element[j]);
      out1.element[j] = from_float<T>(a * c - b * s);
      out2.element[j] = from_float<T>(b * c + a * s);
    }
    store(p.out, at, out1);
    store(p.out, at + row, out2);
  }
}

}  // namespace

cudaError_t launch_swiglu(const SwiGluParams& params, cudaStream_t stream) {
  if (params.size == 0) return cudaSuccess;
  return launch_for_type(params.type, [&](auto element) {
    swiglu<decltype(element)><<<count_blocks(params.size / kVectorWidth), kThreads, 0, stream>>>(params);
  });
}

cudaError_t launch_swiglu_gradient(const SwiGluGradientParams& params, cudaStream_t stream) {
  if (params.size == 0) return cudaSuccess;
  return launch_for_type(params.type, [&](auto element) {
    swiglu_gradient<decltype(element)><<<count_blocks(params.size / kVectorWidth), kThreads, 0, stream>>>(params);
  });
}

cudaError_t launch_rope(const RopeParams& params, cudaStream_t stream) {
  const int64_t vectors = params.tokens * params.heads * params.half / kVectorWidth;
  if (vectors == 0) return cudaSuccess;
  return launch_for_type(params.type, [&](auto element) {
    rope<decltype(element)><<<count_blocks(vectors), kThreads, 0, stream>>>(params);
  });
}

}  // namespace prulong::kernels
