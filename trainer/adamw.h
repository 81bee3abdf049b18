// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace prulong {

/// What stays the same over all steps; the learning rate does not.
struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;  ///< decoupled: each step shrinks parameters by lr * weight_decay
  bool maximize = false;    ///< ascend the gradient
};

/// AdamW (arXiv 1711.05101) with bias correction, for a few parameters on the host in double precision: torch's fused
/// kernel, as for the model's weights (weights_optimizer.h).
class AdamW {
 public:
  /// Everything a checkpoint must hold.
  struct State {
    int64_t steps = 0;      ///< taken so far
    std::vector<double> m;  ///< running mean of the gradient
    std::vector<double> v;  ///< running mean of its square
    bool operator==(const State&) const = default;
  };

  AdamW(size_t size, const AdamWOptions& options);

  /// One update in place. @param parameters, gradients  of the size given at construction.
  void step(std::vector<double>& parameters, const std::vector<double>& gradients, double learning_rate);

  const State& state() const { return state_; }

  /// @throws std::invalid_argument if the sizes do not fit.
  void set_state(State state);

 private:
  AdamWOptions options_;
  State state_;
};

/// Sum of squares.
double squared_norm(const std::vector<double>& values);

/// What to multiply gradients of this joint norm by so that it does not exceed max_norm, as
/// torch.nn.utils.clip_grad_norm_.
/// @param max_norm  0 = never clip.
/// @return in (0, 1].
double clip_factor(double norm, double max_norm);

}  // namespace prulong
