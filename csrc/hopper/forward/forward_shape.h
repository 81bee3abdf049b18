// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/elementwise/element_type.h"
#include "csrc/hopper/device/thread.h"
#include "csrc/hopper/forward/forward.h"
#include "csrc/tile.h"

namespace prulong::kernels {

/// Sizes of a forward kernel and the plan of its shared memory.
/// kKeysInPages: of a paged batch.
template <ElementType kElement, int kDim, bool kKeysInPages = false>
struct ForwardShape {
  static constexpr ElementType kType = kElement;
  static constexpr int kHeadDim = kDim;
  static constexpr bool kPaged = kKeysInPages;

  static constexpr int kConsumers = forward_query_rows(kDim) / 64;
  static constexpr int kQueryRows = 64 * kConsumers;
  /// Consumers take turns at issuing a step's products. Three do better so, two the same.
  static constexpr bool kTurns = kConsumers == 3;
  static constexpr int kThreads = (kConsumers + 1) * device::kWarpgroupThreads;
  static constexpr int kProducerRegisters = kConsumers == 2 ? 24 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 240 : 160;
  static constexpr int kStages = kDim == 64 ? 4 : 2;  // of K and of V each
  static constexpr int kPanels = kDim / 64;           // of 64 columns, 128 bytes

  // Panels in bytes: of a query tile, of a key block, of one warpgroup's output.
  static constexpr int kQueryPanel = kQueryRows * 128;
  static constexpr int kKeyPanel = kKeyBlock * 128;
  static constexpr int kOutputPanel = 64 * 128;
  static constexpr int kQueryBytes = kPanels * kQueryPanel;
  static constexpr int kKeyBytes = kPanels * kKeyPanel;

  // Offsets in shared memory.
  static constexpr int kQ = 0;
  static constexpr int kK = kQ + 2 * kQueryBytes;
  static constexpr int kV = kK + kStages * kKeyBytes;
  static constexpr int kO = kV + kStages * kKeyBytes;
  static constexpr int kWork = kO + kConsumers * kPanels * kOutputPanel;
  static constexpr int kWorkBytes = 48;  // an item's
  static constexpr int kBarriers = kWork + 2 * kWorkBytes;
  static constexpr int kBarrierCount = 5 + 4 * kStages;
  static constexpr int kSharedBytes = kBarriers + 8 * kBarrierCount;
  static_assert(kSharedBytes <= device::kMaxSharedBytes);
};

}  // namespace prulong::kernels
