// SPDX-License-Identifier: MIT
#include "trainer/constraint.h"

#include <cmath>

namespace prulong {

Sparsity expected_sparsity(const std::vector<double>& log_alpha) {
  const double count = static_cast<double>(log_alpha.size());
  Sparsity result;
  result.derivative.reserve(log_alpha.size());
  for (const double a : log_alpha) {
    result.value += probability_zero(a) / count;
    result.derivative.push_back(probability_zero_derivative(a) / count);
  }
  return result;
}

Sparsity sampled_sparsity(const GateSample& sample) {
  const double count = static_cast<double>(sample.z.size());
  Sparsity result;
  result.derivative.reserve(sample.z.size());
  for (size_t i = 0; i < sample.z.size(); ++i) {
    result.value += (1 - sample.z[i]) / count;
    result.derivative.push_back(-sample.dz[i] / count);
  }
  return result;
}

double SparsityTarget::at(int64_t step) const {
  const double warmup = std::ceil(warmup_ratio * static_cast<double>(steps));
  const double done = static_cast<double>(step);
  if (done >= warmup) return end;
  const double fraction = done / warmup;
  if (schedule == SparsitySchedule::kLinear) return start + (end - start) * fraction;
  return 1 - std::exp(std::log1p(-start) * (1 - fraction) + std::log1p(-end) * fraction);
}

ConstraintLoss constraint_loss(const Sparsity& sparsity, double target, const Multipliers& multipliers,
                               bool linear_term) {
  const double gap = sparsity.value - target;
  const double linear = linear_term ? multipliers.linear : 0;
  const double d_sparsity = linear + 2 * multipliers.quadratic * gap;
  ConstraintLoss loss;
  loss.value = linear * gap + multipliers.quadratic * gap * gap;
  loss.d_multipliers = {linear_term ? gap : 0, gap * gap};
  loss.d_log_alpha.reserve(sparsity.derivative.size());
  for (const double derivative : sparsity.derivative) loss.d_log_alpha.push_back(d_sparsity * derivative);
  return loss;
}

}  // namespace prulong
