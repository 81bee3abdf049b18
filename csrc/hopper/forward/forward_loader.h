// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/device/barrier.h"
#include "csrc/hopper/device/copy.h"
#include "csrc/hopper/device/memory.h"
#include "csrc/hopper/forward/forward_arguments.h"
#include "csrc/hopper/forward/forward_shape.h"
#include "csrc/hopper/ring.h"

namespace prulong::kernels::forward {

using namespace device;  // NOLINT: the primitives are this code's vocabulary

/// An item as the loader hands it to the consumers, in three words of 16 bytes beside its query tile.
struct WorkHead {
  int more;  // 0: no more items, nothing else is set
  int branch, query_head, partial;
};
struct WorkRows {
  int first, count;  // of the packed queries
  int position;      // of the first row
  int unused;
};
struct WorkSteps {
  int count, block;         // how many steps; the key block of the first
  int near_begin, far_end;  // of KeyBlocks
};

/// Addresses of the barriers. Full ones take one arrival, empty ones one of every consumer warp.
template <class Shape>
struct Barriers {
  Shared base;
  PRULONG_DEVICE Shared q_full(int stage) const { return base + 8 * stage; }
  PRULONG_DEVICE Shared q_empty(int stage) const { return q_full(2 + stage); }
  PRULONG_DEVICE Shared k_full(int stage) const { return q_full(4 + stage); }
  PRULONG_DEVICE Shared k_empty(int stage) const { return k_full(Shape::kStages + stage); }
  PRULONG_DEVICE Shared v_full(int stage) const { return k_full(2 * Shape::kStages + stage); }
  PRULONG_DEVICE Shared v_empty(int stage) const { return k_full(3 * Shape::kStages + stage); }
  PRULONG_DEVICE Shared mend() const { return k_full(4 * Shape::kStages); }

  PRULONG_DEVICE void init() const {
    const int consumers = 4 * Shape::kConsumers * kWarpArrivals;
    for (int s = 0; s < 2; ++s) {
      init_barrier(q_full(s), 1);
      init_barrier(q_empty(s), consumers);
    }
    for (int s = 0; s < Shape::kStages; ++s) {
      init_barrier(k_full(s), 1);
      init_barrier(v_full(s), 1);
      init_barrier(k_empty(s), consumers);
      init_barrier(v_empty(s), consumers);
    }
    init_barrier(mend(), 1);
    fence_barrier_init();
  }
};

/// The warp that takes items and loads their tiles, as far ahead of the consumers as there are stages.
template <class Shape>
class Loader {
 public:
  PRULONG_DEVICE Loader(const ForwardArguments& arguments, Shared memory)
      : a_(arguments), memory_(memory), barriers_{memory + Shape::kBarriers}, leads_(lane_index() == 0) {}

  PRULONG_DEVICE void run() {
    const int count = query_item_count(a_.schedule);
    fetch();
    for (int next; (next = shuffle(fetched_, 0)) < count;) load(query_item<Shape::kPaged>(a_.schedule, next));
    load_owed();
    publish({}, {}, {});
    if (leads_) arrive(barriers_.q_full(q_.stage()));
  }

 private:
  /// Takes the next item's index, in the leading lane. A step before it is needed, as the answer takes a while, and not
  /// earlier: the longest items come first, and who is done first shall take the next.
  PRULONG_DEVICE void fetch() {
    if (leads_) fetched_ = fetch_add(&a_.schedule.state->next_query, 1);
  }

  /// Waits for a place for an item's query tile and tells the consumers what to do with it.
  PRULONG_DEVICE void publish(WorkHead head, WorkRows rows, WorkSteps steps) {
    wait(barriers_.q_empty(q_.stage()), q_.parity() ^ 1);
    const Shared work = memory_ + Shape::kWork + q_.stage() * Shape::kWorkBytes;
    if (!leads_) return;
    store_shared(work, head);
    store_shared(work + 16, rows);
    store_shared(work + 32, steps);
  }

