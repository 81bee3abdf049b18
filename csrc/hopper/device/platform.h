// SPDX-License-Identifier: MIT
#pragma once

/// What a kernel source needs to be compiled twice: by nvcc for sm_90a, and by the host compiler for the emulation that
/// tests run (tests/emulation/emulator.h). Every function of this folder has one declaration and two definitions: PTX
/// in its header, and the emulation's in tests/emulation/. Kernels use these functions and nothing else of CUDA.

#include <cstdint>

#include "csrc/host_device.h"

#ifdef __CUDACC__
#define PRULONG_ON_DEVICE 1
#define PRULONG_DEVICE __device__ __forceinline__
#define PRULONG_SITE
#define PRULONG_SITE_ONLY
#ifdef __CUDA_ARCH__
#define PRULONG_UNROLL _Pragma("unroll")
#define PRULONG_NO_UNROLL _Pragma("unroll 1")
#else  // nvcc's pass for the host, whose compiler does not know them
#define PRULONG_UNROLL
#define PRULONG_NO_UNROLL
#endif
#else
#define PRULONG_ON_DEVICE 0
#define PRULONG_DEVICE
/// Last parameter of what the emulation reports about: the line of the kernel that called.
#define PRULONG_SITE , ::prulong::kernels::device::Site site = ::prulong::kernels::device::Site::here()
#define PRULONG_SITE_ONLY ::prulong::kernels::device::Site site = ::prulong::kernels::device::Site::here()
#define PRULONG_UNROLL
#define PRULONG_NO_UNROLL
#endif

namespace prulong::kernels::device {

/// Address in the CTA's shared memory, in bytes.
using Shared = uint32_t;

#if !PRULONG_ON_DEVICE
/// A line of source.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};
#endif

}  // namespace prulong::kernels::device
