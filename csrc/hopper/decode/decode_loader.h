// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/decode/decode_arguments.h"
#include "csrc/hopper/decode/decode_plan.h"
#include "csrc/hopper/decode/decode_shape.h"
#include "csrc/hopper/device/barrier.h"
#include "csrc/hopper/device/copy.h"
#include "csrc/hopper/device/memory.h"
#include "csrc/hopper/ring.h"

namespace prulong::kernels::decode {

using namespace device;  // NOLINT: the primitives are this code's vocabulary

/// Addresses of the barriers. A full one takes one arrival, an empty one those of every consumer warp.
template <class Shape>
struct Barriers {
  Shared base;
  PRULONG_DEVICE Shared full(int stage) const { return base + 8 * stage; }
  PRULONG_DEVICE Shared empty(int stage) const { return full(Shape::kStages + stage); }

  PRULONG_DEVICE void init() const {
    for (int s = 0; s < Shape::kStages; ++s) {
      init_barrier(full(s), 1);
      init_barrier(empty(s), 4 * Shape::kConsumers * kWarpArrivals);
    }
    fence_barrier_init();
  }
};

/// The warp that loads the keys and the values of the CTA's pieces, block by block, as far ahead of the consumers as
/// there are stages.
template <class Shape>
class Loader {
 public:
  PRULONG_DEVICE Loader(const DecodeArguments& arguments, Shared memory)
      : a_(arguments), memory_(memory), barriers_{memory + Shape::kBarriers}, leads_(lane_index() == 0) {}

  PRULONG_DEVICE void run(Walk walk) {
    for (Piece piece; walk.next(&piece);) load(piece);
  }

 private:
  PRULONG_DEVICE void load(const Piece& piece) {
    const PagedKeys& paged = a_.batch.paged;
    const int* const table = paged.row(piece.list.sequence * a_.batch.kv_heads + piece.list.kv_head);
    for (int base = piece.steps.begin; base < piece.steps.end; base += kWarpThreads) {
      // A lane looks up one step's page; -1: nothing to be trusted.
      int own = -1;
      if (base + lane_index() < piece.steps.end && piece.list.valid) {
        own = load_global(table + piece.list.blocks.at(base + lane_index()));
        if (!paged.in_pool(own)) own = -1;
      }
      const int count = kernels::detail::lesser(kWarpThreads, piece.steps.end - base);
      for (int n = 0; n < count; ++n) {
        const int page = shuffle(own, n);
        load_tile(a_.k, page);
        load_tile(a_.v, page);
      }
    }
  }

  /// A page that is not there is loaded from where there is one; consumers do not use it.
  PRULONG_DEVICE void load_tile(const TensorMap& map, int page) {
    const int stage = ring_.stage();
    wait(barriers_.empty(stage), ring_.parity() ^ 1);
    if (leads_) {
      store_shared(memory_ + Shape::kPages + 4 * stage, page);
      arrive_expecting(barriers_.full(stage), Shape::kTileBytes);
      const int row = kernels::detail::greater(page, 0) * kKeyBlock;
      PRULONG_UNROLL
      for (int p = 0; p < Shape::kPanels; ++p) {
        load_box(memory_ + Shape::kTiles + stage * Shape::kTileBytes + p * Shape::kKeyPanel, map, barriers_.full(stage),
                 64 * p, row, 0, false);
      }
    }
    ring_.advance();
  }

  const DecodeArguments& a_;
  const Shared memory_;
  const Barriers<Shape> barriers_;
  const bool leads_;
  Ring<Shape::kStages> ring_;
};

}  // namespace prulong::kernels::decode
