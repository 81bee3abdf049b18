// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>

#include "csrc/hopper/backward/backward_arguments.h"
#include "csrc/hopper/backward/backward_shape.h"
#include "csrc/hopper/device/barrier.h"
#include "csrc/hopper/device/copy.h"
#include "csrc/hopper/device/memory.h"
#include "csrc/hopper/ring.h"

namespace prulong::kernels {

namespace backward {

using namespace device;  // NOLINT: the primitives are this code's vocabulary

/// Addresses of the barriers. Full ones take one arrival for each tile, empty ones one of every warp that reads.
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
  PRULONG_DEVICE Shared item_wanted() const { return item_full(7); }

  PRULONG_DEVICE void init() const {
    for (int s = 0; s < Shape::kStages; ++s) {
      init_barrier(q_full(s), 1);
      init_barrier(o_full(s), 1);
      init_barrier(empty(s), 8 * kWarpArrivals);
    }
    for (int s = 0; s < 2; ++s) {
      init_barrier(item_full(s), 1);
      init_barrier(item_empty(s), 11 * kWarpArrivals);
    }
    init_barrier(keys_full(), 2);
    init_barrier(keys_empty(), 8 * kWarpArrivals);
    init_barrier(mend(), 2);
    init_barrier(item_wanted(), 1);
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
  PRULONG_FIELD(int, kv_head)
  PRULONG_FIELD(int, group)
  PRULONG_FIELD(int, key_begin)
  PRULONG_FIELD(int, keys)
  PRULONG_FIELD(int, k_row)
  PRULONG_FIELD(int, q_row)
  PRULONG_FIELD(int, q_rows)
  PRULONG_FIELD(int, first_position)
  PRULONG_FIELD(int, first_tile)
  PRULONG_FIELD(int, steps)
#undef PRULONG_FIELD
  PRULONG_DEVICE Branch branch(int pass) const {
    return load_shared<Branch>(address + static_cast<int>(offsetof(BackwardItem, branch)) + pass * 4);
  }
  PRULONG_DEVICE Range tiles(int pass) const {
    return load_shared<Range>(address + static_cast<int>(offsetof(BackwardItem, tiles)) + pass * 8);
  }

  PRULONG_DEVICE void write(const BackwardItem& item) const {
    constexpr int kWords = kItemBytes / 4;
    union {
      BackwardItem item;
      int words[kWords];
    } u = {item};
    PRULONG_UNROLL
    for (int i = 0; i < kWords; ++i) store_shared(address + 4 * i, u.words[i]);
  }
  PRULONG_DEVICE void write_end() const { store_shared(address + offsetof(BackwardItem, steps), -1); }

  /// Calls visit(query_head, pass, tile of the document) for every step, in order.
  template <class Visit>
  PRULONG_DEVICE void for_each_step(Visit visit) const {
    for (int query_head = kv_head() * group(); query_head < (kv_head() + 1) * group(); ++query_head) {
      for (int pass = 0; pass < 2; ++pass) {
        for (int tile = tiles(pass).begin; tile < tiles(pass).end; ++tile) visit(query_head, pass, tile);
      }
    }
  }
};

/// A thread that takes an item once the loader is done with the one before, not earlier: the longest items come first,
/// and who is done first shall take the next.
template <class Shape>
PRULONG_DEVICE void take_items(const BackwardArguments& a, Shared memory) {
  const Barriers<Shape> barriers{memory + Shape::kBarriers};
  for (Ring<2> slot;; slot.advance()) {
    wait(barriers.item_wanted(), slot.stage() ^ 1);  // once an item
    wait(barriers.item_empty(slot.stage()), slot.parity() ^ 1);
    const int index = fetch_add(&a.schedule.state->next_key, 1);
    const ItemSlot item{memory + Shape::kItems + slot.stage() * kItemBytes};
    const bool ends = index >= key_item_count(a.schedule);
    if (ends) {
      item.write_end();
    } else {
      item.write(backward_item(a.schedule.batch, key_item(a.schedule, index), Shape::kRows));
    }
    arrive(barriers.item_full(slot.stage()));
    if (ends) return;
  }
}

/// The warp that loads tiles.
template <class Shape>
class Loader {
 public:
  PRULONG_DEVICE Loader(const BackwardArguments& arguments, Shared memory)
      : a_(arguments), memory_(memory), barriers_{memory + Shape::kBarriers} {}

