// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "model/safetensors.h"
#include "trainer/adamw.h"
#include "trainer/config.h"
#include "trainer/gates.h"

namespace prulong {

/// What the sparsity constraint says about one optimizer step.
struct ConstraintStep {
  double sparsity = 0;  ///< by the configured estimate
  double expected = 0;  ///< mean P(z = 0)
  double target = 0;
  double loss = 0;
  std::vector<double> multiplier_gradient;  ///< [2], to ascend
};

/// Gates, multipliers and their optimizers: all that a masks-only run learns, a few hundred numbers in double precision
/// on the host.
class GateLearner {
 public:
  GateLearner(const TrainConfig& config, Gates start);

  const Gates& gates() const { return gates_; }
  const Multipliers& multipliers() const { return multipliers_; }

  /// Adds the constraint's gradient to the loss's.
  /// @param mean_sample  the draws of the step's sequences, averaged.
  /// @param gradient     of the loss by log_alpha, [layers * kv_heads].
  ConstraintStep constrain(int64_t step, const GateSample& mean_sample, std::vector<double>& gradient) const;

  /// One AdamW step on gates (descent) and multipliers (ascent).
  /// @param scale                 multiplies both gradients (clipping).
  /// @param learning_rate_factor  of the schedule.
  /// @throws Error naming the learning rates when a value is no longer finite.
  void update(std::vector<double> gradient, std::vector<double> multiplier_gradient, double scale,
              double learning_rate_factor);

  /// Values and moments by name, float64.
  TensorMap state() const;
  /// @throws Error naming what is missing or of another size.
  void set_state(const TensorMap& state);

 private:
  SparsityOptions sparsity_;
  OptimizerOptions options_;
  SparsityTarget target_;
  Gates gates_;
  Multipliers multipliers_;
  AdamW gates_optimizer_, multipliers_optimizer_;
};

/// `size` values of a checkpoint's tensor.
/// @throws Error naming what is missing or of another size.
std::vector<double> values_of(const TensorMap& state, const std::string& name, size_t size);

}  // namespace prulong