  PRULONG_DEVICE void load(const QueryItem& item) {
    const int position = item.document.first_position() + item.rows.begin;
    const KeyBlocks blocks =
        key_blocks(item.branch, a_.schedule.batch.locality, {position, position + item.rows.size()});
    const int first_row = item.document.q_begin + item.rows.begin, steps = item.steps.size();
    if (steps == 0) load_owed();  // consumers finish the item before, which frees a place for the one after this
    publish({1, static_cast<int>(item.branch), item.query_head, item.partial},
            {first_row, item.rows.size(), position, 0},
            {steps, steps > 0 ? blocks.at(item.steps.begin) : 0, blocks.near.begin, blocks.far.end});
    if (steps > 0) {
      load_tile(memory_ + Shape::kQ + q_.stage() * Shape::kQueryBytes, a_.q, barriers_.q_full(q_.stage()),
                Shape::kQueryPanel, first_row, item.query_head, false);
    } else if (leads_) {
      arrive(barriers_.q_full(q_.stage()));
    }
    q_.advance();
    if (steps == 0) fetch();
    const int head = Shape::kPaged ? 0 : item.kv_head;
    int next_row = steps > 0 ? row_of(item, blocks.at(item.steps.begin)) : 0;
    for (int step = item.steps.begin; step < item.steps.end; ++step) {
      const int first_key = blocks.at(step) * kKeyBlock, row = next_row;
      if (step + 1 < item.steps.end) {
        next_row = row_of(item, blocks.at(step + 1));  // early: a page's number takes a while
      } else {
        fetch();
      }
      wait(barriers_.k_empty(k_.stage()), k_.parity() ^ 1);
      load_tile(memory_ + Shape::kK + k_.stage() * Shape::kKeyBytes, a_.k, barriers_.k_full(k_.stage()),
                Shape::kKeyPanel, row, head, true);
      k_.advance();
      load_owed();
      owed_ = {row, head, kernels::detail::lesser(kKeyBlock, item.document.k_length - first_key)};
    }
  }

  /// The first row of a key block among all keys.
  PRULONG_DEVICE int row_of(const QueryItem& item, int block) const {
    if constexpr (Shape::kPaged) {
      const Batch& batch = a_.schedule.batch;
      return load_global(batch.paged.row(item.document.index * batch.kv_heads + item.kv_head) + block) * kKeyBlock;
    } else {
      return item.document.k_begin + block * kKeyBlock;
    }
  }

  /// Loads the values of the keys loaded before the latest ones: consumers need them only then.
  PRULONG_DEVICE void load_owed() {
    if (owed_.valid == 0) return;
    const Shared values = memory_ + Shape::kV + v_.stage() * Shape::kKeyBytes, full = barriers_.v_full(v_.stage());
    wait(barriers_.v_empty(v_.stage()), v_.parity() ^ 1);
    const bool mends = owed_.valid < kKeyBlock;
    load_tile(values, a_.v, mends ? barriers_.mend() : full, Shape::kKeyPanel, owed_.row, owed_.head, true);
    if (mends) {
      mend(values, owed_.valid);
      if (leads_) arrive(full);
    }
    v_.advance();
    owed_.valid = 0;
  }

  /// Zeros values past the document's end, which are another document's: their weights are 0, but 0 * NaN is NaN.
  PRULONG_DEVICE void mend(Shared values, int valid) {
    wait(barriers_.mend(), mend_parity_);
    mend_parity_ ^= 1;
    for (int chunk = 8 * valid + lane_index(); chunk < 8 * kKeyBlock; chunk += kWarpThreads) {
      for (int p = 0; p < Shape::kPanels; ++p) {
        store_shared(values + p * Shape::kKeyPanel + 16 * chunk, Word4{0, 0, 0, 0});
      }
    }
    fence_async_proxy();
    sync_warp();
  }

  /// Loads the tile whose first row is `row`, panel by panel.
  PRULONG_DEVICE void load_tile(Shared to, const TensorMap& map, Shared barrier, int panel_bytes, int row, int head,
                                bool keep) const {
    if (!leads_) return;
    arrive_expecting(barrier, Shape::kPanels * panel_bytes);
    PRULONG_UNROLL
    for (int p = 0; p < Shape::kPanels; ++p) load_box(to + p * panel_bytes, map, barrier, 64 * p, row, head, keep);
  }

  const ForwardArguments& a_;
  const Shared memory_;
  const Barriers<Shape> barriers_;
  const bool leads_;
  Ring<2> q_;
  Ring<Shape::kStages> k_, v_;
  int mend_parity_ = 0;
  int fetched_ = 0;
  struct {
    int row, head;
    int valid;  // rows of the document; 0: nothing is owed
  } owed_ = {0, 0, 0};
};

}  // namespace prulong::kernels::forward
