// SPDX-License-Identifier: MIT
#include "common/philox.h"

#include <set>

#include "tests/support/catch.h"
#include "tests/trainer/goldens.h"

using namespace prulong;

TEST_CASE("Philox4x32-10 gives the published blocks") {
  using Block = std::array<uint32_t, 4>;
  constexpr uint32_t kOnes = 0xffffffff;
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}) ==
        Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
  for (const auto& [counter, key, block] : goldens::kPhilox) {
    const Block got = philox4x32({counter[0], counter[1], counter[2], counter[3]}, {key[0], key[1]});
    CHECK(std::vector<uint32_t>(got.begin(), got.end()) == block);
  }
}

TEST_CASE("Noise depends on every part of its key") {
  for (const auto& row : goldens::kUniform) {
    CHECK(uniform(row.seed, row.step, row.micro_step, row.layer, row.head) == row.u);
  }
  std::set<double> seen;
  for (uint64_t seed = 0; seed < 3; ++seed)
    for (int64_t step = 0; step < 4; ++step)
      for (int64_t micro = 0; micro < 4; ++micro)
        for (int64_t layer = 0; layer < 4; ++layer)
          for (int64_t head = 0; head < 4; ++head) seen.insert(uniform(seed, step, micro, layer, head));
  CHECK(seen.size() == 3 * 4 * 4 * 4 * 4);
  CHECK(uniform_pair(1, Stream::kGateNoise, 0, 0, 0, 0)[0] != uniform_pair(1, Stream::kGateInit, 0, 0, 0, 0)[0]);
  CHECK(random_mask_score(1, 0, 0, 0) != uniform(1, 0, 0, 0, 0));
}

TEST_CASE("Noise is uniform and the initial values are normal") {
  constexpr int kCount = 200000;
  double sum = 0, sum2 = 0, normal_sum = 0, normal_sum2 = 0, normal_sum4 = 0;
  for (int i = 0; i < kCount; ++i) {
    const double u = uniform(5, i, 0, 1, 2);
    REQUIRE((u > 0 && u < 1));
    sum += u;
    sum2 += u * u;
    const double x = initial_normal(5, i % 60000, i / 60000);
    normal_sum += x;
    normal_sum2 += x * x;
    normal_sum4 += x * x * x * x;
  }
  // Five standard errors of each mean.
  CHECK(std::abs(sum / kCount - 1.0 / 2) < 5 * std::sqrt(1.0 / 12 / kCount));
  CHECK(std::abs(sum2 / kCount - 1.0 / 3) < 5 * std::sqrt(4.0 / 45 / kCount));
  CHECK(std::abs(normal_sum / kCount) < 5 * std::sqrt(1.0 / kCount));
  CHECK(std::abs(normal_sum2 / kCount - 1) < 5 * std::sqrt(2.0 / kCount));
  CHECK(std::abs(normal_sum4 / kCount - 3) < 5 * std::sqrt(96.0 / kCount));
}
