// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/device/platform.h"
#include "csrc/hopper/forward/forward_consumer.h"
#include "csrc/hopper/forward/forward_loader.h"

/// The forward kernel: softmax(scale Q K^T) V of the items of a schedule.
///
/// A persistent CTA: one warp takes items and loads their tiles with bulk copies; each consumer warpgroup computes 64
/// query rows of an item. A ring of stages per kind of tile connects them, with a "full" and an "empty" barrier per
/// stage.
namespace prulong::kernels::forward {

template <class Shape>
PRULONG_DEVICE void run(const ForwardArguments& a) {
  const Shared memory = shared_memory();
  if (thread_index() == 0) {
    prefetch(a.q);
    prefetch(a.k);
    prefetch(a.v);
    Barriers<Shape>{memory + Shape::kBarriers}.init();
  }
  sync_cta();
  const int warpgroup = warpgroup_index();
  if (warpgroup == 0) {
    decrease_registers<Shape::kProducerRegisters>();
    if (warp_index() == 0) Loader<Shape>(a, memory).run();
  } else {
    increase_registers<Shape::kConsumerRegisters>();
    Consumer<Shape>(a, memory, warpgroup - 1).run();
  }
}

}  // namespace prulong::kernels::forward
