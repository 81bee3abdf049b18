// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/elementwise/element_type.h"
#include "csrc/hopper/device/platform.h"

// The texts of wgmma.mma_async m64nNk16 for the shapes that the kernels use. Operands of an instruction are numbered,
// so each N needs its own list: first the accumulator's registers, then A, B, the accumulate flag and the transpose
// bits.

#define PRULONG_D16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define PRULONG_D32 PRULONG_D16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PRULONG_D48 PRULONG_D32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define PRULONG_D64 PRULONG_D48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define PRULONG_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PRULONG_F16(d, i) PRULONG_F4(d, i), PRULONG_F4(d, i + 4), PRULONG_F4(d, i + 8), PRULONG_F4(d, i + 12)
#define PRULONG_F32(d, i) PRULONG_F16(d, i), PRULONG_F16(d, i + 16)

// SS form; a..e: numbers of A's and B's descriptors, the flag and the two transpose bits.
#define PRULONG_WGMMA_SHARED(type, n, d, a, b, flag, ta, tb, ...)                                         \
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #flag                                               \
               ", 0;\n"                                                                                   \
               " wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" d "}, %" #a ", %" #b \
               ", p, 1, 1, %" #ta ", %" #tb ";\n}\n"                                                      \
               : __VA_ARGS__                                                                              \
               : "l"(desc_a), "l"(desc_b), "r"(static_cast<int>(accumulate)), "n"(kTransposeA ? 1 : 0),   \
                 "n"(kTransposeB ? 1 : 0)                                                                 \
               : "memory")

// RS form; a..d: numbers of A's four words.
#define PRULONG_WGMMA_REGISTERS(type, n, list, a, b, c, d, desc, flag, tb, ...)                                        \
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #flag                                                            \
               ", 0;\n"                                                                                                \
               " wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" list "}, {%" #a ", %" #b ", %" #c \
               ", %" #d "}, %" #desc ", p, 1, 1, %" #tb ";\n}\n"                                                       \
               : __VA_ARGS__                                                                                           \
               : "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "l"(desc_b),                              \
                 "r"(static_cast<int>(accumulate)), "n"(kTransposeB ? 1 : 0)                                           \
               : "memory")

#define PRULONG_WGMMA(element, type, n, list, s0, s1, s2, s3, s4, s5, s6, ...)                                \
  template <>                                                                                                 \
  struct Wgmma<element, n> {                                                                                  \
    template <bool kTransposeA, bool kTransposeB>                                                             \
    static PRULONG_DEVICE void shared(float* d, uint64_t desc_a, uint64_t desc_b, bool accumulate) {          \
      PRULONG_WGMMA_SHARED(type, n, list, s0, s1, s2, s3, s4, __VA_ARGS__);                                   \
    }                                                                                                         \
    template <bool kTransposeB>                                                                               \
    static PRULONG_DEVICE void registers(float* d, const uint32_t* words, uint64_t desc_b, bool accumulate) { \
      PRULONG_WGMMA_REGISTERS(type, n, list, s0, s1, s2, s3, s4, s5, s6, __VA_ARGS__);                        \
    }                                                                                                         \
  }

namespace prulong::kernels::device::ptx {

template <ElementType kType, int kColumns>
struct Wgmma;

PRULONG_WGMMA(ElementType::kBFloat16, "bf16", 32, PRULONG_D16, 16, 17, 18, 19, 20, 21, 22, PRULONG_F16(d, 0));
PRULONG_WGMMA(ElementType::kFloat16, "f16", 32, PRULONG_D16, 16, 17, 18, 19, 20, 21, 22, PRULONG_F16(d, 0));
PRULONG_WGMMA(ElementType::kBFloat16, "bf16", 64, PRULONG_D32, 32, 33, 34, 35, 36, 37, 38, PRULONG_F32(d, 0));
PRULONG_WGMMA(ElementType::kFloat16, "f16", 64, PRULONG_D32, 32, 33, 34, 35, 36, 37, 38, PRULONG_F32(d, 0));
PRULONG_WGMMA(ElementType::kBFloat16, "bf16", 96, PRULONG_D48, 48, 49, 50, 51, 52, 53, 54, PRULONG_F32(d, 0),
              PRULONG_F16(d, 32));
PRULONG_WGMMA(ElementType::kFloat16, "f16", 96, PRULONG_D48, 48, 49, 50, 51, 52, 53, 54, PRULONG_F32(d, 0),
              PRULONG_F16(d, 32));
PRULONG_WGMMA(ElementType::kBFloat16, "bf16", 128, PRULONG_D64, 64, 65, 66, 67, 68, 69, 70, PRULONG_F32(d, 0),
              PRULONG_F32(d, 32));
PRULONG_WGMMA(ElementType::kFloat16, "f16", 128, PRULONG_D64, 64, 65, 66, 67, 68, 69, 70, PRULONG_F32(d, 0),
              PRULONG_F32(d, 32));

}  // namespace prulong::kernels::device::ptx

#undef PRULONG_D16
#undef PRULONG_D32
#undef PRULONG_D48
#undef PRULONG_D64
#undef PRULONG_F4
#undef PRULONG_F16
#undef PRULONG_F32
#undef PRULONG_WGMMA_SHARED
#undef PRULONG_WGMMA_REGISTERS
#undef PRULONG_WGMMA
