// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>

#include "csrc/kernels/backward_arguments.h"
#include "csrc/kernels/backward_shape.h"
#include "csrc/kernels/device/barrier.h"
#include "csrc/kernels/device/copy.h"
#include "csrc/kernels/device/memory.h"

namespace prulong::kernels {

namespace backward {

using namespace device;  // NOLINT: the primitives are this code's vocabulary

/// A ring of stages, and where it stands.
template <int kStages>
struct Ring {
  int stage = 0, parity = 0;
  PRULONG_DEVICE void advance() {
    const bool wraps = ++stage == kStages;
    stage = wraps ? 0 : stage;
    parity ^= wraps ? 1 : 0;
  }
};

/// Addresses of the barriers. Full ones take one arrival, empty ones one of every warp that reads.
template <class Shape>
struct Barriers {
  Shared base;
  PRULONG_DEVICE Shared q_full(int stage) const { return base + 8 * stage; }
  PRULONG_DEVICE Shared o_full(int stage) const { return q_full(Shape::kStages + stage); }
  PRULONG_DEVICE Shared empty(int stage) const { return q_full(2 * Shape::kStages + stage); }
  PRULONG_DEVICE Shared item_full(int slot) const { return q_full(3 * Shape::kStages + slot); }
  PRULONG_DEVICE Shared item_empty(int slot) const { return item_full(2 + slot); }
  PRULONG_DEVICE Shared keys_full() const { return item_full(4); }
  PRULONG_DEVICE Shared keys_empty() const { return item_full(5); }
  PRULONG_DEVICE Shared mend() const { return item_full(6); }

  PRULONG_DEVICE void init() const {
    for (int s = 0; s < Shape::kStages; ++s) {
      init_barrier(q_full(s), 1);
      init_barrier(o_full(s), 1);
      init_barrier(empty(s), 8);
    }
    for (int s = 0; s < 2; ++s) {
      init_barrier(item_full(s), 1);
      init_barrier(item_empty(s), 10);
    }
    init_barrier(keys_full(), 1);
    init_barrier(keys_empty(), 8);
    init_barrier(mend(), 1);
    fence_barrier_init();
  }
};

// Barriers by number.
constexpr int kScoresBarrier = 1;     // both consumers: dS is in shared memory
constexpr int kSumsFullBarrier = 2;   // + warpgroup: its half of dQ is in shared memory
constexpr int kSumsEmptyBarrier = 4;  // + warpgroup: and has left it
constexpr int kSumsThreads = kWarpgroupThreads + kWarpThreads;

constexpr int kItemBytes = sizeof(BackwardItem);

/// What the consumers must know of a step.
struct Step {
  int position;   // of the tile's row 0
  int key_begin;  // of the item
  int branch;
  int masked;
};

/// An item in shared memory. Loading threads have few registers, so they look up what they need.
struct ItemSlot {
  Shared address;

#define PRULONG_FIELD(type, name) \
  PRULONG_DEVICE type name() const { return load_shared<type>(address + offsetof(BackwardItem, name)); }
  PRULONG_FIELD(int, steps)
  PRULONG_FIELD(int, kv_head)
  PRULONG_FIELD(int, key_begin)
  PRULONG_FIELD(int, keys)
  PRULONG_FIELD(int, k_row)
  PRULONG_FIELD(int, q_row)
  PRULONG_FIELD(int, q_rows)
  PRULONG_FIELD(int, first_position)
  PRULONG_FIELD(int, first_tile)
#undef PRULONG_FIELD
  PRULONG_DEVICE Branch branch(int pass) const {
    return load_shared<Branch>(address + static_cast<int>(offsetof(BackwardItem, branch)) + pass * 4);
  }
  PRULONG_DEVICE Range tiles(int pass) const {
    return load_shared<Range>(address + static_cast<int>(offsetof(BackwardItem, tiles)) + pass * 8);
  }

