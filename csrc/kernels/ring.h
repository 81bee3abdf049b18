// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/kernels/device/platform.h"

namespace prulong::kernels {

/// Where a thread stands in a ring of stages. parity: of the barrier phase in which the stage becomes full; a stage
/// becomes empty in the other one. One register.
template <int kStages>
class Ring {
 public:
  PRULONG_DEVICE int stage() const {
    if (kCounts) return static_cast<int>(steps_ % kStages);
    return static_cast<int>(steps_) - (parity() != 0 ? kStages : 0);
  }
  PRULONG_DEVICE int parity() const {
    if (kCounts) return static_cast<int>(steps_ / kStages % 2);
    return steps_ >= kStages ? 1 : 0;
  }
  PRULONG_DEVICE void advance() {
    ++steps_;
    if (!kCounts && steps_ == 2 * kStages) steps_ = 0;
  }

 private:
  static constexpr bool kCounts = (kStages & (kStages - 1)) == 0;  // else modulo two rounds
  uint32_t steps_ = 0;
};

}  // namespace prulong::kernels
