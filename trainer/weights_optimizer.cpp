// SPDX-License-Identifier: MIT
#include "trainer/weights_optimizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "common/error.h"
#include "trainer/host_tensor.h"

namespace prulong {

WeightsOptimizer::WeightsOptimizer(Llama& model, const AdamWOptions& options) : groups_(2), options_(options) {
  model.set_trainable(true);
  groups_[0].weight_decay = options.weight_decay;
  for (const auto& [name, weight] : model.weights()) {
    Group& group = groups_[weight.dim() >= 2 ? 0 : 1];
    const auto master = weight.detach().to(at::kFloat);  // the weight itself when it is float32 already
    group.names.push_back(name);
    group.sums.emplace_back();
    group.weights.push_back(weight);
    group.masters.push_back(master);
    group.m.push_back(at::zeros_like(master));
    group.v.push_back(at::zeros_like(master));
    group.steps.push_back(at::zeros({}, master.options()));
  }
}

void WeightsOptimizer::accumulate() {
  const at::NoGradGuard no_grad;
  for (Group& group : groups_) {
    for (size_t i = 0; i < group.weights.size(); ++i) {
      at::Tensor& gradient = group.weights[i].mutable_grad();
      // Autograd itself adds up in the weight's dtype: right where that is float32.
      if (!gradient.defined() || gradient.scalar_type() == at::kFloat) continue;
      at::Tensor& sum = group.sums[i];
      sum = sum.defined() ? sum.add_(gradient) : gradient.to(at::kFloat);
      gradient = at::Tensor();
    }
  }
}

void WeightsOptimizer::sum_over(const RankGroup& ranks) {
  if (ranks.size() == 1) return;
  const at::NoGradGuard no_grad;
  for (Group& group : groups_) {
    for (size_t i = 0; i < group.weights.size(); ++i) {
      const at::Tensor own = group.gradient(i);
      group.sums[i] =
          own.defined() ? own.to(at::kFloat).contiguous() : at::zeros_like(group.weights[i], at::kFloat).contiguous();
      group.weights[i].mutable_grad() = at::Tensor();
      ranks.all_reduce(group.sums[i]);
    }
  }
}

double WeightsOptimizer::squared_gradient_norm() const {
  std::vector<at::Tensor> squares;
  for (const Group& group : groups_) {
    for (size_t i = 0; i < group.weights.size(); ++i) {
      const at::Tensor gradient = group.gradient(i);
      if (gradient.defined()) squares.push_back(gradient.to(at::kFloat).square().sum());
    }
  }
  if (squares.empty()) return 0;
  double sum = 0;
  for (const double square : to_vector(at::stack(squares))) sum += square;
  return sum;
}

void WeightsOptimizer::step(double learning_rate, double gradient_scale) {
  const at::NoGradGuard no_grad;
  for (Group& group : groups_) {
    std::vector<at::Tensor> gradients;
    for (size_t i = 0; i < group.weights.size(); ++i) {
      if (group.sums[i].defined()) {
        gradients.push_back(group.sums[i].mul_(gradient_scale));
      } else {
        const at::Tensor& gradient = group.weights[i].grad();
        gradients.push_back(gradient.defined() ? gradient.to(at::kFloat).mul(gradient_scale)
                                               : at::zeros_like(group.weights[i], at::kFloat));
      }
    }
    for (at::Tensor& steps : group.steps) steps.add_(1);  // the kernel corrects its bias by the step being taken
    at::_fused_adamw_(group.masters, gradients, group.m, group.v, {}, group.steps, learning_rate, options_.beta1,
                      options_.beta2, group.weight_decay, options_.eps, /*amsgrad=*/false, /*maximize=*/false);
    for (size_t i = 0; i < group.weights.size(); ++i) {
      if (!group.weights[i].is_alias_of(group.masters[i])) group.weights[i].detach().copy_(group.masters[i]);
    }
  }
  zero_gradients();
}

void WeightsOptimizer::zero_gradients() {
  for (Group& group : groups_) {
    for (at::Tensor& weight : group.weights) weight.mutable_grad() = at::Tensor();
    for (at::Tensor& sum : group.sums) sum = at::Tensor();
  }
}

TensorMap WeightsOptimizer::state() const {
  TensorMap state;
  for (const Group& group : groups_) {
    for (size_t i = 0; i < group.names.size(); ++i) {
      state["weights." + group.names[i]] = group.masters[i];
      state["weights.m." + group.names[i]] = group.m[i];
      state["weights.v." + group.names[i]] = group.v[i];
    }
  }
  state["weights.steps"] = groups_[0].steps.at(0);
  return state;
}

void WeightsOptimizer::set_state(const TensorMap& state) {
  const at::NoGradGuard no_grad;
  const auto restore = [&](const std::string& name, const at::Tensor& into) {
    const auto found = state.find(name);
    if (found == state.end() || found->second.sizes() != into.sizes()) {
      throw Error("expected a tensor " + name + " of the model's shape, found " +
                  (found == state.end() ? "none" : "another shape") +
                  "; it belongs to another model or mode: use another run.dir");
    }
    into.copy_(found->second);
  };
  for (Group& group : groups_) {
    for (size_t i = 0; i < group.names.size(); ++i) {
      restore("weights." + group.names[i], group.masters[i]);
      restore("weights.m." + group.names[i], group.m[i]);
      restore("weights.v." + group.names[i], group.v[i]);
      restore("weights.steps", group.steps[i]);
      group.weights[i].detach().copy_(group.masters[i]);
    }
  }
}

}  // namespace prulong
