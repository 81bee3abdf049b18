// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/kernels/device/platform.h"
#include "csrc/kernels/element_type.h"

#if PRULONG_ON_DEVICE
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include <cmath>
#endif

namespace prulong::kernels::device {

/// 2^x to 2 units in the last place or so; 2^-inf is 0.
PRULONG_DEVICE float exp2_fast(float x);
/// The same for x < 127 by a polynomial, 5e-6 relative, in the pipe of additions; 0 for x <= -127.
PRULONG_DEVICE float exp2_polynomial(float x);
/// log2(x) for x > 0 to about 1e-6.
PRULONG_DEVICE float log2_fast(float x);
/// x * y + z, rounded once.
PRULONG_DEVICE float fused(float x, float y, float z);
PRULONG_DEVICE float largest(float x, float y);

/// Two elements in one word, `low` first, rounded to nearest even.
template <ElementType kType>
PRULONG_DEVICE uint32_t pack(float low, float high);
template <ElementType kType>
PRULONG_DEVICE float unpack_low(uint32_t word);
template <ElementType kType>
PRULONG_DEVICE float unpack_high(uint32_t word);

#if PRULONG_ON_DEVICE
PRULONG_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
PRULONG_DEVICE float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
PRULONG_DEVICE float fused(float x, float y, float z) { return __fmaf_rn(x, y, z); }
PRULONG_DEVICE float largest(float x, float y) { return fmaxf(x, y); }

template <ElementType kType>
PRULONG_DEVICE uint32_t pack(float low, float high) {
  uint32_t word;
  if constexpr (kType == ElementType::kBFloat16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}
template <ElementType kType>
PRULONG_DEVICE float unpack_low(uint32_t word) {
  if constexpr (kType == ElementType::kBFloat16) return __uint_as_float(word << 16);
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffffu)));
}
template <ElementType kType>
PRULONG_DEVICE float unpack_high(uint32_t word) {
  if constexpr (kType == ElementType::kBFloat16) return __uint_as_float(word & 0xffff0000u);
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
}
#else
namespace emulation {
/// The bits of x in 16-bit form, rounded to nearest even, and back.
uint16_t round_element(ElementType type, float x);
float widen_element(ElementType type, uint16_t bits);
}  // namespace emulation

inline float exp2_fast(float x) { return std::exp2(x); }
inline float exp2_polynomial(float x);
inline float log2_fast(float x) { return std::log2(x); }
inline float fused(float x, float y, float z) { return std::fma(x, y, z); }
inline float largest(float x, float y) { return std::fmax(x, y); }

template <ElementType kType>
uint32_t pack(float low, float high) {
  return emulation::round_element(kType, low) | uint32_t{emulation::round_element(kType, high)} << 16;
}
template <ElementType kType>
float unpack_low(uint32_t word) {
  return emulation::widen_element(kType, static_cast<uint16_t>(word));
}
template <ElementType kType>
float unpack_high(uint32_t word) {
  return emulation::widen_element(kType, static_cast<uint16_t>(word >> 16));
}
#endif

PRULONG_DEVICE float exp2_polynomial(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer in its low bits
  x = largest(x, -127.0f);
  const float shifted = x + kRound, f = x - (shifted - kRound);
  float y = fused(0.009582852f, f, 0.055906426f);
  y = fused(y, f, 0.240240986f);
  y = fused(y, f, 0.693124193f);
  y = fused(y, f, 1.0f);
  uint32_t power, bits;
  __builtin_memcpy(&power, &shifted, sizeof(power));
  __builtin_memcpy(&bits, &y, sizeof(bits));
  bits += power << 23;  // at -127, f is 0 and y is 1, whose exponent becomes 0
  __builtin_memcpy(&y, &bits, sizeof(y));
  return y;
}

}  // namespace prulong::kernels::device
