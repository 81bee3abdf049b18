// SPDX-License-Identifier: MIT
#include "trainer/gate_learner.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cmath>

#include "common/config/config_visitor.h"
#include "common/error.h"
#include "trainer/host_tensor.h"

namespace prulong {
namespace {

AdamWOptions adamw_options(const OptimizerOptions& o, bool maximize) {
  return {o.beta1, o.beta2, o.eps, o.gates_weight_decay, maximize};
}

void add_state(TensorMap& state, const std::string& name, const std::vector<double>& values, const AdamW& optimizer) {
  state[name] = to_tensor(values);
  state[name + ".m"] = to_tensor(optimizer.state().m);
  state[name + ".v"] = to_tensor(optimizer.state().v);
  state[name + ".steps"] = to_tensor({static_cast<double>(optimizer.state().steps)});
}

AdamW::State optimizer_state(const TensorMap& state, const std::string& name, size_t size) {
  return {static_cast<int64_t>(values_of(state, name + ".steps", 1)[0]), values_of(state, name + ".m", size),
          values_of(state, name + ".v", size)};
}

}  // namespace

std::vector<double> to_vector(const at::Tensor& tensor) {
  const auto host = tensor.detach().to(at::kCPU, at::kDouble).contiguous();
  return {host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel()};
}

at::Tensor to_tensor(const std::vector<double>& values) {
  return at::from_blob(const_cast<double*>(values.data()), {static_cast<int64_t>(values.size())}, at::kDouble).clone();
}

std::vector<double> values_of(const TensorMap& state, const std::string& name, size_t size) {
  const auto found = state.find(name);
  if (found == state.end() || found->second.numel() != static_cast<int64_t>(size)) {
    throw Error("expected " + std::to_string(size) + " values of " + name + ", found " +
                (found == state.end() ? "none" : std::to_string(found->second.numel())) +
                "; it belongs to another model: use another run.dir");
  }
  return to_vector(found->second);
}

GateLearner::GateLearner(const TrainConfig& config, Gates start)
    : sparsity_(config.sparsity),
      options_(config.optimizer),
      target_{config.sparsity.start, config.sparsity.end, config.sparsity.warmup_ratio, config.train.steps,
              config.sparsity.schedule},
      gates_(std::move(start)),
      gates_optimizer_(gates_.log_alpha().size(), adamw_options(config.optimizer, false)),
      multipliers_optimizer_(2, adamw_options(config.optimizer, true)) {}

ConstraintStep GateLearner::constrain(int64_t step, const GateSample& mean_sample,
                                      std::vector<double>& gradient) const {
  const auto expected = expected_sparsity(gates_.log_alpha());
  const auto sparsity = sparsity_.estimate == SparsityEstimate::kExpected ? expected : sampled_sparsity(mean_sample);
  const double target = target_.at(step);
  const auto loss = constraint_loss(sparsity, target, multipliers_, sparsity_.linear_term);
  for (size_t g = 0; g < gradient.size(); ++g) gradient[g] += loss.d_log_alpha[g];
  return {
      sparsity.value, expected.value, target, loss.value, {loss.d_multipliers.linear, loss.d_multipliers.quadratic}};
}

void GateLearner::update(std::vector<double> gradient, std::vector<double> multiplier_gradient, double scale,
                         double learning_rate_factor) {
  for (double& g : gradient) g *= scale;
  for (double& g : multiplier_gradient) g *= scale;
  gates_optimizer_.step(gates_.log_alpha(), gradient, options_.lr_gates * learning_rate_factor);
  std::vector<double> values = {multipliers_.linear, multipliers_.quadratic};
  multipliers_optimizer_.step(values, multiplier_gradient, options_.lr_multipliers * learning_rate_factor);
  multipliers_ = {values[0], values[1]};
  const auto finite = [](double value) { return std::isfinite(value); };
  if (!std::ranges::all_of(gates_.log_alpha(), finite) || !std::ranges::all_of(values, finite)) {
    throw Error("the gates or their multipliers are no longer finite, with optimizer.lr_gates " +
                show_number(options_.lr_gates) + " and optimizer.lr_multipliers " +
                show_number(options_.lr_multipliers) + "; lower them and begin in another run.dir");
  }
}

TensorMap GateLearner::state() const {
  TensorMap state;
  add_state(state, "log_alpha", gates_.log_alpha(), gates_optimizer_);
  add_state(state, "multipliers", {multipliers_.linear, multipliers_.quadratic}, multipliers_optimizer_);
  return state;
}

void GateLearner::set_state(const TensorMap& state) {
  const size_t count = gates_.log_alpha().size();
  const auto log_alpha = values_of(state, "log_alpha", count), lambda = values_of(state, "multipliers", 2);
  gates_optimizer_.set_state(optimizer_state(state, "log_alpha", count));
  multipliers_optimizer_.set_state(optimizer_state(state, "multipliers", 2));
  gates_.log_alpha() = log_alpha;
  multipliers_ = {lambda[0], lambda[1]};
}

}  // namespace prulong
