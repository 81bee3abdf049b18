// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/elementwise/element_type.h"
#include "csrc/hopper/decode/decode.h"
#include "csrc/hopper/device/thread.h"

namespace prulong::kernels {

/// Sizes of a decode kernel and the plan of its shared memory.
template <ElementType kElement, int kDim>
struct DecodeShape {
  static constexpr ElementType kType = kElement;
  static constexpr int kHeadDim = kDim;

  static constexpr int kConsumers = 2;  // warpgroups, half a key block each
  static constexpr int kThreads = (kConsumers + 1) * device::kWarpgroupThreads;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr int kPanels = kDim / 64;                // of 64 columns, 128 bytes
  static constexpr int kKeyPanel = kKeyBlock * 128;        // bytes
  static constexpr int kTileBytes = kPanels * kKeyPanel;   // of the keys or the values of a key block
  static constexpr int kStages = 192 * 1024 / kTileBytes;  // tiles in flight, keys and values in turns
  static constexpr int kHalf = kKeyBlock / kConsumers;     // keys of a consumer

  // Offsets in shared memory.
  static constexpr int kTiles = 0;
  /// What the second consumer hands to the first: its sums and statistics, 16 bytes of every thread side by side.
  static constexpr int kGift = kTiles + kStages * kTileBytes;
  static constexpr int kGiftVectors = kDim / 8 + 1;
  static constexpr int kSums = kGift + kGiftVectors * 16 * device::kWarpgroupThreads;  // 8 bytes of every warp
  static constexpr int kStart = kSums + 8 * kThreads / device::kWarpThreads;           // 8 bytes
  static constexpr int kArrived = kStart + 8;                                          // 8 bytes
  static constexpr int kPages = kArrived + 8;                                          // 4 bytes of every stage
  static constexpr int kBarriers = kPages + 4 * kStages;
  static constexpr int kSharedBytes = kBarriers + 8 * 2 * kStages;
  static_assert(kSharedBytes <= device::kMaxSharedBytes && kBarriers % 8 == 0);
};

}  // namespace prulong::kernels
