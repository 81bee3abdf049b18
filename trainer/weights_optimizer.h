// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include "model/llama.h"
#include "parallel/mesh.h"
#include "trainer/adamw.h"

namespace prulong {

/// AdamW over a model's weights with float32 master copies and moments (torch's fused kernel).
class WeightsOptimizer {
 public:
  /// Makes the model's weights trainable. @param options  weight_decay applies to matrices, not to norms.
  WeightsOptimizer(Llama& model, const AdamWOptions& options);

  /// Adds the gradients of one sequence to the step's, in float32, and clears them: for steps of several sequences,
  /// whose sum bfloat16 would round again and again.
  void accumulate();

  /// Sums the gradients over ranks, in float32; a rank without a gradient adds zeros. Every rank calls it.
  void sum_over(const RankGroup& ranks);

  /// Squared norm of all gradients, read from the device at once; weights without a gradient count 0.
  double squared_gradient_norm() const;

  /// One update with gradients multiplied by `gradient_scale`, then zero_gradients().
  void step(double learning_rate, double gradient_scale);
  void zero_gradients();

  /// "weights.NAME" (master), "weights.m.NAME", "weights.v.NAME" and "weights.steps", aliasing the live tensors.
  TensorMap state() const;
  /// @throws Error naming the first tensor that is missing or of another shape.
  void set_state(const TensorMap& state);

 private:
  struct Group {
    std::vector<std::string> names;
    std::vector<at::Tensor> weights, masters, m, v, steps;
    std::vector<at::Tensor> sums;  // of accumulate() and sum_over(); undefined: the gradient alone
    at::Tensor gradient(size_t i) const { return sums[i].defined() ? sums[i] : weights[i].grad(); }
    double weight_decay = 0;
  };
  std::vector<Group> groups_;
  AdamWOptions options_;
};

}  // namespace prulong
