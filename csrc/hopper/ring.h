// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/device/barrier.h"
#include "csrc/hopper/device/thread.h"

namespace prulong::kernels {

/// How often a warp arrives at a barrier to give a stage back. Once: the lanes are in step, so one arrival tells of
/// what all of them did before. compute-sanitizer's racecheck believes only a lane that arrives itself.
#ifdef PRULONG_RACECHECK
constexpr int kWarpArrivals = device::kWarpThreads;
#else
constexpr int kWarpArrivals = 1;
#endif

/// Gives a stage back for the calling warp, whose lanes are in step. The barrier counts kWarpArrivals for each warp.
template <int kArrivals = kWarpArrivals>
PRULONG_DEVICE void release(device::Shared barrier) {
  if (kArrivals > 1 || device::lane_index() == 0) device::arrive(barrier);
}

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