  PRULONG_DEVICE void write(const BackwardItem& item) const {
    union {
      BackwardItem item;
      Word4 words[4];
    } u = {item};
    PRULONG_UNROLL
    for (int i = 0; i < 4; ++i) store_shared(address + 16 * i, u.words[i]);
  }

  /// Calls visit(query_head, pass, tile of the document) for every step, in order.
  template <class Visit>
  PRULONG_DEVICE void for_each_step(int group, Visit visit) const {
    for (int member = 0; member < group; ++member) {
      for (int pass = 0; pass < 2; ++pass) {
        const int end = tiles(pass).end;
        for (int tile = tiles(pass).begin; tile < end; ++tile) visit(kv_head() * group + member, pass, tile);
      }
    }
  }
};

/// The warp that takes items and loads tiles.
template <class Shape>
class Loader {
 public:
  PRULONG_DEVICE Loader(const BackwardArguments& arguments, Shared memory)
      : a_(arguments), memory_(memory), barriers_{memory + Shape::kBarriers} {}

  PRULONG_DEVICE void run() {
    int* const counter = &a_.schedule.state->next_key;
    const int count = key_item_count(a_.schedule);
    Ring<2> slot;
    int parity = 0;  // of keys_empty
    for (;;) {
      int index = 0;
      if (elect_one()) index = fetch_add(counter, 1);
      index = elected_value(index);
      wait(barriers_.item_empty(slot.stage), slot.parity ^ 1);
      const ItemSlot item{memory_ + Shape::kItems + slot.stage * kItemBytes};
      if (elect_one()) {
        BackwardItem next = {};
        next.steps = -1;
        if (index < count) next = backward_item(a_.schedule.batch, key_item(a_.schedule, index));
        item.write(next);
        arrive(barriers_.item_full(slot.stage));
      }
      sync_warp();
      slot.advance();
      if (index >= count) return;
      if (item.steps() == 0) continue;
      wait(barriers_.keys_empty(), parity ^ 1);
      parity ^= 1;
      load_keys(item);
      item.for_each_step(a_.schedule.batch.group(),
                         [&](int query_head, int pass, int tile) { load_step(item, query_head, pass, tile); });
    }
  }

 private:
  /// The value of the lane that elect_one picks, where it is the only one that is not 0.
  static PRULONG_DEVICE int elected_value(int value) {
    PRULONG_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) value |= shuffle(value, lane_index() ^ mask);
    return value;
  }

  PRULONG_DEVICE void load_panels(Shared to, const TensorMap& map, Shared barrier, int panel_bytes, int row, int head,
                                  bool keep) {
    PRULONG_UNROLL
    for (int p = 0; p < Shape::kPanels; ++p) load_box(to + p * panel_bytes, map, barrier, 64 * p, row, head, keep);
  }

  /// Completes `full` once `bytes` that `load(barrier)` loads have come, and rows from `valid` on of the tiles at
  /// `tiles` are zero: they are another document's, and where ours holds a zero theirs may hold a NaN.
  template <int kTiles, class Load>
  PRULONG_DEVICE void load_mended(Shared full, int bytes, const Shared (&tiles)[kTiles], int panel_bytes, int valid,
                                  Load load) {
    const bool mends = valid * 128 < panel_bytes;
    const Shared barrier = mends ? barriers_.mend() : full;
    if (elect_one()) {
      arrive_expecting(barrier, bytes);
      load(barrier);
    }
    sync_warp();
    if (!mends) return;
    wait(barrier, mend_parity_);
    mend_parity_ ^= 1;
    for (int offset = valid * 128 + lane_index() * 16; offset < panel_bytes; offset += kWarpThreads * 16) {
      for (int i = 0; i < kTiles; ++i) {
        for (int p = 0; p < Shape::kPanels; ++p) store_shared(tiles[i] + p * panel_bytes + offset, Word4{0, 0, 0, 0});
      }
    }
    fence_async_proxy();
    sync_warp();
    if (elect_one()) arrive(full);
    sync_warp();
  }

