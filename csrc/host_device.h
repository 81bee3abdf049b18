// SPDX-License-Identifier: MIT
#pragma once

/// A function that kernels and the host call alike.
#ifdef __CUDACC__
#define PRULONG_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PRULONG_HOST_DEVICE inline
#endif
