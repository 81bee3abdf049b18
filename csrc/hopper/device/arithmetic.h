// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/elementwise/element_type.h"
#include "csrc/hopper/device/platform.h"

#if PRULONG_ON_DEVICE
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include <cmath>
#endif

namespace prulong::kernels::device {

/// 2^x to 2 units in the last place or so; 2^-inf is 0.
PRULONG_DEVICE float exp2_fast(float x);
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

}  // namespace prulong::kernels::device
