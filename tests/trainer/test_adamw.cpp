// SPDX-License-Identifier: MIT
#include "trainer/adamw.h"

#include <cmath>

#include "tests/support/catch.h"
#include "tests/trainer/goldens.h"

using namespace prulong;

TEST_CASE("AdamW takes the steps of torch.optim.AdamW") {
  for (const auto& row : goldens::kAdamW) {
    CAPTURE(row.weight_decay, row.maximize);
    AdamW optimizer(row.start.size(), {.weight_decay = row.weight_decay, .maximize = row.maximize != 0});
    std::vector<double> values = row.start;
    for (size_t i = 0; i < row.rates.size(); ++i) optimizer.step(values, row.gradients[i], row.rates[i]);
    for (size_t i = 0; i < values.size(); ++i) CHECK(values[i] == Approx(row.end[i]).epsilon(1e-12));
  }
}

TEST_CASE("AdamW goes on from its state bit for bit") {
  const auto& row = goldens::kAdamW.back();
  const AdamWOptions options{.weight_decay = row.weight_decay, .maximize = row.maximize != 0};
  AdamW whole(4, options), first(4, options), second(4, options);
  std::vector<double> expected = row.start, values = row.start;
  for (size_t i = 0; i < 6; ++i) whole.step(expected, row.gradients[i], row.rates[i]);
  for (size_t i = 0; i < 3; ++i) first.step(values, row.gradients[i], row.rates[i]);
  CHECK(first.state().steps == 3);
  second.set_state(first.state());
  for (size_t i = 3; i < 6; ++i) second.step(values, row.gradients[i], row.rates[i]);
  CHECK(values == expected);
  CHECK(second.state() == whole.state());
}

TEST_CASE("AdamW refuses other sizes") {
  AdamW optimizer(2, {});
  std::vector<double> values = {1, 2};
  CHECK_THROWS_AS(optimizer.step(values, {1}, 0.1), std::invalid_argument);
  CHECK_THROWS_AS(optimizer.set_state({1, {0}, {0, 0}}), std::invalid_argument);
}

TEST_CASE("Gradients are clipped by their joint norm") {
  const std::vector<double> a = {3, 0}, b = {0, -4};
  const double norm = std::sqrt(squared_norm(a) + squared_norm(b));
  CHECK(norm == 5);
  CHECK(clip_factor(norm, 1) == Approx(0.2).epsilon(1e-6));
  CHECK(clip_factor(norm, 1) * norm <= 1);
  CHECK(clip_factor(0.5, 1) == 1);
  CHECK(clip_factor(0, 1) == 1);
  CHECK(clip_factor(norm, 0) == 1);
}
