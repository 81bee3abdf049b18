// SPDX-License-Identifier: MIT
#include "csrc/hopper/combine.h"

#include <limits>
#include <random>
#include <vector>

#include "tests/support/catch.h"

using namespace prulong::kernels;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNaN = std::nanf("");

// Softmax of some scores times values, in double precision.
struct Reference {
  double lse = -std::numeric_limits<double>::infinity(), out = 0;
  void add(double score, double value) {
    const double top = std::max(lse, score);
    const double old = std::exp(lse - top), fresh = std::exp(score - top);
    out = (out * old + value * fresh) / (old + fresh);
    lse = top + std::log(old + fresh);
  }
};

}  // namespace

TEST_CASE("branches combine to gated attention") {
  std::mt19937 random(5);
  for (const double spread : {0.1, 3.0, 40.0}) {
    for (const float gate : {1e-6F, 0.25F, 0.5F, 0.999F}) {
      for (int n = 0; n < 300; ++n) {
        std::normal_distribution<double> score(0, spread), value(0, 1);
        Reference local, complement, global;
        for (int j = 0; j < 20; ++j) {
          const double s = score(random), v = value(random);
          (j % 3 == 0 ? local : complement).add(s, v);
          global.add(s, v);
        }
        const JoinWeights join = join_weights(static_cast<float>(local.lse), static_cast<float>(complement.lse));
        const GatedElement result =
            combine_element(static_cast<float>(local.out), static_cast<float>(complement.out), join.second, gate);
        // The log-sum-exps come in single precision, which bounds what the weights can know.
        const double error = 1e-6 + 2e-7 * std::abs(global.lse);
        REQUIRE(join.lse == Approx(global.lse).epsilon(1e-6).margin(1e-6));
        REQUIRE(result.delta == Approx(global.out - local.out).margin(5 * error));
        REQUIRE(result.out == Approx(local.out + gate * (global.out - local.out)).margin(5 * error));
      }
    }
  }
}

TEST_CASE("a row without complement has delta 0, whatever lies there") {
  const JoinWeights join = join_weights(2.5F, -kInf);
  CHECK(join.lse == 2.5F);
  CHECK(join.second == 0);
  const GatedElement result = combine_element(0.75F, kNaN, join.second, 0.5F);
  CHECK(result.delta == 0);
  CHECK(result.out == 0.75F);
  const JoinWeights other = join_weights(-kInf, 2.5F);
  CHECK(other.lse == 2.5F);
  CHECK(other.second == 1);
  const JoinWeights none = join_weights(-kInf, -kInf);
  CHECK(none.lse == -kInf);
  CHECK(none.second == 0);
}

TEST_CASE("far apart log-sum-exps neither overflow nor lose the larger") {
  CHECK(join_weights(3e4F, -3e4F).lse == 3e4F);
  CHECK(join_weights(3e4F, -3e4F).second == 0);
  CHECK(join_weights(-3e4F, 3e4F).second == 1);
  CHECK(join_weights(1e4F, 1e4F).second == 0.5F);
}

TEST_CASE("NaN is passed on, and a gate outside [0, 1] becomes NaN") {
  for (const float wrong : {kNaN, -0.5F, 1.0001F, kInf}) {
    CHECK(std::isnan(combine_element(1, 2, 0.5F, wrong).out));
    CHECK(std::isnan(combine_element(1, 2, 0, wrong).out));
  }
  for (const auto& [first, second] : std::vector<std::pair<float, float>>{{kNaN, 1}, {1, kNaN}, {-kInf, kNaN}}) {
    const JoinWeights join = join_weights(first, second);
    CHECK(std::isnan(join.lse));
    CHECK(std::isnan(combine_element(1, 2, join.second, 0.5F).out));
  }
}

TEST_CASE("partial results fold in any number") {
  std::mt19937 random(6);
  std::normal_distribution<double> score(0, 10), value(0, 1);
  for (const int pieces : {1, 2, 7, 200}) {
    Reference whole;
    std::vector<Reference> parts(static_cast<size_t>(pieces));
    for (int j = 0; j < 5 * pieces; ++j) {
      const double s = score(random), v = value(random);
      whole.add(s, v);
      parts[static_cast<size_t>(j % pieces)].add(s, v);
    }
    JoinWeights join = {-kInf, 0};
    for (const Reference& part : parts) join = join_weights(join.lse, static_cast<float>(part.lse));
    double out = 0;
    for (const Reference& part : parts) out += std::exp(part.lse - join.lse) * part.out;
    CHECK(join.lse == Approx(whole.lse).epsilon(1e-6));
    CHECK(out == Approx(whole.out).margin(2e-5));
  }
}
