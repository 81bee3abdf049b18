// SPDX-License-Identifier: MIT
// Counter-based random numbers: Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace prulong {

/// One block of Philox4x32-10: 128 random bits from a 128-bit counter and a 64-bit key.
inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

/// What a draw is for. Each purpose has its own stream, so that no two uses of one seed share a number.
enum class Stream : uint32_t { kGateNoise = 0, kGateInit = 1, kRandomMask = 2, kSampling = 3 };

/// Two independent numbers strictly inside (0, 1), each with 52 random bits; a pure function of its arguments.
/// @param step, micro_step  in [0, 2^32).
/// @param layer, head  in [0, 2^16).
inline std::array<double, 2> uniform_pair(uint64_t seed, Stream stream, int64_t step, int64_t micro_step, int64_t layer,
                                          int64_t head) {
  const std::array<uint32_t, 4> bits =
      philox4x32({static_cast<uint32_t>(step), static_cast<uint32_t>(micro_step),
                  static_cast<uint32_t>((layer << 16) | head), static_cast<uint32_t>(stream)},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  // 52 bits and a half: the largest value, 1 - 2^-53, is still exact. With 53 bits it would round to 1.
  const auto open_unit = [](uint32_t high, uint32_t low) {
    const uint64_t word = (uint64_t{high} << 32) | low;
    return (static_cast<double>(word >> 12) + 0.5) * 0x1p-52;
  };
  return {open_unit(bits[0], bits[1]), open_unit(bits[2], bits[3])};
}

/// The noise of one gate: strictly inside (0, 1). Recompute, resume and every rank draw the same by construction.
inline double uniform(uint64_t seed, int64_t step, int64_t micro_step, int64_t layer, int64_t head) {
  return uniform_pair(seed, Stream::kGateNoise, step, micro_step, layer, head)[0];
}

/// The score of one head in the `index`-th random mask, in (0, 1).
inline double random_mask_score(uint64_t seed, int64_t index, int64_t layer, int64_t head) {
  return uniform_pair(seed, Stream::kRandomMask, index, 0, layer, head)[0];
}

/// One standard normal number (Box-Muller), for the initial value of one gate.
inline double initial_normal(uint64_t seed, int64_t layer, int64_t head) {
  const auto [u, v] = uniform_pair(seed, Stream::kGateInit, 0, 0, layer, head);
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
}

}  // namespace prulong
