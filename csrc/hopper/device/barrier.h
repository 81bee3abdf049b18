// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/device/platform.h"

namespace prulong::kernels::device {

// --- Memory barriers in shared memory (mbarrier): 8 bytes, aligned to 8.

/// A barrier whose every phase completes after `count` arrivals and all expected bytes. One thread calls; others use
/// the barrier after fence_barrier_init and sync_cta.
PRULONG_DEVICE void init_barrier(Shared barrier, int count PRULONG_SITE);
/// Makes initialised barriers known to bulk copies.
PRULONG_DEVICE void fence_barrier_init(PRULONG_SITE_ONLY);
PRULONG_DEVICE void arrive(Shared barrier PRULONG_SITE);
/// Arrives, and makes the current phase also wait for `bytes` of bulk copies.
PRULONG_DEVICE void arrive_expecting(Shared barrier, int bytes PRULONG_SITE);
/// Returns once the phase of the given parity is complete: the first phase has parity 0, and waiting for parity 1 on a
/// fresh barrier returns at once.
PRULONG_DEVICE void wait(Shared barrier, int parity PRULONG_SITE);

// --- Barriers by number: 1 to 15; number 0 is sync_cta's.

/// Waits until `threads` threads (a multiple of 32), those that only arrive included, are at the barrier. A warp
/// arrives when all its lanes are here.
PRULONG_DEVICE void sync_named(int number, int threads PRULONG_SITE);
PRULONG_DEVICE void arrive_named(int number, int threads PRULONG_SITE);
PRULONG_DEVICE void sync_cta(PRULONG_SITE_ONLY);
PRULONG_DEVICE void sync_warp(PRULONG_SITE_ONLY);

/// Makes the calling thread's earlier ordinary writes to shared memory visible to wgmma and bulk copies that are
/// ordered after this by a barrier.
PRULONG_DEVICE void fence_async_proxy(PRULONG_SITE_ONLY);

#if PRULONG_ON_DEVICE
PRULONG_DEVICE void init_barrier(Shared barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
PRULONG_DEVICE void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
PRULONG_DEVICE void arrive(Shared barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
PRULONG_DEVICE void arrive_expecting(Shared barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
PRULONG_DEVICE void wait(Shared barrier, int parity) {
  asm volatile(
      "{\n .reg .pred p;\n"
      "again:\n"
      " mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      " @p bra done;\n"
      " bra again;\n"
      "done:\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
PRULONG_DEVICE void sync_named(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
PRULONG_DEVICE void arrive_named(int number, int threads) {
  __syncwarp();  // unlike bar.sync, bar.arrive counts the whole warp as soon as its first lanes are here
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
PRULONG_DEVICE void sync_cta() { __syncthreads(); }
PRULONG_DEVICE void sync_warp() { __syncwarp(); }
PRULONG_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif

}  // namespace prulong::kernels::device
