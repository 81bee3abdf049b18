// SPDX-License-Identifier: MIT
#include "trainer/constraint.h"

#include <cmath>

#include "tests/support/catch.h"
#include "tests/trainer/goldens.h"
#include "trainer/adamw.h"

using namespace prulong;

namespace {

GateSample draw_all(const std::vector<double>& log_alpha, const std::vector<double>& u) {
  GateSample sample;
  for (size_t i = 0; i < u.size(); ++i) {
    const GateDraw draw = draw_gate(log_alpha[i], u[i]);
    sample.z.push_back(draw.z);
    sample.dz.push_back(draw.dz);
  }
  return sample;
}

}  // namespace

TEST_CASE("The constraint and its gradients match autograd") {
  for (const auto& row : goldens::kConstraint) {
    CAPTURE(row.sampled, row.target);
    const Sparsity sparsity =
        row.sampled != 0 ? sampled_sparsity(draw_all(row.log_alpha, row.u)) : expected_sparsity(row.log_alpha);
    CHECK(sparsity.value == Approx(row.sparsity).epsilon(1e-12));
    const ConstraintLoss loss = constraint_loss(sparsity, row.target, {row.multipliers[0], row.multipliers[1]}, true);
    CHECK(loss.value == Approx(row.loss).epsilon(1e-12).margin(1e-15));
    CHECK(loss.d_multipliers.linear == Approx(row.d_multipliers[0]).epsilon(1e-12));
    CHECK(loss.d_multipliers.quadratic == Approx(row.d_multipliers[1]).epsilon(1e-12));
    REQUIRE(loss.d_log_alpha.size() == row.d_log_alpha.size());
    for (size_t i = 0; i < row.d_log_alpha.size(); ++i) {
      CHECK(loss.d_log_alpha[i] == Approx(row.d_log_alpha[i]).epsilon(1e-9).margin(1e-15));
    }
  }
}

TEST_CASE("A saturated gate keeps its gradient in the expected sparsity and has none in the sampled one") {
  const std::vector<double> log_alpha = {8.0, -8.0};
  const Sparsity expected = expected_sparsity(log_alpha);
  const Sparsity sampled = sampled_sparsity(draw_all(log_alpha, {0.5, 0.5}));
  for (size_t i = 0; i < 2; ++i) {
    CHECK(expected.derivative[i] < 0);
    CHECK(sampled.derivative[i] == 0);
  }
  CHECK(sampled.value == 0.5);
}

TEST_CASE("Without the linear term its multiplier neither acts nor learns") {
  const Sparsity sparsity = expected_sparsity({1.0, -2.0});
  const ConstraintLoss with = constraint_loss(sparsity, 0.9, {3.0, 2.0}, true);
  const ConstraintLoss without = constraint_loss(sparsity, 0.9, {3.0, 2.0}, false);
  const ConstraintLoss zero = constraint_loss(sparsity, 0.9, {0.0, 2.0}, true);
  CHECK(without.value == zero.value);
  CHECK(without.d_log_alpha == zero.d_log_alpha);
  CHECK(without.d_multipliers.linear == 0);
  CHECK(without.d_multipliers.quadratic == zero.d_multipliers.quadratic);
  CHECK(with.value != without.value);
}

TEST_CASE("The target rises linearly or in ln(1 - t)") {
  const SparsityTarget linear{0.1, 0.7, 0.8, 1000, SparsitySchedule::kLinear};
  CHECK(linear.at(0) == Approx(0.1));
  CHECK(linear.at(400) == Approx(0.4));
  CHECK(linear.at(799) < 0.7);
  CHECK(linear.at(800) == 0.7);
  CHECK(linear.at(999) == 0.7);

  const SparsityTarget logarithmic{0.0, 0.96, 0.5, 10, SparsitySchedule::kLogarithmic};
  CHECK(logarithmic.at(0) == Approx(0.0).margin(1e-15));
  CHECK(logarithmic.at(1) == Approx(1 - std::pow(0.04, 0.2)));
  CHECK(logarithmic.at(4) == Approx(1 - std::pow(0.04, 0.8)));
  CHECK(logarithmic.at(5) == 0.96);

  // ceil: 0.25 of 10 steps is three, so the third step is still below the end.
  const SparsityTarget odd{0.0, 0.3, 0.25, 10, SparsitySchedule::kLinear};
  CHECK(odd.at(2) == Approx(0.2));
  CHECK(odd.at(3) == 0.3);
  CHECK(SparsityTarget{0.0, 0.3, 0.0, 10, SparsitySchedule::kLinear}.at(0) == 0.3);
  CHECK(SparsityTarget{0.0, 1.0, 1.0, 10, SparsitySchedule::kLinear}.at(9) == Approx(0.9));
}

TEST_CASE("Gates with different use are separated at the target sparsity") {
  // A stand-in for the language model: head i costs use[i] (1 - z). Three of ten heads are worth far more than the
  // rest.
  std::vector<double> use(10, 0.002);
  use[2] = use[5] = use[9] = 0.5;
  Gates gates(1, 10, 4.0, 0.01, 3);
  Multipliers multipliers;
  AdamW gate_optimizer(10, {});
  AdamW multiplier_optimizer(2, {.maximize = true});
  const SparsityTarget target{0.0, 0.7, 0.6, 200, SparsitySchedule::kLinear};
  for (int64_t step = 0; step < 200; ++step) {
    const GateSample sample = gates.sample(step, 0);
    const ConstraintLoss loss =
        constraint_loss(expected_sparsity(gates.log_alpha()), target.at(step), multipliers, true);
    std::vector<double> gradient = loss.d_log_alpha;
    for (size_t i = 0; i < gradient.size(); ++i) gradient[i] -= use[i] * sample.dz[i];
    gate_optimizer.step(gates.log_alpha(), gradient, 0.3);
    std::vector<double> values = {multipliers.linear, multipliers.quadratic};
    multiplier_optimizer.step(values, {loss.d_multipliers.linear, loss.d_multipliers.quadratic}, 0.3);
    multipliers = {values[0], values[1]};
  }
  CHECK(expected_sparsity(gates.log_alpha()).value == Approx(0.7).margin(0.05));
  for (size_t i = 0; i < use.size(); ++i) CHECK((gates.log_alpha()[i] > 0) == (use[i] > 0.1));
}
