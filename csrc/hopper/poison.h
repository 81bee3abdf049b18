// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/device/memory.h"
#include "csrc/hopper/device/thread.h"

namespace prulong::kernels {

/// Fills `bytes`, a multiple of 4, with NaN of float, bfloat16 or float16. By all CTAs, of kThreads threads.
template <int kThreads>
PRULONG_DEVICE void poison(void* data, int64_t bytes) {
  constexpr uint32_t kNaNs = 0x7fff7fff;
  auto* const words = static_cast<uint32_t*>(data);
  for (int64_t i = int64_t{device::block_index()} * kThreads + device::thread_index(); i < bytes / 4;
       i += int64_t{device::block_count()} * kThreads) {
    device::store_global(words + i, kNaNs);
  }
}

}  // namespace prulong::kernels