  PRULONG_DEVICE void run() {
    for (Ring<2> slot;; slot.advance()) {
      wait(barriers_.item_full(slot.stage()), slot.parity());
      const ItemSlot item{memory_ + Shape::kItems + slot.stage() * kItemBytes};
      const int steps = shuffle(item.steps(), 0);
      if (steps < 0) return;
      wait(barriers_.keys_empty(), slot.stage() ^ 1);  // which every item empties
      if (steps > 0) {
        load_keys(item);
        item.for_each_step([&](int query_head, int pass, int tile) { load_step(item, query_head, pass, tile); });
      }
      sync_warp();
      if (elect_one()) arrive(barriers_.item_wanted());
      release(barriers_.item_empty(slot.stage()));
    }
  }

 private:
  PRULONG_DEVICE void load_tile(Shared to, const TensorMap& map, Shared barrier, int panel_bytes, int row, int head,
                                bool keep) {
    PRULONG_UNROLL
    for (int p = 0; p < Shape::kPanels; ++p) load_box(to + p * panel_bytes, map, barrier, 64 * p, row, head, keep);
  }

  /// Once two tiles have come, kSecond bytes apart, makes their rows from `valid` on zero and arrives at their
  /// barriers: those rows are another document's, and where ours holds a zero theirs may hold a NaN.
  template <int kSecond, int kPanelBytes>
  PRULONG_DEVICE void mend(Shared tile, int valid, Shared first_full, Shared second_full) {
    wait(barriers_.mend(), mend_parity_);
    mend_parity_ ^= 1;
    PRULONG_NO_UNROLL
    for (int offset = valid * 128 + lane_index() * 16; offset < kPanelBytes; offset += kWarpThreads * 16) {
      PRULONG_UNROLL
      for (int p = 0; p < Shape::kPanels; ++p) {
        store_shared(tile + offset + p * kPanelBytes, Word4{0, 0, 0, 0});
        store_shared(tile + offset + p * kPanelBytes + kSecond, Word4{0, 0, 0, 0});
      }
    }
    fence_async_proxy();
    sync_warp();
    if (elect_one()) {
      arrive(first_full);
      arrive(second_full);
    }
    sync_warp();
  }

  PRULONG_DEVICE void load_keys(ItemSlot item) {
    const Shared k = memory_ + Shape::kK, v = memory_ + Shape::kV;
    const bool mends = item.keys() < kKeyBlock;
    if (elect_one()) {
      const Shared full = mends ? barriers_.mend() : barriers_.keys_full();
      const int row = item.k_row(), head = item.kv_head();
      arrive_expecting(full, Shape::kKeyBytes);
      load_tile(k, a_.k, full, Shape::kKeyPanel, row, head, false);
      arrive_expecting(full, Shape::kKeyBytes);
      load_tile(v, a_.v, full, Shape::kKeyPanel, row, head, false);
    }
    sync_warp();
    if (mends) {
      mend<Shape::kV - Shape::kK, Shape::kKeyPanel>(k, item.keys(), barriers_.keys_full(), barriers_.keys_full());
    }
  }

