// SPDX-License-Identifier: MIT
#include "trainer/gates.h"

#include <cmath>

#include "common/philox.h"
#include "tests/support/catch.h"
#include "tests/trainer/goldens.h"

using namespace prulong;

TEST_CASE("Gate draws and derivatives match autograd") {
  for (const auto& [log_alpha, u, z, dz] : goldens::kGate) {
    CAPTURE(log_alpha, u);
    const GateDraw draw = draw_gate(log_alpha, u);
    CHECK(draw.z == Approx(z).epsilon(1e-12).margin(1e-15));
    CHECK(draw.dz == Approx(dz).epsilon(1e-9).margin(1e-15));
  }
}

TEST_CASE("The derivative of a draw is its slope") {
  constexpr double kStep = 1e-6;
  for (double a = -6; a <= 6; a += 0.37) {
    for (double u = 0.013; u < 1; u += 0.071) {
      const GateDraw draw = draw_gate(a, u);
      const GateDraw below = draw_gate(a - kStep, u), above = draw_gate(a + kStep, u);
      if (below.dz == 0 || above.dz == 0) continue;  // at or beyond a corner
      CHECK(draw.dz == Approx((above.z - below.z) / (2 * kStep)).epsilon(1e-5));
    }
  }
}

TEST_CASE("A clamped draw is exactly 0 or 1 and has no gradient") {
  CHECK(draw_gate(-10, 0.5).z == 0);
  CHECK(draw_gate(-10, 0.5).dz == 0);
  CHECK(draw_gate(10, 0.5).z == 1);
  CHECK(draw_gate(10, 0.5).dz == 0);
  for (const double a : {-1e308, -800.0, 800.0, 1e308}) {
    for (const double u : {0x1p-53, 0.5, 1 - 0x1p-53}) {
      CHECK(draw_gate(a, u).z == (a > 0 ? 1 : 0));
      CHECK(draw_gate(a, u).dz == 0);
    }
  }
}

TEST_CASE("Clamping probabilities have the method's golden values") {
  struct Row {
    double a, zero, one;
  };
  for (const auto& [a, zero, one] :
       {Row{4.5, .0022, .948}, Row{4, .0037, .917}, Row{2, .0266, .599}, Row{0, .168, .168}, Row{-4, .917, .0037}}) {
    CAPTURE(a);
    CHECK(probability_zero(a) == Approx(zero).margin(5.1e-4));
    CHECK(probability_one(a) == Approx(one).margin(5.1e-4));
  }
  CHECK(probability_zero(4.5) == Approx(.0022).margin(5.1e-5));
  CHECK(probability_zero(4) == Approx(.0037).margin(5.1e-5));
  CHECK(probability_zero(2) == Approx(.0266).margin(5.1e-5));
  CHECK(probability_one(-4) == Approx(.0037).margin(5.1e-5));
  for (double a = -12; a <= 12; a += 0.7) {
    constexpr double kStep = 1e-5;
    CHECK(probability_zero_derivative(a) ==
          Approx((probability_zero(a + kStep) - probability_zero(a - kStep)) / (2 * kStep)).epsilon(1e-5));
  }
  CHECK(probability_zero_derivative(700) < 0);
  CHECK(probability_zero_derivative(-700) < 0);
}

TEST_CASE("Draws have the closed form's frequencies and the golden mean") {
  struct Row {
    double a, mean;
  };
  constexpr int kCount = 200000;
  for (const auto& [a, mean] : {Row{4.5, .985}, Row{4, .977}, Row{2, .857}, Row{0, .5}, Row{-4, .023}}) {
    CAPTURE(a);
    double sum = 0, zeros = 0, ones = 0;
    for (int i = 0; i < kCount; ++i) {
      const double z = draw_gate(a, uniform(11, i, 0, 0, 0)).z;
      sum += z;
      zeros += z == 0;
      ones += z == 1;
    }
    const double error = 5 * std::sqrt(0.25 / kCount);
    CHECK(std::abs(sum / kCount - mean) < error + 5e-4);
    CHECK(std::abs(zeros / kCount - probability_zero(a)) < error);
    CHECK(std::abs(ones / kCount - probability_one(a)) < error);
  }
}

TEST_CASE("Gates start and sample as their seed says") {
  const Gates gates(5, 3, 4.0, 0.01, 42);
  REQUIRE(gates.log_alpha().size() == 15);
  for (const double a : gates.log_alpha()) CHECK(std::abs(a - 4) < 0.06);
  CHECK(gates.log_alpha()[4] == 4.0 + 0.01 * initial_normal(42, 1, 1));
  CHECK(Gates(5, 3, 4.0, 0.01, 42).log_alpha() == gates.log_alpha());
  CHECK(Gates(5, 3, 4.0, 0.01, 43).log_alpha() != gates.log_alpha());

  Gates open(5, 3, 0.0, 1.0, 42);
  const GateSample sample = open.sample(7, 1);
  REQUIRE(sample.z.size() == 15);
  REQUIRE(sample.dz.size() == 15);
  const GateDraw draw = draw_gate(open.log_alpha()[2 * 3 + 1], uniform(42, 7, 1, 2, 1));
  CHECK(sample.z[2 * 3 + 1] == draw.z);
  CHECK(sample.dz[2 * 3 + 1] == draw.dz);
  CHECK(open.sample(7, 1).z == sample.z);
  CHECK(open.sample(7, 0).z != sample.z);
  CHECK(open.sample(8, 1).z != sample.z);
  CHECK_THROWS_AS(Gates(0, 3, 4.0, 0.01, 42), std::invalid_argument);
  CHECK_THROWS_AS(Gates(5, 65536, 4.0, 0.01, 42), std::invalid_argument);
}

TEST_CASE("Gates start from a mask") {
  const std::vector<uint8_t> mask = {1, 0, 0, 1};
  const Gates gates = Gates::from_mask(2, 2, mask, 3.0, 0.0, 1);
  CHECK(gates.log_alpha() == std::vector<double>{3, -3, -3, 3});
  CHECK_THROWS_AS(Gates::from_mask(2, 3, mask, 3.0, 0.0, 1), std::invalid_argument);
}
