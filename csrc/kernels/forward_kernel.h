// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/kernels/device/barrier.h"
#include "csrc/kernels/device/copy.h"
#include "csrc/kernels/device/memory.h"
#include "csrc/kernels/forward_arguments.h"
#include "csrc/kernels/forward_shape.h"
#include "csrc/kernels/forward_softmax.h"

/// The forward kernel: softmax(scale Q K^T) V of the items of a schedule.
///
/// A persistent CTA: one producer thread takes items and loads their tiles with bulk copies; each consumer warpgroup
/// computes 64 query rows of an item. A ring of stages per kind of tile connects them, with a "full" and an "empty"
/// barrier per stage.
namespace prulong::kernels::forward {

using namespace device;  // NOLINT: the primitives are this code's vocabulary

/// An item as the producer hands it to the consumers, in four words of 16 bytes beside its query tile.
struct WorkHead {
  int more;  // 0: no more items, nothing else is set
  int branch, query_head, partial;
};
struct WorkRows {
  int first, count;        // of the packed queries
  int position, k_length;  // of the first row; keys of the document
};
struct WorkSteps {
  int begin, end, unused[2];
};
constexpr int kWorkBytes = 64;

/// Where a ring of stages stands.
template <int kStages>
struct Ring {
  int stage = 0, parity = 0;
  PRULONG_DEVICE void advance() {
    const bool wraps = ++stage == kStages;
    stage = wraps ? 0 : stage;
    parity ^= wraps ? 1 : 0;
  }
};

/// Addresses of the barriers.
template <class Shape>
struct Barriers {
  Shared base;
  PRULONG_DEVICE Shared q_full(int stage) const { return base + 8 * stage; }
  PRULONG_DEVICE Shared q_empty(int stage) const { return base + 16 + 8 * stage; }
  PRULONG_DEVICE Shared k_full(int stage) const { return base + 32 + 8 * stage; }
  PRULONG_DEVICE Shared k_empty(int stage) const { return base + 32 + 8 * (Shape::kStages + stage); }
  PRULONG_DEVICE Shared v_full(int stage) const { return base + 32 + 8 * (2 * Shape::kStages + stage); }
  PRULONG_DEVICE Shared v_empty(int stage) const { return base + 32 + 8 * (3 * Shape::kStages + stage); }

