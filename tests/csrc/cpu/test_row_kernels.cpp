// SPDX-License-Identifier: MIT
#include "csrc/cpu/row_kernels.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tests/support/catch.h"

using namespace prulong;

namespace {

std::vector<float> random_scores(int64_t count, float scale) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> scores(static_cast<size_t>(count));
  for (float& x : scores) x = normal(generator);
  return scores;
}

}  // namespace

TEST_CASE("running softmax rows match double precision") {
  for (const int64_t columns : {1, 7, 8, 9, 64, 501}) {
    constexpr int64_t kRows = 5;
    std::vector<float> scores = random_scores(kRows * columns, 10);
    scores[0] = -std::numeric_limits<float>::infinity();
    if (columns == 1) scores[0] = 3;
    const std::vector<float> given = scores;
    std::vector<float> maximum(kRows, 2.5F), sum(kRows, 1.5F), shrink(kRows);
    softmax_rows(scores.data(), kRows, columns, false, maximum.data(), sum.data(), shrink.data());
    for (int64_t r = 0; r < kRows; ++r) {
      double largest = 2.5;
      for (int64_t c = 0; c < columns; ++c) largest = std::max<double>(largest, given[r * columns + c]);
      double expected = 1.5 * std::exp(2.5 - largest);
      CHECK(maximum[r] == Approx(largest));
      CHECK(shrink[r] == Approx(std::exp(2.5 - largest)).epsilon(5e-6));
      for (int64_t c = 0; c < columns; ++c) {
        // The difference is rounded to float32, as in the kernel: an error of its own that grows with the score.
        const double p = std::exp(static_cast<double>(given[r * columns + c] - static_cast<float>(largest)));
        expected += p;
        REQUIRE(scores[r * columns + c] == Approx(p).epsilon(5e-7).margin(1e-37));
      }
      CHECK(sum[r] == Approx(expected).epsilon(1e-6));
    }
    if (columns > 1) CHECK(scores[0] == 0);
  }
}

TEST_CASE("first rows ignore what maximum and sum held") {
  std::vector<float> scores = {1, 2, 3};
  float maximum = std::numeric_limits<float>::quiet_NaN(), sum = maximum, shrink = maximum;
  softmax_rows(scores.data(), 1, 3, true, &maximum, &sum, &shrink);
  CHECK(maximum == 3);
  CHECK(sum == Approx(1 + std::exp(-1.0) + std::exp(-2.0)));
}

TEST_CASE("exponentials of any score stay finite and pass on NaN") {
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> scores = {-infinity, -1e30F, -100, -87, 0, 80, 200, infinity, std::nanf("")};
  const float lam = 0;
  exp_rows(scores.data(), 1, static_cast<int64_t>(scores.size()), &lam);
  CHECK(scores[0] == 0);
  CHECK(scores[1] == 0);
  CHECK(scores[2] == 0);
  CHECK(scores[3] == Approx(std::exp(-87.0)));
  CHECK(scores[4] == 1);
  CHECK(scores[5] == Approx(std::exp(80.0)));
  CHECK(std::isfinite(scores[6]));
  CHECK(std::isfinite(scores[7]));
  CHECK(std::isnan(scores[8]));
}

TEST_CASE("score gradients") {
  std::vector<float> p = {1, 2, 3, 4};
  const std::vector<float> dp = {5, 6, 7, 8};
  const std::vector<float> mean = {1, 2};
  score_gradient_rows(p.data(), dp.data(), 2, 2, mean.data());
  CHECK(p == std::vector<float>{4, 10, 15, 24});
}
