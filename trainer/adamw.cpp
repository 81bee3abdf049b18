// SPDX-License-Identifier: MIT
#include "trainer/adamw.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace prulong {

AdamW::AdamW(size_t size, const AdamWOptions& options) : options_(options) {
  state_.m.assign(size, 0);
  state_.v.assign(size, 0);
}

void AdamW::step(std::vector<double>& parameters, const std::vector<double>& gradients, double learning_rate) {
  if (parameters.size() != state_.m.size() || gradients.size() != state_.m.size()) {
    throw std::invalid_argument("AdamW: parameters or gradients have another size than at construction");
  }
  const auto& [beta1, beta2, eps, weight_decay, maximize] = options_;
  ++state_.steps;
  const double correction1 = 1 - std::pow(beta1, static_cast<double>(state_.steps));
  const double correction2 = 1 - std::pow(beta2, static_cast<double>(state_.steps));
  for (size_t i = 0; i < parameters.size(); ++i) {
    const double gradient = maximize ? -gradients[i] : gradients[i];
    double& m = state_.m[i];
    double& v = state_.v[i];
    m = beta1 * m + (1 - beta1) * gradient;
    v = beta2 * v + (1 - beta2) * gradient * gradient;
    parameters[i] -= learning_rate * weight_decay * parameters[i];
    parameters[i] -= learning_rate * (m / correction1) / (std::sqrt(v / correction2) + eps);
  }
}

void AdamW::set_state(State state) {
  if (state.m.size() != state_.m.size() || state.v.size() != state_.v.size()) {
    throw std::invalid_argument("AdamW: the state has another size than the parameters");
  }
  state_ = std::move(state);
}

double squared_norm(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return sum;
}

double clip_factor(double norm, double max_norm) {
  if (max_norm == 0) return 1;
  return std::min(1.0, max_norm / (norm + 1e-6));
}

}  // namespace prulong