  PRULONG_DEVICE void init() const {
    const int consumer_warps = 4 * Shape::kConsumers;
    for (int s = 0; s < 2; ++s) {
      init_barrier(q_full(s), 1);
      init_barrier(q_empty(s), consumer_warps);
    }
    for (int s = 0; s < Shape::kStages; ++s) {
      init_barrier(k_full(s), 1);
      init_barrier(v_full(s), 1);
      init_barrier(k_empty(s), consumer_warps);
      init_barrier(v_empty(s), consumer_warps);
    }
    fence_barrier_init();
  }
};

// Barriers by number.
constexpr int kTurnBarrier = 1;   // + warpgroup: its turn
constexpr int kStoreBarrier = 4;  // + warpgroup: its output in shared memory
constexpr int kMendBarrier = 7;   // all consumers

/// Loads [kRows][head_dim] from row `row` on, panel by panel.
template <class Shape>
PRULONG_DEVICE void load_tile(Shared to, const TensorMap& map, Shared barrier, int panel_bytes, int row, int head,
                              bool keep) {
  arrive_expecting(barrier, Shape::kPanels * panel_bytes);
  PRULONG_UNROLL
  for (int p = 0; p < Shape::kPanels; ++p) load_box(to + p * panel_bytes, map, barrier, 64 * p, row, head, keep);
}

/// The producer: one thread.
template <class Shape>
PRULONG_DEVICE void produce(const ForwardArguments& a, Shared memory) {
  const Barriers<Shape> barriers{memory + Shape::kBarriers};
  Ring<2> q;
  Ring<Shape::kStages> k, v;
  int* const counter = &a.schedule.state->next_query;
  const int count = query_item_count(a.schedule);
  for (int next = fetch_add(counter, 1); next < count;) {
    const QueryItem item = query_item(a.schedule, next);
    next = fetch_add(counter, 1);  // early: the answer takes a while
    const int position = item.document.first_position() + item.rows.begin;
    const KeyBlocks blocks =
        key_blocks(item.branch, a.schedule.batch.locality, {position, position + item.rows.size()});
    const int first_row = item.document.q_begin + item.rows.begin;

    wait(barriers.q_empty(q.stage), q.parity ^ 1);
    const Shared work = memory + Shape::kWork + q.stage * kWorkBytes;
    store_shared(work, WorkHead{1, static_cast<int>(item.branch), item.query_head, item.partial});
    store_shared(work + 16, WorkRows{first_row, item.rows.size(), position, item.document.k_length});
    store_shared(work + 32, blocks);
    store_shared(work + 48, WorkSteps{item.steps.begin, item.steps.end, {}});
    if (item.steps.size() == 0) {
      arrive(barriers.q_full(q.stage));
      q.advance();
      continue;
    }
    load_tile<Shape>(memory + Shape::kQ + q.stage * Shape::kQueryBytes, a.q, barriers.q_full(q.stage),
                     Shape::kQueryPanel, first_row, item.query_head, false);
    q.advance();

    const auto load_v = [&](int step) {
      wait(barriers.v_empty(v.stage), v.parity ^ 1);
      load_tile<Shape>(memory + Shape::kV + v.stage * Shape::kKeyBytes, a.v, barriers.v_full(v.stage), Shape::kKeyPanel,
                       item.document.k_begin + blocks.at(step) * kKeyBlock, item.kv_head, true);
      v.advance();
    };
    // Keys go one step ahead of values, as the consumers use them.
    for (int step = item.steps.begin; step < item.steps.end; ++step) {
      wait(barriers.k_empty(k.stage), k.parity ^ 1);
      load_tile<Shape>(memory + Shape::kK + k.stage * Shape::kKeyBytes, a.k, barriers.k_full(k.stage), Shape::kKeyPanel,
                       item.document.k_begin + blocks.at(step) * kKeyBlock, item.kv_head, true);
      k.advance();
      if (step > item.steps.begin) load_v(step - 1);
    }
    load_v(item.steps.end - 1);
  }
  wait(barriers.q_empty(q.stage), q.parity ^ 1);
  store_shared(memory + Shape::kWork + q.stage * kWorkBytes, WorkHead{});
  arrive(barriers.q_full(q.stage));
}

/// A consumer warpgroup: rows 64 `group` and on of every item.
template <class Shape>
class Consumer {
 public:
  PRULONG_DEVICE Consumer(const ForwardArguments& arguments, Shared memory, int group)
      : a_(arguments), memory_(memory), barriers_{memory + Shape::kBarriers}, group_(group) {}

  PRULONG_DEVICE void run() {
    if (Shape::kTurns != Turns::kNone && group_ == Shape::kConsumers - 1) pass_turn();
    for (;;) {
      wait(barriers_.q_full(q_.stage), q_.parity);
      const Shared work = memory_ + Shape::kWork + q_.stage * kWorkBytes;
      if (shuffle(load_shared<WorkHead>(work).more, 0) == 0) break;
      compute(work);
      release(barriers_.q_empty(q_.stage));
      q_.advance();
    }
    // The last warpgroup passes a turn that nobody takes.
    if (Shape::kTurns != Turns::kNone && group_ == 0) take_turn();
    wait_stores<0>();
  }

 private:
  PRULONG_DEVICE void take_turn() { sync_named(kTurnBarrier + group_, 2 * kWarpgroupThreads); }
  PRULONG_DEVICE void pass_turn() {
    arrive_named(kTurnBarrier + (group_ + 1 == Shape::kConsumers ? 0 : group_ + 1), 2 * kWarpgroupThreads);
  }
  PRULONG_DEVICE void take_turn_at(Turns turns) {
    if (Shape::kTurns == turns) take_turn();
  }
  PRULONG_DEVICE void pass_turn_at(Turns turns) {
    if (Shape::kTurns == turns) pass_turn();
  }
  /// Gives a stage back. Per warp: each waits for its own quarter of the products.
  PRULONG_DEVICE void release(Shared barrier) {
    if (lane_index() == 0) arrive(barrier);
  }

