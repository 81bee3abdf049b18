// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "csrc/hopper/schedule.h"
#include "csrc/hopper/tensor_map.h"

/// What the gradients of gated attention are, from the definition: two softmaxes and their mixture.
namespace prulong::kernels::tests {

constexpr uint16_t kNanBits = 0x7fff;  // in both 16-bit types

/// [tokens, heads, dim] of 16-bit elements, full of NaN. A token has some more heads that the tensor does not tell of.
struct Tensor {
  ElementType type;
  int tokens, heads, dim, hidden_heads;
  std::vector<uint16_t> bits;

  Tensor(ElementType element, int rows, int columns, int depth, int hidden);
  void randomize(float magnitude, std::mt19937_64& random);
  void poison(int begin, int end);
  size_t at(int token, int head, int d) const;
  void set(int token, int head, int d, double value);
  double value(int token, int head, int d) const;
  PackedTensor packed() const { return {type, bits.data(), tokens, heads, dim, (heads + hidden_heads) * dim, dim}; }
};

/// [tokens, heads, dim], dense.
struct Gradients {
  std::vector<double> dq, dk, dv;
};

struct Expected {
  std::vector<double> out, delta;            // [tokens, query heads, dim]
  std::vector<float> lse_global, lse_local;  // [query heads, tokens]
  Gradients exact;
  /// As plain PyTorch computes them in the tensors' type: either softmax by itself, every intermediate result rounded.
  Gradients plain;
  std::vector<double> dgate;
  std::vector<double> dgate_noise;  // root of the sum of the squares of the terms of dgate
};

/// For documents with as many queries as keys. Documents listed in `skipped` have zeros.
Expected expected_gradients(const Batch& batch, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& dout,
                            const std::vector<int>& skipped);

}  // namespace prulong::kernels::tests
