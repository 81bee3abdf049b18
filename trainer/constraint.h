// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/gates.h"

namespace prulong {

/// How the sparsity s of the gates is measured.
enum class SparsityEstimate {
  kExpected,  ///< mean P(z = 0), in closed form: every gate keeps a gradient
  kSampled,   ///< 1 - mean z of the step's own draw, as the published code: clamped gates have no gradient
};

/// How the target rises.
enum class SparsitySchedule {
  kLinear,       ///< t itself
  kLogarithmic,  ///< ln(1 - t)
};

/// A sparsity and how it moves with each gate.
struct Sparsity {
  double value = 0;                ///< share of local heads, in [0, 1]
  std::vector<double> derivative;  ///< dvalue / dlog_alpha[i]
};

/// Mean of P(z = 0). @param log_alpha  not empty.
Sparsity expected_sparsity(const std::vector<double>& log_alpha);

/// 1 - mean z. @param sample  not empty.
Sparsity sampled_sparsity(const GateSample& sample);

/// The target over the run: from `start` to `end` during the first ceil(warmup_ratio * steps) steps, then `end`.
struct SparsityTarget {
  double start = 0;
  double end = 0.7;  ///< below 1 for kLogarithmic, as `start`
  double warmup_ratio = 0.8;
  int64_t steps = 1000;
  SparsitySchedule schedule = SparsitySchedule::kLinear;

  /// @param step  optimizer step, from 0.
  double at(int64_t step) const;
};

/// Lagrange multipliers; both start at 0 and are trained by gradient ascent.
struct Multipliers {
  double linear = 0;
  double quadratic = 0;
};

/// The constraint's loss l1 (s - t) + l2 (s - t)^2 and its gradients.
struct ConstraintLoss {
  double value = 0;
  std::vector<double> d_log_alpha;
  Multipliers d_multipliers;  ///< to ascend
};

/// @param target  t.
/// @param linear_term  false leaves the linear term out: l1 has no effect and no gradient.
ConstraintLoss constraint_loss(const Sparsity& sparsity, double target, const Multipliers& multipliers,
                               bool linear_term);

}  // namespace prulong
