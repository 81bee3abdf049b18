// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstring>

#include "csrc/cpu/isa.h"

namespace prulong {

/// e^x of a vector of floats, to about 1 ulp: 2^n by exponent bits and e^r by its Taylor polynomial, |r| <= ln 2 / 2.
/// Below the smallest normal number: 0. Above 88: e^88.
template <typename Floats>
PRULONG_INLINE Floats exponential(Floats x) {
  using Ints = decltype(x < x);
  constexpr float kLowest = -87.3F, kHighest = 88.0F;
  constexpr float kLog2e = 1.44269504F;
  constexpr float kLn2High = 0.693359375F, kLn2Low = -2.12194440e-4F;  // ln 2 in two parts: n times the first is exact
  constexpr float kRound = 12582912.0F;                                // 1.5 * 2^23: adding it rounds to an integer
  const Ints underflow = x < kLowest;
  x = underflow ? Floats{} + kLowest : x;  // a NaN compares false and stays
  x = x > kHighest ? Floats{} + kHighest : x;
  const Floats shifted = x * kLog2e + kRound;
  const Floats n = shifted - kRound;
  Floats r = x - n * kLn2High;
  r = r - n * kLn2Low;
  Floats p = r * (1.0F / 5040) + (1.0F / 720);
  p = p * r + (1.0F / 120);
  p = p * r + (1.0F / 24);
  p = p * r + (1.0F / 6);
  p = p * r + 0.5F;
  p = p * (r * r) + r + 1.0F;
  Ints bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + 0x3F800000;
  Floats power;
  std::memcpy(&power, &bits, sizeof(power));
  return underflow ? Floats{} : p * power;
}

}  // namespace prulong