  /// Begins scores = Q K^T.
  PRULONG_DEVICE void multiply_keys() {
    const Descriptor q = describe_k_major(memory_ + Shape::kQ).advanced(q_.stage * Shape::kQueryBytes + group_ * 8192);
    const Descriptor k = describe_k_major(memory_ + Shape::kK).advanced(k_.stage * Shape::kKeyBytes);
    PRULONG_UNROLL
    for (int s = 0; s < Shape::kHeadDim / 16; ++s) {
      multiply<Shape::kType, Major::kK, Major::kK>(scores_, q.advanced(s / 4 * Shape::kQueryPanel + s % 4 * 32),
                                                   k.advanced(s / 4 * Shape::kKeyPanel + s % 4 * 32), s > 0);
    }
    commit_matrices();
  }
  /// Begins sums += weights V.
  PRULONG_DEVICE void multiply_values() {
    const Descriptor v = describe_mn_major(memory_ + Shape::kV, Shape::kKeyPanel).advanced(v_.stage * Shape::kKeyBytes);
    PRULONG_UNROLL
    for (int s = 0; s < kKeyBlock / 16; ++s) {
      multiply<Shape::kType, Major::kMN>(sums_, weights_, s, v.advanced(s * 2048), true);
    }
    commit_matrices();
  }
  PRULONG_DEVICE void release_keys() {
    release(barriers_.k_empty(k_.stage));
    k_.advance();
  }
  PRULONG_DEVICE void release_values() {
    release(barriers_.v_empty(v_.stage));
    v_.advance();
  }

  /// Scores of a step to weights, still as floats. Returns whether sums need a correction.
  PRULONG_DEVICE bool weigh() {
    const int first_key = block_ * kKeyBlock;
    const Locality locality = a_.schedule.batch.locality;
    if (needs_mask(branch_, locality, {position_, position_ + 64}, {first_key, first_key + kKeyBlock})) {
      mask_scores(scores_, branch_, locality, position_ + warp_row(), first_key);
    }
    const bool corrects = softmax_.take(scores_, a_.scale);
    take_turn_at(Turns::kExponentials);
    softmax_.weigh(scores_, a_.scale);
    pass_turn_at(Turns::kExponentials);
    if (--block_ == near_begin_ - 1) block_ = far_end_ - 1;
    return corrects;
  }
  PRULONG_DEVICE void pack_weights() {
    PRULONG_UNROLL
    for (int s = 0; s < kKeyBlock / 16; ++s) {
      PRULONG_UNROLL
      for (int i = 0; i < 4; ++i) {
        weights_.word(s, i) = pack<Shape::kType>(scores_[8 * s + 2 * i], scores_[8 * s + 2 * i + 1]);
      }
    }
  }
  /// The thread's upper row among the warpgroup's 64.
  PRULONG_DEVICE int warp_row() const { return 16 * (warp_index() % 4) + lane_index() / 4; }

  PRULONG_DEVICE void compute(Shared work) {
    softmax_ = Softmax{};
    PRULONG_UNROLL
    for (int i = 0; i < Sums::kSize; ++i) sums_[i] = 0;
    const WorkSteps range = load_shared<WorkSteps>(work + 48);
    const int steps = shuffle(range.end - range.begin, 0);
    if (steps > 0) {
      const WorkRows rows = load_shared<WorkRows>(work + 16);
      const KeyBlocks blocks = load_shared<KeyBlocks>(work + 32);
      branch_ = static_cast<Branch>(shuffle(load_shared<WorkHead>(work).branch, 0));
      position_ = rows.position + 64 * group_;
      block_ = blocks.at(range.begin);
      near_begin_ = blocks.near.begin;
      far_end_ = blocks.far.end;
      mend_values(shuffle(rows.k_length - block_ * kKeyBlock, 0));
      if (Shape::kOverlap) {
        visit_overlapped(steps);
      } else {
        visit(steps);
      }
    }
    finish(load_shared<WorkHead>(work), load_shared<WorkRows>(work + 16));
  }