  PRULONG_DEVICE void load_keys(ItemSlot item) {
    const Shared tiles[] = {memory_ + Shape::kK, memory_ + Shape::kV};
    load_mended(barriers_.keys_full(), 2 * Shape::kKeyBytes, tiles, Shape::kKeyPanel, item.keys(), [&](Shared barrier) {
      load_panels(tiles[0], a_.k, barrier, Shape::kKeyPanel, item.k_row(), item.kv_head(), false);
      load_panels(tiles[1], a_.v, barrier, Shape::kKeyPanel, item.k_row(), item.kv_head(), false);
    });
  }

  PRULONG_DEVICE void load_step(ItemSlot item, int query_head, int pass, int tile) {
    const Batch& batch = a_.schedule.batch;
    const int first = tile * Shape::kRows;
    const int row = item.q_row() + first, valid = item.q_rows() - first;
    const int position = item.first_position() + first;
    const Branch branch = item.branch(pass);
    const Range keys = {item.key_begin(), item.key_begin() + kKeyBlock};
    const bool masked = needs_mask(branch, batch.locality, {position, position + Shape::kRows}, keys);
    const float* const statistics =
        a_.statistics + statistics_offset(batch, pass, query_head, item.first_tile() + tile);

    wait(barriers_.empty(ring_.stage), ring_.parity ^ 1);
    if (elect_one()) {
      store_shared(memory_ + Shape::kSteps + ring_.stage * 16,
                   Step{position, item.key_begin(), static_cast<int>(branch), masked ? 1 : 0});
    }
    const Shared q[] = {memory_ + Shape::kQ + ring_.stage * Shape::kQueryBytes};
    load_mended(barriers_.q_full(ring_.stage), Shape::kQueryBytes + Shape::kStatisticsBytes, q, Shape::kQueryPanel,
                valid, [&](Shared barrier) {
                  load_panels(q[0], a_.q, barrier, Shape::kQueryPanel, row, query_head, true);
                  load_bulk(memory_ + Shape::kStatistics + ring_.stage * Shape::kStatisticsBytes, statistics,
                            Shape::kStatisticsBytes, barrier);
                });
    const Shared o[] = {memory_ + Shape::kO + ring_.stage * Shape::kQueryBytes};
    load_mended(barriers_.o_full(ring_.stage), Shape::kQueryBytes, o, Shape::kQueryPanel, valid, [&](Shared barrier) {
      load_panels(o[0], a_.dout, barrier, Shape::kQueryPanel, row, query_head, true);
    });
    ring_.advance();
  }

  const BackwardArguments& a_;
  const Shared memory_;
  const Barriers<Shape> barriers_;
  Ring<Shape::kStages> ring_;
  int mend_parity_ = 0;
};

/// A warp that adds the half of dQ that warpgroup `half` computes to the sums in global memory.
template <class Shape>
PRULONG_DEVICE void add_sums(const BackwardArguments& a, Shared memory, int half) {
  const Barriers<Shape> barriers{memory + Shape::kBarriers};
  const Batch& batch = a.schedule.batch;
  const Shared sums = memory + Shape::kSums + half * Shape::kSumBytes;
  for (Ring<2> slot;; slot.advance()) {
    wait(barriers.item_full(slot.stage), slot.parity);
    const ItemSlot item{memory + Shape::kItems + slot.stage * kItemBytes};
    if (item.steps() < 0) break;
    item.for_each_step(batch.group(), [&](int query_head, int, int tile) {
      if (elect_one()) wait_stores_read<0>();
      sync_warp();
      arrive_named(kSumsEmptyBarrier + half, kSumsThreads);
      sync_named(kSumsFullBarrier + half, kSumsThreads);
      if (elect_one()) {
        add_bulk(a.dq_sums + dq_offset(batch, query_head, item.first_tile() + tile) + half * (Shape::kSumBytes / 4),
                 sums, Shape::kSumBytes);
        commit_stores();
      }
    });
    sync_warp();
    if (elect_one()) arrive(barriers.item_empty(slot.stage));
  }
  if (elect_one()) wait_stores<0>();
}

}  // namespace backward
}  // namespace prulong::kernels
