// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/elementwise/element_type.h"
#include "csrc/hopper/backward/backward_steps.h"
#include "csrc/hopper/device/thread.h"

namespace prulong::kernels {

/// Sizes of a main backward kernel and the plan of its shared memory.
template <ElementType kElement, int kDim>
struct BackwardShape {
  static constexpr ElementType kType = kElement;
  static constexpr int kHeadDim = kDim;
  static constexpr int kRows = backward_tile_rows(kDim);
  static constexpr int kThreads = 3 * device::kWarpgroupThreads;  // producer, two consumers
  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = 240;
  static constexpr int kStages = kDim == 128 ? 3 : 2;  // of Q and dO each
  /// The next step's scores are issued while dK is summed. Head dim 128 has too few registers for that (C7512).
  static constexpr bool kScoresUnderKeys = kDim == 64;

  // Panels of 64 columns, 128 bytes a row.
  static constexpr int kPanels = kDim / 64;      // of K, V, Q and dO
  static constexpr int kRowPanels = kRows / 64;  // of dS^T
  static constexpr int kKeyPanel = kKeyBlock * 128;
  static constexpr int kQueryPanel = kRows * 128;
  static constexpr int kKeyBytes = kPanels * kKeyPanel;
  static constexpr int kQueryBytes = kPanels * kQueryPanel;
  static constexpr int kScoreBytes = kRowPanels * kKeyPanel;  // of dS^T: [keys][64 queries] each panel
  static constexpr int kSumBytes = 64 * 64 * 4;               // of a warpgroup's half of dQ
  static constexpr int kStatisticsBytes = 2 * kRows * 4;

  // Offsets in shared memory.
  static constexpr int kK = 0;
  static constexpr int kV = kK + kKeyBytes;
  static constexpr int kQ = kV + kKeyBytes;
  static constexpr int kO = kQ + kStages * kQueryBytes;
  static constexpr int kScores = kO + kStages * kQueryBytes;
  static constexpr int kSums = kScores + 2 * kScoreBytes;
  static constexpr int kStatistics = kSums + 2 * kSumBytes;
  static constexpr int kSteps = kStatistics + kStages * kStatisticsBytes;
  static constexpr int kItems = kSteps + kStages * 16;
  static constexpr int kBarriers = kItems + 2 * sizeof(BackwardItem);
  static constexpr int kBarrierCount = 3 * kStages + 4 + 4;
  static constexpr int kSharedBytes = kBarriers + 8 * kBarrierCount;
  static_assert(kSharedBytes <= device::kMaxSharedBytes);
};

}  // namespace prulong::kernels