  PRULONG_DEVICE void visit(int steps) {
    for (int step = 0; step < steps; ++step) {
      wait(barriers_.k_full(k_.stage), k_.parity);
      take_turn_at(Turns::kProducts);
      begin_matrices(scores_);
      multiply_keys();
      wait_matrices<0>(scores_);
      release_keys();
      if (weigh()) softmax_.correct(sums_);
      pack_weights();
      wait(barriers_.v_full(v_.stage), v_.parity);
      begin_matrices(sums_, weights_);
      multiply_values();
      pass_turn_at(Turns::kProducts);
      wait_matrices<0>(sums_, weights_);
      release_values();
    }
  }

  PRULONG_DEVICE void visit_overlapped(int steps) {
    wait(barriers_.k_full(k_.stage), k_.parity);
    begin_matrices(scores_);
    multiply_keys();
    wait_matrices<0>(scores_);
    release_keys();
    weigh();  // nothing is summed yet
    pack_weights();
    for (int step = 1; step < steps; ++step) {
      wait(barriers_.k_full(k_.stage), k_.parity);
      take_turn_at(Turns::kProducts);
      begin_matrices(scores_);
      multiply_keys();
      wait(barriers_.v_full(v_.stage), v_.parity);
      begin_matrices(sums_, weights_);
      multiply_values();
      pass_turn_at(Turns::kProducts);
      wait_matrices<1>(scores_);
      release_keys();
      const bool corrects = weigh();
      wait_matrices<0>(sums_, weights_);
      release_values();
      if (corrects) softmax_.correct(sums_);
      pack_weights();
    }
    wait(barriers_.v_full(v_.stage), v_.parity);
    begin_matrices(sums_, weights_);
    multiply_values();
    wait_matrices<0>(sums_, weights_);
    release_values();
  }

  /// Zeros the values past the `valid` ones up to the document's end, which are another document's: their weights are
  /// 0, but 0 * NaN is NaN. Blocks are visited right to left, so only the first can reach past the end.
  PRULONG_DEVICE void mend_values(int valid) {
    if (valid >= kKeyBlock) return;
    wait(barriers_.v_full(v_.stage), v_.parity);
    const Shared values = memory_ + Shape::kV + v_.stage * Shape::kKeyBytes;
    const int thread = thread_index() - kWarpgroupThreads;
    for (int chunk = 8 * valid + thread; chunk < 8 * kKeyBlock; chunk += Shape::kConsumers * kWarpgroupThreads) {
      for (int p = 0; p < Shape::kPanels; ++p) {
        store_shared(values + p * Shape::kKeyPanel + 16 * chunk, Word4{0, 0, 0, 0});
      }
    }
    fence_async_proxy();
    sync_named(kMendBarrier, Shape::kConsumers * kWarpgroupThreads);
  }

  /// Writes the item's output: staged in shared memory, from where a bulk store takes it while the next item runs.
  PRULONG_DEVICE void finish(WorkHead head, WorkRows rows) {
    float inverse[2], lse[2];
    PRULONG_UNROLL
    for (int r = 0; r < 2; ++r) {
      float sum = softmax_.sum[r];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      inverse[r] = sum > 0 ? 1.0f / sum : sum;
      lse[r] = sum == 0 ? -__builtin_inff() : (softmax_.maximum[r] * a_.scale + log2_fast(sum)) * 0.69314718055994531f;
    }
    const bool complement = head.branch == static_cast<int>(Branch::kComplement);
    const int warp = warp_index() % 4, lane = lane_index();
    const int64_t tokens = a_.schedule.batch.q_tokens;
    const int first_row = rows.first + 64 * group_, count = rows.count - 64 * group_;
    float* const lse_out = (head.branch == static_cast<int>(Branch::kLocal) ? a_.lse_local : a_.lse_global) +
                           head.query_head * tokens + first_row;
    PRULONG_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int row = warp_row() + 8 * r;
      if (lane % 4 == 0 && row < count) store_global(lse_out + row, lse[r]);
    }

