// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/elementwise/element_type.h"
#include "csrc/hopper/device/platform.h"

#if PRULONG_ON_DEVICE
#include "csrc/hopper/device/wgmma_ptx.h"
#else
#include <array>
#include <cstddef>
#include <vector>
#endif

namespace prulong::kernels::device {

/// Asynchronous matrix products of a warpgroup: D [64, N] (float, in registers) = A [64, 16] B [16, N] (+ D), 16-bit A
/// and B. All 128 threads call. Order of calls:
///   begin_matrices(fragments);      after any ordinary access to a fragment that the products read or write
///   multiply(...); multiply(...);   issued back to back into the same or other accumulators
///   commit_matrices();              ends the group
///   wait_matrices<n>(fragments);    at most n latest groups are still running; from here on the given fragments, all
///   of
///                                   older groups, may be touched again, and shared memory that those read be reused
///   settle(value);                  between two waits: what `value` depends on is computed before the second one

#if !PRULONG_ON_DEVICE
namespace emulation {
/// Follows a fragment from begin to wait: an ordinary access ends what begin has begun, and is an error while a product
/// may be running. The emulation holds on to the address of a fragment in flight.
class FragmentState {
 public:
  enum class Phase { kIdle, kBegun, kInFlight };

  FragmentState() = default;
  /// A copy is an access of the original and starts idle.
  FragmentState(const FragmentState& other) { other.check_access(); }
  FragmentState& operator=(const FragmentState& other) {
    other.check_access();
    check_access();
    return *this;
  }
  ~FragmentState() {
    if (phase == Phase::kInFlight) abandon();
  }
  void check_access() const {
    if (phase == Phase::kInFlight) refuse_access();
    phase = Phase::kIdle;
  }

  mutable Phase phase = Phase::kIdle;
  int64_t group = -1;       // the latest group of products that uses it, as its thread counts them
  Site site = {};           // of the latest product that uses it
  std::vector<float> sums;  // an accumulator's values while it is in flight: what the kernel sees are NaNs

 private:
  void refuse_access() const;
  void abandon() const noexcept;
};
}  // namespace emulation
#endif

/// A thread's share of D [64, kColumns]: element i lies in row 16 (warp mod 4) + lane / 4 + 8 ((i / 2) mod 2) and
/// column 8 (i / 4) + 2 (lane mod 4) + i mod 2. Two neighbouring lanes' quads hold one row: reduce a row over lanes ^1
/// and ^2.
template <int kColumns>
struct Accumulator {
  static constexpr int kSize = kColumns / 2;
#if PRULONG_ON_DEVICE
  PRULONG_DEVICE float& operator[](int i) { return values[i]; }
  PRULONG_DEVICE const float& operator[](int i) const { return values[i]; }
#else
  float& operator[](int i) {
    state.check_access();
    return values[i];
  }
  const float& operator[](int i) const {
    state.check_access();
    return values[i];
  }
  emulation::FragmentState state;
#endif
  float values[kSize];
};

/// A thread's share of A [64, 16 kSlices], 16-bit: word (s, i) holds the two elements of row 16 (warp mod 4) + lane / 4
/// + 8 (i mod 2) and columns 16 s + 8 (i / 2) + 2 (lane mod 4) and the next. So the accumulator's elements 8 s + 2 i
/// and 8 s + 2 i + 1, packed, are word (s, i).
template <int kSlices>
struct Operand {
#if PRULONG_ON_DEVICE
  PRULONG_DEVICE uint32_t& word(int slice, int i) { return words[slice][i]; }
#else
  uint32_t& word(int slice, int i) {
    state.check_access();
    return words[slice][i];
  }
  emulation::FragmentState state;
#endif
  uint32_t words[kSlices][4];
};

/// How an operand lies in shared memory. kK: rows of A (columns of B) are rows of 128 bytes; kMN: its k are.
enum class Major { kK, kMN };

/// A matrix operand in shared memory: panels [rows][64 elements] in the 128-byte swizzle, aligned to 1,024 bytes.
struct Descriptor {
  uint32_t low, high;
  /// Moved by a multiple of 16 bytes.
  PRULONG_HOST_DEVICE Descriptor advanced(int bytes) const { return {low + (static_cast<uint32_t>(bytes) >> 4), high}; }
};

/// Operand whose k runs along the 128-byte rows: 16 k further are 32 bytes, 64 k further are the next panel. 64 rows of
/// A or N rows of B, 1,024 bytes each eight.
PRULONG_HOST_DEVICE Descriptor describe_k_major(Shared start) {
  return {((start & 0x3ffffu) >> 4) | 1u << 16, (1024u >> 4) | 1u << 30};
}
/// Operand whose rows are k: 16 k further are 2,048 bytes; the next 64 of M or N lie `panel_bytes` further.
PRULONG_HOST_DEVICE Descriptor describe_mn_major(Shared start, int panel_bytes) {
  return {((start & 0x3ffffu) >> 4) | (static_cast<uint32_t>(panel_bytes) >> 4) << 16, (1024u >> 4) | 1u << 30};
}

#if PRULONG_ON_DEVICE

namespace detail {
template <int kColumns>
PRULONG_DEVICE void pin(Accumulator<kColumns>& fragment) {
  PRULONG_UNROLL
  for (int i = 0; i < Accumulator<kColumns>::kSize; ++i) asm volatile("" : "+f"(fragment.values[i])::"memory");
}
template <int kSlices>
PRULONG_DEVICE void pin(Operand<kSlices>& fragment) {
  PRULONG_UNROLL
  for (int s = 0; s < kSlices; ++s) {
    PRULONG_UNROLL
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(fragment.words[s][i])::"memory");
  }
}
PRULONG_DEVICE uint64_t bits(Descriptor d) { return static_cast<uint64_t>(d.high) << 32 | d.low; }
}  // namespace detail

