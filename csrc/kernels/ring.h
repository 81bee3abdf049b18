// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/kernels/device/platform.h"

namespace prulong::kernels {

/// Where a thread stands in a ring of stages. parity: of the barrier phase in which the stage becomes full; a stage
/// becomes empty in the other one. One register: a power of two stages.
template <int kStages>
class Ring {
 public:
  static_assert((kStages & (kStages - 1)) == 0);
  PRULONG_DEVICE int stage() const { return static_cast<int>(steps_ % kStages); }
  PRULONG_DEVICE int parity() const { return static_cast<int>(steps_ / kStages % 2); }
  PRULONG_DEVICE void advance() { ++steps_; }

 private:
  uint32_t steps_ = 0;
};

}  // namespace prulong::kernels
