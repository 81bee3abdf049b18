// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/device/platform.h"

namespace prulong::kernels::device {

constexpr int kWarpThreads = 32;
constexpr int kWarpgroupThreads = 128;
/// Dynamic shared memory that one CTA may ask for on sm_90, in bytes.
constexpr int kMaxSharedBytes = 232448;

/// Index of the thread in its one-dimensional CTA.
PRULONG_DEVICE int thread_index();
/// Index of the CTA in its one-dimensional grid, and the number of CTAs.
PRULONG_DEVICE int block_index();
PRULONG_DEVICE int block_count();
/// Start of the CTA's dynamic shared memory; a multiple of 1,024.
PRULONG_DEVICE Shared shared_memory();

/// Index of the warp in its CTA.
PRULONG_DEVICE int warp_index();
PRULONG_DEVICE int lane_index();
/// Index of the warpgroup (four warps) in its CTA, in a form that the compiler knows to be the same for the whole warp.
/// All 32 lanes call: it is a shuffle.
PRULONG_DEVICE int warpgroup_index(PRULONG_SITE_ONLY);

/// True in exactly one lane of the calling warp, always the same one. All 32 lanes call.
PRULONG_DEVICE bool elect_one(PRULONG_SITE_ONLY);

/// The value that lane (own lane ^ mask) passed. All 32 lanes call.
PRULONG_DEVICE float shuffle_xor(float value, int mask PRULONG_SITE);
/// The value that `lane` passed. All 32 lanes call.
PRULONG_DEVICE int shuffle(int value, int lane PRULONG_SITE);
/// Does any lane of the warp pass true? All 32 lanes call.
PRULONG_DEVICE bool any(bool value PRULONG_SITE);

/// Register budget of the calling warpgroup's threads from here on: 24 to 240, a multiple of 8. Every warp of the
/// warpgroup calls; what some warpgroups take others must have given, out of the registers that the CTA was launched
/// with: 65,536 / threads each, rounded down to a multiple of 8.
template <int kRegisters>
PRULONG_DEVICE void increase_registers(PRULONG_SITE_ONLY);
template <int kRegisters>
PRULONG_DEVICE void decrease_registers(PRULONG_SITE_ONLY);

#if PRULONG_ON_DEVICE
extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];

PRULONG_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
PRULONG_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
PRULONG_DEVICE int block_count() { return static_cast<int>(gridDim.x); }
PRULONG_DEVICE Shared shared_memory() { return static_cast<Shared>(__cvta_generic_to_shared(dynamic_shared_memory)); }
PRULONG_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / kWarpThreads; }
PRULONG_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarpThreads; }
PRULONG_DEVICE int warpgroup_index() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroupThreads, 0);
}

PRULONG_DEVICE bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n .reg .pred p;\n"
      " elect.sync _|p, 0xffffffff;\n"
      " selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(elected));
  return elected != 0;
}

PRULONG_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
PRULONG_DEVICE int shuffle(int value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
PRULONG_DEVICE bool any(bool value) { return __any_sync(0xffffffffu, value) != 0; }

template <int kRegisters>
PRULONG_DEVICE void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
PRULONG_DEVICE void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
#else
namespace emulation {
void set_registers(int registers, bool increase, Site site);
}
template <int kRegisters>
void increase_registers(Site site) {
  emulation::set_registers(kRegisters, true, site);
}
template <int kRegisters>
void decrease_registers(Site site) {
  emulation::set_registers(kRegisters, false, site);
}
#endif

}  // namespace prulong::kernels::device
