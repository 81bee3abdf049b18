// SPDX-License-Identifier: MIT
#include "trainer/weights_optimizer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "common/error.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"

using namespace prulong;
using test::tiny_llama;

namespace {

const AdamWOptions kOptions{.beta1 = 0.8, .beta2 = 0.9, .eps = 1e-3, .weight_decay = 0.3};
const std::string kWithoutGradient = "model.layers.1.mlp.up_proj.weight";

/// The gradients of one step, by name: the same for every model of the shape.
TensorMap gradients_of(const Llama& model, int64_t step) {
  at::manual_seed(static_cast<uint64_t>(1000 + step));
  TensorMap gradients;
  for (const auto& [name, weight] : model.weights()) {
    const auto noise = at::randn_like(weight.detach(), at::kFloat).to(model.dtype());
    if (step != 1 || name != kWithoutGradient) gradients[name] = noise;
  }
  return gradients;
}

void take_step(Llama& model, WeightsOptimizer& optimizer, int64_t step) {
  for (const auto& [name, gradient] : gradients_of(model, step)) model.weights().at(name).mutable_grad() = gradient;
  optimizer.step(0.05 / static_cast<double>(step + 1), 0.5);
}

/// AdamW written out, in double precision; matrices decay, norms do not.
class Reference {
 public:
  explicit Reference(const Llama& model) {
    for (const auto& [name, weight] : model.weights()) {
      values[name] = weight.detach().to(at::kDouble).clone();
      m_[name] = at::zeros_like(values[name]);
      v_[name] = at::zeros_like(values[name]);
    }
  }

  void step(const TensorMap& gradients, int64_t number, double rate, double scale) {
    for (auto& [name, value] : values) {
      const auto found = gradients.find(name);
      const auto g = found == gradients.end() ? at::zeros_like(value) : found->second.to(at::kDouble).mul(scale);
      auto &m = m_[name], &v = v_[name];
      m = m * kOptions.beta1 + g * (1 - kOptions.beta1);
      v = v * kOptions.beta2 + g * g * (1 - kOptions.beta2);
      const auto mean = m / (1 - std::pow(kOptions.beta1, static_cast<double>(number)));
      const auto square = v / (1 - std::pow(kOptions.beta2, static_cast<double>(number)));
      const double decay = value.dim() >= 2 ? kOptions.weight_decay : 0.0;
      value = value * (1 - rate * decay) - mean / (square.sqrt() + kOptions.eps) * rate;
    }
  }

  TensorMap values;

 private:
  TensorMap m_, v_;
};

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.detach().to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

}  // namespace

TEST_CASE("Weights take the steps of AdamW in double precision") {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    CAPTURE(dtype);
    Llama model = tiny_llama(dtype);
    Reference reference(model);
    WeightsOptimizer optimizer(model, kOptions);
    for (int64_t step = 0; step < 5; ++step) {
      reference.step(gradients_of(model, step), step + 1, 0.05 / static_cast<double>(step + 1), 0.5);
      take_step(model, optimizer, step);
    }
    const TensorMap state = optimizer.state();
    CHECK(state.at("weights.steps").item<double>() == 5);
    for (const auto& [name, weight] : model.weights()) {
      CAPTURE(name);
      CHECK(weight.requires_grad());
      CHECK_FALSE(weight.grad().defined());
      CHECK(state.at("weights." + name).scalar_type() == at::kFloat);
      CHECK(largest_difference(state.at("weights." + name), reference.values.at(name)) < 3e-6);
      CHECK(at::equal(weight.detach(), state.at("weights." + name).to(dtype)));
    }
  }
}

TEST_CASE("The gradient's norm is that of all weights together") {
  Llama model = tiny_llama(at::kFloat, true);
  WeightsOptimizer optimizer(model, kOptions);
  CHECK(optimizer.squared_gradient_norm() == 0);
  double expected = 0;
  for (const auto& [name, gradient] : gradients_of(model, 1)) {
    model.weights().at(name).mutable_grad() = gradient;
    expected += gradient.to(at::kDouble).square().sum().item<double>();
  }
  CHECK(optimizer.squared_gradient_norm() == Approx(expected).epsilon(1e-6));
  optimizer.zero_gradients();
  CHECK(optimizer.squared_gradient_norm() == 0);
}

TEST_CASE("Weights go on from their state bit for bit") {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    CAPTURE(dtype);
    Llama whole = tiny_llama(dtype), resumed = tiny_llama(dtype);
    WeightsOptimizer whole_optimizer(whole, kOptions), resumed_optimizer(resumed, kOptions);
    TensorMap saved;
    for (int64_t step = 0; step < 4; ++step) {
      take_step(whole, whole_optimizer, step);
      if (step == 1) {
        for (const auto& [name, tensor] : whole_optimizer.state()) saved[name] = tensor.clone();
      }
    }
    resumed_optimizer.set_state(saved);
    for (int64_t step = 2; step < 4; ++step) take_step(resumed, resumed_optimizer, step);
    const TensorMap expected = whole_optimizer.state(), found = resumed_optimizer.state();
    REQUIRE(found.size() == 3 * whole.weights().size() + 1);
    for (const auto& [name, tensor] : expected) {
      CAPTURE(name);
      CHECK(at::equal(found.at(name), tensor));
    }
    for (const auto& [name, weight] : whole.weights()) CHECK(at::equal(resumed.weights().at(name), weight));
  }
}

TEST_CASE("A state of another model is refused by the tensor that does not fit") {
  Llama model = tiny_llama(at::kFloat);
  WeightsOptimizer optimizer(model, kOptions);
  TensorMap state;
  for (const auto& [name, tensor] : optimizer.state()) state[name] = tensor.clone();
  TensorMap missing = state, other = state;
  missing.erase("weights.m.model.norm.weight");
  CHECK_THROWS_WITH(optimizer.set_state(missing),
                    ContainsSubstring("weights.m.model.norm.weight") && ContainsSubstring("found none"));
  other["weights.lm_head.weight"] = other["weights.lm_head.weight"].t().contiguous();
  CHECK_THROWS_WITH(optimizer.set_state(other),
                    ContainsSubstring("weights.lm_head.weight") && ContainsSubstring("another shape"));
}

TEST_CASE("The gradients of many sequences add up in float32") {
  // 1 + 1/256 + ... : bfloat16 has 8 bits, so that each further addend would be rounded away.
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    CAPTURE(dtype);
    Llama model = tiny_llama(dtype);
    WeightsOptimizer optimizer(model, kOptions);
    double expected = 0;
    for (const auto& [name, weight] : model.weights()) expected += static_cast<double>(weight.numel()) * 1.25 * 1.25;
    for (int sequence = 0; sequence <= 64; ++sequence) {
      for (const auto& [name, weight] : model.weights()) {
        const at::Tensor gradient = at::full_like(weight, sequence == 0 ? 1.0 : 1.0 / 256).detach();
        at::Tensor& sum = weight.mutable_grad();
        sum = sum.defined() ? sum.add(gradient) : gradient;  // as autograd
      }
      optimizer.accumulate();
    }
    CHECK(optimizer.squared_gradient_norm() == Approx(expected).epsilon(1e-6));
    optimizer.zero_gradients();
    CHECK(optimizer.squared_gradient_norm() == 0);
  }
}