template <class... Fragments>
PRULONG_DEVICE void begin_matrices(Fragments&... fragments) {
  (detail::pin(fragments), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
PRULONG_DEVICE void commit_matrices() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending, class... Fragments>
PRULONG_DEVICE void wait_matrices(Fragments&... fragments) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (detail::pin(fragments), ...);
}

/// ptxas moves a wait before all arithmetic that needs none of its products, but not past a branch: here is one on the
/// bits of `value`, which seldom are all ones; if they are, nothing but a moment is lost.
PRULONG_DEVICE void settle(float value) {
  asm volatile(
      "{\n .reg .pred p;\n setp.eq.u32 p, %0, 0xffffffff;\n @p nanosleep.u32 20;\n}\n" ::"r"(__float_as_uint(value))
      : "memory");
}

/// d = a b, or d += a b if `accumulate`; A and B in shared memory.
template <ElementType kType, Major kMajorA, Major kMajorB, int kColumns>
PRULONG_DEVICE void multiply(Accumulator<kColumns>& d, Descriptor a, Descriptor b, bool accumulate) {
  ptx::Wgmma<kType, kColumns>::template shared<kMajorA == Major::kMN, kMajorB == Major::kMN>(
      d.values, detail::bits(a), detail::bits(b), accumulate);
}
/// The same with slice `slice` of A in registers.
template <ElementType kType, Major kMajorB, int kColumns, int kSlices>
PRULONG_DEVICE void multiply(Accumulator<kColumns>& d, Operand<kSlices>& a, int slice, Descriptor b, bool accumulate) {
  ptx::Wgmma<kType, kColumns>::template registers<kMajorB == Major::kMN>(d.values, a.words[slice], detail::bits(b),
                                                                         accumulate);
}

#else

namespace emulation {
/// A fragment as the emulation sees it.
struct FragmentView {
  FragmentState* state;
  float* values;  // of an accumulator, else null
  size_t size;    // its number of values
};
template <int kColumns>
FragmentView view(Accumulator<kColumns>& d) {
  return {&d.state, d.values, Accumulator<kColumns>::kSize};
}
template <int kSlices>
FragmentView view(Operand<kSlices>& a) {
  return {&a.state, nullptr, 0};
}
void begin_matrices(const FragmentView* fragments, size_t count);
void wait_matrices(int pending, const FragmentView* fragments, size_t count);
void multiply(ElementType type, int columns, FragmentView d, Descriptor a, Major major_a, Descriptor b, Major major_b,
              bool accumulate, Site site);
void multiply(ElementType type, int columns, FragmentView d, FragmentView a, const uint32_t words[4], Descriptor b,
              Major major_b, bool accumulate, Site site);
}  // namespace emulation

template <class... Fragments>
void begin_matrices(Fragments&... fragments) {
  const std::array<emulation::FragmentView, sizeof...(Fragments)> views = {emulation::view(fragments)...};
  emulation::begin_matrices(views.data(), views.size());
}
void commit_matrices(PRULONG_SITE_ONLY);
inline void settle(float) {}
template <int kPending, class... Fragments>
void wait_matrices(Fragments&... fragments) {
  const std::array<emulation::FragmentView, sizeof...(Fragments)> views = {emulation::view(fragments)...};
  emulation::wait_matrices(kPending, views.data(), views.size());
}
template <ElementType kType, Major kMajorA, Major kMajorB, int kColumns>
void multiply(Accumulator<kColumns>& d, Descriptor a, Descriptor b, bool accumulate PRULONG_SITE) {
  emulation::multiply(kType, kColumns, emulation::view(d), a, kMajorA, b, kMajorB, accumulate, site);
}
template <ElementType kType, Major kMajorB, int kColumns, int kSlices>
void multiply(Accumulator<kColumns>& d, Operand<kSlices>& a, int slice, Descriptor b, bool accumulate PRULONG_SITE) {
  emulation::multiply(kType, kColumns, emulation::view(d), emulation::view(a), a.words[slice], b, kMajorB, accumulate,
                      site);
}

#endif

}  // namespace prulong::kernels::device