    const bool stores = warp == 0 && elect_one();
    if (stores) wait_stores_read<0>();
    sync_named(kStoreBarrier + group_, kWarpgroupThreads);
    const Shared staged = memory_ + Shape::kO + group_ * Shape::kPanels * Shape::kOutputPanel;
    const int row = 16 * warp + lane % 16;
    PRULONG_UNROLL
    for (int s = 0; s < Shape::kHeadDim / 16; ++s) {
      uint32_t words[4];
      PRULONG_UNROLL
      for (int i = 0; i < 4; ++i) {
        words[i] = pack<Shape::kType>(sums_[8 * s + 2 * i] * inverse[i % 2], sums_[8 * s + 2 * i + 1] * inverse[i % 2]);
      }
      store_matrices(staged + s / 4 * Shape::kOutputPanel + row * 128 + ((s % 4 * 2 + lane / 16) ^ (row % 8)) * 16,
                     {words[0], words[1], words[2], words[3]});
    }
    fence_async_proxy();
    sync_named(kStoreBarrier + group_, kWarpgroupThreads);
    if (shuffle(count, 0) >= 64) {
      if (stores) {
        PRULONG_UNROLL
        for (int p = 0; p < Shape::kPanels; ++p) {
          store_box(complement ? a_.delta : a_.out, staged + p * Shape::kOutputPanel, 64 * p, first_row,
                    head.query_head);
        }
        commit_stores();
      }
      return;
    }
    // A document's last rows; those after them are another document's.
    constexpr int kChunks = Shape::kHeadDim / 8;  // of 8 elements, in a row
    Word4* const out = static_cast<Word4*>(complement ? a_.delta_data : a_.out_data);
    for (int i = thread_index() % kWarpgroupThreads; i < count * kChunks; i += kWarpgroupThreads) {
      const int r = i / kChunks, chunk = i % kChunks;
      const Word4 word =
          load_shared<Word4>(staged + chunk / 8 * Shape::kOutputPanel + r * 128 + ((chunk ^ r) % 8) * 16);
      const int64_t head_row = (first_row + r) * int64_t{a_.schedule.batch.query_heads} + head.query_head;
      store_global(out + head_row * kChunks + chunk, word);
    }
  }

  using Sums = Accumulator<Shape::kHeadDim>;
  const ForwardArguments& a_;
  const Shared memory_;
  const Barriers<Shape> barriers_;
  const int group_;
  Ring<2> q_;
  Ring<Shape::kStages> k_, v_;
  // Of the item: its branch, the position of the first row, the next key block, and after which one comes which.
  Branch branch_;
  int position_, block_, near_begin_, far_end_;
  Scores scores_;
  Operand<kKeyBlock / 16> weights_;
  Sums sums_;
  Softmax softmax_;
};

template <class Shape>
PRULONG_DEVICE void run(const ForwardArguments& a) {
  const Shared memory = shared_memory();
  if (thread_index() == 0) {
    prefetch(a.q);
    prefetch(a.k);
    prefetch(a.v);
    Barriers<Shape>{memory + Shape::kBarriers}.init();
  }
  sync_cta();
  const int warpgroup = warpgroup_index();
  if (warpgroup == 0) {
    decrease_registers<Shape::kProducerRegisters>();
    if (warp_index() == 0 && elect_one()) produce<Shape>(a, memory);
  } else {
    increase_registers<Shape::kConsumerRegisters>();
    Consumer<Shape>(a, memory, warpgroup - 1).run();
  }
}

}  // namespace prulong::kernels::forward
