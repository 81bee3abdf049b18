// SPDX-License-Identifier: MIT
#include "trainer/adamw.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>

#include <algorithm>
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
  const at::NoGradGuard no_grad;
  const auto alias = [](const std::vector<double>& values) {
    return at::from_blob(const_cast<double*>(values.data()), {static_cast<int64_t>(values.size())}, at::kDouble);
  };
  const at::Tensor steps = at::full({}, static_cast<double>(++state_.steps), at::kFloat);  // the one being taken
  at::_fused_adamw_({alias(parameters)}, {alias(gradients)}, {alias(state_.m)}, {alias(state_.v)}, {}, {steps},
                    learning_rate, options_.beta1, options_.beta2, options_.weight_decay, options_.eps,
                    /*amsgrad=*/false, options_.maximize);
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
