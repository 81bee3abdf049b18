// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstring>

/// For every function that a CPU kernel calls, lambdas included: only code that is inlined into run_kernel's versions
/// uses their instructions.
#define PRULONG_INLINE __attribute__((always_inline)) inline

namespace prulong {

/// Instruction sets that CPU kernels are compiled for, narrow to wide: what every processor of this architecture has,
/// AVX2 with FMA (x86-64-v3), AVX-512 (x86-64-v4).
enum class Isa { kBaseline, kAvx2, kAvx512 };

/// The widest one that this processor has.
inline Isa widest_isa() {
#ifdef __x86_64__
  static const Isa widest = __builtin_cpu_supports("x86-64-v4")   ? Isa::kAvx512
                            : __builtin_cpu_supports("x86-64-v3") ? Isa::kAvx2
                                                                  : Isa::kBaseline;
  return widest;
#else
  return Isa::kBaseline;
#endif
}

/// A register of kBytes bytes as GCC's vector of T: operators work lane by lane, a scalar operand counts for all lanes.
template <class T, int kBytes>
struct VectorOf {
  using Type __attribute__((vector_size(kBytes))) = T;
};
template <class T, int kBytes>
using Vector = typename VectorOf<T, kBytes>::Type;

namespace detail {
#ifdef __x86_64__
template <class Kernel, class... Arguments>
__attribute__((target("arch=x86-64-v4"))) void run_avx512(const Arguments&... arguments) {
  Kernel::template run<64>(arguments...);
}
template <class Kernel, class... Arguments>
__attribute__((target("arch=x86-64-v3"))) void run_avx2(const Arguments&... arguments) {
  Kernel::template run<32>(arguments...);
}
#endif
template <class Kernel, class... Arguments>
void run_baseline(const Arguments&... arguments) {
  Kernel::template run<16>(arguments...);
}
}  // namespace detail

/// Calls Kernel::run<bytes of a register>(arguments...) compiled for an instruction set that this processor has. A
/// kernel is a struct whose static member template `run<kBytes>` is PRULONG_INLINE, so one source serves all sets:
///     struct Scale {
///       template <int kBytes>
///       PRULONG_INLINE static void run(float* x, int64_t n) { using Floats = Vector<float, kBytes>; ... }
///     };
///     run_kernel<Scale>(widest_isa(), x, n);
/// (One build serves every processor. Chosen by a branch, not by the loader: that would run before sanitizers have
/// begun.) Files with kernels are compiled with `kernel_options` (csrc/CMakeLists.txt).
template <class Kernel, class... Arguments>
void run_kernel(Isa isa, const Arguments&... arguments) {
#ifdef __x86_64__
  if (isa == Isa::kAvx512) return detail::run_avx512<Kernel>(arguments...);
  if (isa == Isa::kAvx2) return detail::run_avx2<Kernel>(arguments...);
#endif
  static_cast<void>(isa);
  detail::run_baseline<Kernel>(arguments...);
}

/// One register's lanes from and to memory, however aligned.
template <class V, class T>
PRULONG_INLINE V load_lanes(const T* from) {
  V lanes;
  std::memcpy(&lanes, from, sizeof(V));
  return lanes;
}
template <class V, class T>
PRULONG_INLINE void store_lanes(T* to, V lanes) {
  std::memcpy(to, &lanes, sizeof(V));
}

/// sum + a * b of vectors of floats or doubles, rounded once where the instruction set has an instruction for it. Left
/// to the compiler, some copies of a loop would get it and others not.
template <typename V>
PRULONG_INLINE V multiply_add(V sum, V a, V b) {
#ifdef __x86_64__
  if constexpr (sizeof(V) > 16) {
    if constexpr (sizeof(a[0]) == sizeof(float)) {
      asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    } else {
      asm("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    }
    return sum;
  }
#endif
  return sum + a * b;
}

}  // namespace prulong
