// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/kernels/device/platform.h"

namespace prulong::kernels {

/// Where a thread stands in a ring of stages. parity: of the barrier phase in which the stage becomes full; a stage
/// becomes empty in the other one.
template <int kStages>
struct Ring {
  int stage = 0, parity = 0;
  PRULONG_DEVICE void advance() {
    const bool wraps = ++stage == kStages;
    stage = wraps ? 0 : stage;
    parity ^= wraps ? 1 : 0;
  }
};

}  // namespace prulong::kernels