  PRULONG_DEVICE void load_step(ItemSlot item, int query_head, int pass, int tile) {
    const int stage = ring_.stage(), first = tile * Shape::kRows, valid = item.q_rows() - first;
    const bool mends = valid < Shape::kRows;
    const Shared q = memory_ + Shape::kQ + stage * Shape::kQueryBytes;
    const Shared o = memory_ + Shape::kO + stage * Shape::kQueryBytes;
    wait(barriers_.empty(stage), ring_.parity() ^ 1);
    if (elect_one()) {
      const Batch& batch = a_.schedule.batch;
      const Shared full = mends ? barriers_.mend() : barriers_.q_full(stage);
      store_shared(memory_ + Shape::kSteps + stage * 16, describe(item, pass, first));
      arrive_expecting(full, Shape::kQueryBytes + Shape::kStatisticsBytes);
      load_tile(q, a_.q, full, Shape::kQueryPanel, item.q_row() + first, query_head, true);
      load_bulk(memory_ + Shape::kStatistics + stage * Shape::kStatisticsBytes,
                a_.statistics + statistics_offset(batch, pass, query_head, item.first_tile() + tile, Shape::kRows),
                Shape::kStatisticsBytes, full);
      const Shared o_full = mends ? full : barriers_.o_full(stage);
      arrive_expecting(o_full, Shape::kQueryBytes);
      load_tile(o, a_.dout, o_full, Shape::kQueryPanel, item.q_row() + first, query_head, true);
    }
    sync_warp();
    if (mends) {
      mend<Shape::kO - Shape::kQ, Shape::kQueryPanel>(q, valid, barriers_.q_full(stage), barriers_.o_full(stage));
    }
    ring_.advance();
  }
  PRULONG_DEVICE Step describe(ItemSlot item, int pass, int first) const {
    const int position = item.first_position() + first, key_begin = item.key_begin();
    const Branch branch = item.branch(pass);
    const bool masked = needs_mask(branch, a_.schedule.batch.locality, {position, position + Shape::kRows},
                                   {key_begin, key_begin + kKeyBlock});
    return {position, key_begin, static_cast<int>(branch), masked ? 1 : 0};
  }

  const BackwardArguments& a_;
  const Shared memory_;
  const Barriers<Shape> barriers_;
  Ring<Shape::kStages> ring_;
  int mend_parity_ = 0;
};

/// How many additions to the dQ of a tile come before a pass of the item.
template <class Shape>
PRULONG_DEVICE int turn_of(const BackwardArguments& a, ItemSlot item, int pass, int tile) {
  const int position = item.first_position() + tile * Shape::kRows;
  return additions_before(item.branch(1) == Branch::kComplement, item.branch(0), pass, a.schedule.batch.locality,
                          {position, position + Shape::kRows}, item.first_position() + item.q_rows(),
                          item.key_begin() / kKeyBlock);
}

/// A warp that adds the half of dQ that warpgroup `half` computes to the sums in global memory.
template <class Shape>
PRULONG_DEVICE void add_sums(const BackwardArguments& a, Shared memory, int half) {
  const Barriers<Shape> barriers{memory + Shape::kBarriers};
  const Shared sums = memory + Shape::kSums + half * Shape::kSumBytes;
  for (Ring<2> slot;; slot.advance()) {
    wait(barriers.item_full(slot.stage()), slot.parity());
    const ItemSlot item{memory + Shape::kItems + slot.stage() * kItemBytes};
    if (item.steps() < 0) break;
    item.for_each_step([&](int query_head, int pass, int tile) {
      if (elect_one()) wait_stores_read<0>();
      sync_warp();
      arrive_named(kSumsEmptyBarrier + half, kSumsThreads);
      sync_named(kSumsFullBarrier + half, kSumsThreads);
      if (elect_one()) {
        const Batch& batch = a.schedule.batch;
        int* count = nullptr;
        if (a.additions != nullptr) {
          count = a.additions + additions_offset(batch, query_head, item.first_tile() + tile, Shape::kRows) + half;
          const int turn = turn_of<Shape>(a, item, pass, tile);
          while (load_acquire(count) != turn) {
          }
        }
        const int64_t offset = dq_offset(batch, query_head, item.first_tile() + tile, Shape::kRows);
        add_bulk(a.dq_sums + offset + half * (Shape::kSumBytes / 4), sums, Shape::kSumBytes);
        commit_stores();
        if (count != nullptr) {
          wait_stores<0>();
          add_release(count, 1);
        }
      }
    });
    sync_warp();
    release(barriers.item_empty(slot.stage()));
  }
  if (elect_one()) wait_stores<0>();
}

}  // namespace backward
}  // namespace prulong::kernels
