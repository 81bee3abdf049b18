// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/backward/backward_consumer.h"
#include "csrc/hopper/backward/backward_loader.h"
#include "csrc/hopper/device/platform.h"

/// The main backward kernel: dK, dV and the sums of dQ of the key items of a schedule.
///
/// A persistent CTA: a warp takes items; another loads their tiles with bulk copies; each of two consumer warpgroups
/// owns 64 keys of the item; two more warps add a warpgroup's half of dQ to global memory. Scores are computed
/// transposed, keys by queries, so that weights and score gradients are register operands of the products dV and dK.
namespace prulong::kernels::backward {

template <class Shape>
PRULONG_DEVICE void run(const BackwardArguments& a) {
  const Shared memory = shared_memory();
  const Barriers<Shape> barriers{memory + Shape::kBarriers};
  if (thread_index() == 0) {
    prefetch(a.q);
    prefetch(a.dout);
    prefetch(a.k);
    prefetch(a.v);
    barriers.init();
  }
  sync_cta();
  const int warpgroup = warpgroup_index();
  if (warpgroup == 0) {
    decrease_registers<Shape::kProducerRegisters>();
    const int warp = warp_index();
    if (warp == 0) {
      Loader<Shape>(a, memory).run();
    } else if (warp < 3) {
      add_sums<Shape>(a, memory, warp - 1);
    } else if (elect_one()) {
      take_items<Shape>(a, memory);
    }
  } else {
    increase_registers<Shape::kConsumerRegisters>();
    Consumer<Shape>(a, memory, warpgroup - 1).run();
  }
}

}  // namespace prulong::kernels::backward
