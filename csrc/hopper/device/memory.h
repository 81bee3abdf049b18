// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/device/platform.h"

#if PRULONG_ON_DEVICE
#include <cuda_runtime.h>
#else
#include <cstddef>
#endif

namespace prulong::kernels::device {

/// 16 bytes.
struct alignas(16) Word4 {
  uint32_t x, y, z, w;
};
/// Neighbouring floats.
struct alignas(8) Float2 {
  float x, y;
};
struct alignas(16) Float4 {
  float x, y, z, w;
};

// --- Shared memory, addresses aligned to the size of what is moved. T: a trivially copyable type of 4, 8 or 16 bytes.
template <class T>
PRULONG_DEVICE T load_shared(Shared address PRULONG_SITE);
template <class T>
PRULONG_DEVICE void store_shared(Shared address, T value PRULONG_SITE);

/// stmatrix: four 8x8 matrices of 16-bit elements. Lane l gives in `row` the address of row (l mod 8) of matrix (l /
/// 8), 16 bytes, aligned to 16; word i of lane l holds elements (l / 4, 2 (l mod 4)) and the next of matrix i. All 32
/// lanes.
PRULONG_DEVICE void store_matrices(Shared row, Word4 words PRULONG_SITE);
/// The same with each matrix transposed: word i holds elements (2 (l mod 4), l / 4) and (2 (l mod 4) + 1, l / 4).
PRULONG_DEVICE void store_matrices_transposed(Shared row, Word4 words PRULONG_SITE);
/// ldmatrix, the inverse of store_matrices and of store_matrices_transposed.
PRULONG_DEVICE Word4 load_matrices(Shared row PRULONG_SITE);
PRULONG_DEVICE Word4 load_matrices_transposed(Shared row PRULONG_SITE);

// --- Global memory.
template <class T>
PRULONG_DEVICE T load_global(const T* address PRULONG_SITE);
template <class T>
PRULONG_DEVICE void store_global(T* address, T value PRULONG_SITE);
/// Adds and returns what was there.
PRULONG_DEVICE int fetch_add(int* address, int value PRULONG_SITE);
/// The same, after the calling thread's earlier writes, those it knows of by barriers included; later reads come after.
PRULONG_DEVICE int fetch_add_ordered(int* address, int value PRULONG_SITE);
/// Semaphores between CTAs: a read that later reads of the CTA are ordered after, an increment that comes after the
/// calling thread's earlier writes.
PRULONG_DEVICE int load_acquire(const int* address PRULONG_SITE);
PRULONG_DEVICE void add_release(int* address, int value PRULONG_SITE);

#if PRULONG_ON_DEVICE
template <class T>
PRULONG_DEVICE T load_shared(Shared address) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  union {
    T value;
    uint32_t words[sizeof(T) / 4];
  } u;
  if constexpr (sizeof(T) == 4) {
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(u.words[0]) : "r"(address) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(u.words[0]), "=r"(u.words[1]) : "r"(address) : "memory");
  } else {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(u.words[0]), "=r"(u.words[1]), "=r"(u.words[2]), "=r"(u.words[3])
                 : "r"(address)
                 : "memory");
  }
  return u.value;
}

template <class T>
PRULONG_DEVICE void store_shared(Shared address, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  union {
    T value;
    uint32_t words[sizeof(T) / 4];
  } u = {value};
  if constexpr (sizeof(T) == 4) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(u.words[0]) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(u.words[0]), "r"(u.words[1]) : "memory");
  } else {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(u.words[0]), "r"(u.words[1]),
                 "r"(u.words[2]), "r"(u.words[3])
                 : "memory");
  }
}

PRULONG_DEVICE void store_matrices(Shared row, Word4 words) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(words.x),
               "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}
PRULONG_DEVICE void store_matrices_transposed(Shared row, Word4 words) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(words.x),
               "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}
PRULONG_DEVICE Word4 load_matrices(Shared row) {
  Word4 words;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(row)
               : "memory");
  return words;
}
PRULONG_DEVICE Word4 load_matrices_transposed(Shared row) {
  Word4 words;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(row)
               : "memory");
  return words;
}

template <class T>
PRULONG_DEVICE T load_global(const T* address) {
  return *address;
}
template <class T>
PRULONG_DEVICE void store_global(T* address, T value) {
  *address = value;
}
PRULONG_DEVICE int fetch_add(int* address, int value) { return atomicAdd(address, value); }
PRULONG_DEVICE int fetch_add_ordered(int* address, int value) {
  int before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;" : "=r"(before) : "l"(address), "r"(value) : "memory");
  return before;
}
PRULONG_DEVICE int load_acquire(const int* address) {
  int value;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
PRULONG_DEVICE void add_release(int* address, int value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
#else
namespace emulation {
void read_shared(void* to, Shared from, size_t bytes, Site site);
void write_shared(Shared to, const void* from, size_t bytes, Site site);
void read_global(void* to, const void* from, size_t bytes, Site site);
void write_global(void* to, const void* from, size_t bytes, Site site);
}  // namespace emulation

template <class T>
T load_shared(Shared address, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  T value;
  emulation::read_shared(&value, address, sizeof(T), site);
  return value;
}
template <class T>
void store_shared(Shared address, T value, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  emulation::write_shared(address, &value, sizeof(T), site);
}
template <class T>
T load_global(const T* address, Site site) {
  T value;
  emulation::read_global(&value, address, sizeof(T), site);
  return value;
}
template <class T>
void store_global(T* address, T value, Site site) {
  emulation::write_global(address, &value, sizeof(T), site);
}
#endif

}  // namespace prulong::kernels::device
