// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/device/platform.h"
#include "csrc/hopper/forward/forward_loader.h"
#include "csrc/hopper/forward/forward_softmax.h"

namespace prulong::kernels::forward {

/// The warpgroup that computes rows 64 `group` and on of every item.
///
/// While the weights of a step are multiplied with their values, the scores of the next step are computed and turned
/// into weights.
template <class Shape>
class Consumer {
 public:
  PRULONG_DEVICE Consumer(const ForwardArguments& arguments, Shared memory, int group)
      : a_(arguments), memory_(memory), barriers_{memory + Shape::kBarriers}, group_(group) {}

  PRULONG_DEVICE void run() {
    if (group_ == Shape::kConsumers - 1) pass_turn();  // the first group's first turn
    for (; take_item(); q_.advance()) {
      clear_sums();
      softmax_ = Softmax{};
      if (left_ > 0) visit();
      finish();
    }
    if (group_ == 0) take_turn();  // which the last group has passed on
    wait_stores<0>();
  }

 private:
  using Sums = Accumulator<Shape::kHeadDim>;
  struct alignas(8) Pair {
    float x, y;
  };
  struct Inverse {
    float of_row[2];
  };

  PRULONG_DEVICE void release_keys() {
    release(barriers_.k_empty(k_.stage()));
    k_.advance();
  }
  PRULONG_DEVICE void release_values() {
    release(barriers_.v_empty(v_.stage()));
    v_.advance();
  }
  PRULONG_DEVICE Shared work() const { return memory_ + Shape::kWork + q_.stage() * Shape::kWorkBytes; }

  /// Waits for the next item; false if there is none.
  PRULONG_DEVICE bool take_item() {
    wait(barriers_.q_full(q_.stage()), q_.parity());
    const WorkHead head = load_shared<WorkHead>(work());
    const WorkRows rows = load_shared<WorkRows>(work() + 16);
    const WorkSteps steps = load_shared<WorkSteps>(work() + 32);
    branch_ = static_cast<Branch>(shuffle(head.branch, 0));
    // A warpgroup beyond the document's rows is where no key is seen.
    constexpr int kNowhere = -(1 << 20);
    position_ = shuffle(rows.count > 64 * group_ ? rows.position + 64 * group_ : kNowhere, 0);
    left_ = shuffle(steps.count, 0);
    block_ = shuffle(steps.block, 0);
    near_begin_ = shuffle(steps.near_begin, 0);
    return shuffle(head.more, 0) != 0;
  }

  /// Goes on to the item's next key block.
  PRULONG_DEVICE void advance_block() {
    if (--block_ == near_begin_ - 1) {
      block_ = kernels::detail::lesser(block_, shuffle(load_shared<WorkSteps>(work() + 32).far_end, 0) - 1);
    }
  }

  /// Begins scores = Q K^T.
  PRULONG_DEVICE void multiply_keys() {
    const Descriptor q =
        describe_k_major(memory_ + Shape::kQ).advanced(q_.stage() * Shape::kQueryBytes + group_ * 8192);
    const Descriptor k = describe_k_major(memory_ + Shape::kK).advanced(k_.stage() * Shape::kKeyBytes);
    PRULONG_UNROLL
    for (int s = 0; s < Shape::kHeadDim / 16; ++s) {
      multiply<Shape::kType, Major::kK, Major::kK>(scores_, q.advanced(s / 4 * Shape::kQueryPanel + s % 4 * 32),
                                                   k.advanced(s / 4 * Shape::kKeyPanel + s % 4 * 32), s > 0);
    }
    commit_matrices();
  }
  /// Begins sums += weights V.
  PRULONG_DEVICE void multiply_values() {
    const Descriptor v =
        describe_mn_major(memory_ + Shape::kV, Shape::kKeyPanel).advanced(v_.stage() * Shape::kKeyBytes);
    PRULONG_UNROLL
    for (int s = 0; s < kKeyBlock / 16; ++s) {
      multiply<Shape::kType, Major::kMN>(sums_, weights_, s, v.advanced(s * 2048), true);
    }
    commit_matrices();
  }

  /// Masks the step's scores and takes them in. Returns whether sums need a correction.
  PRULONG_DEVICE bool take_scores() {
    const int first_key = block_ * kKeyBlock;
    const Locality locality = a_.schedule.batch.locality;
    if (needs_mask(branch_, locality, {position_, position_ + 64}, {first_key, first_key + kKeyBlock})) {
      const int position = position_ + warp_row();
      mask_scores(scores_, {key_limits(branch_, locality, position), key_limits(branch_, locality, position + 8)},
                  first_key);
    }
    return softmax_.take(scores_, a_.scale);
  }
  /// The scores taken last to weights.
  PRULONG_DEVICE void weigh() {
    softmax_.weigh(scores_, a_.scale);
    PRULONG_UNROLL
    for (int s = 0; s < kKeyBlock / 16; ++s) {
      PRULONG_UNROLL
      for (int i = 0; i < 4; ++i) {
        weights_.word(s, i) = pack<Shape::kType>(scores_[8 * s + 2 * i], scores_[8 * s + 2 * i + 1]);
      }
    }
  }
  PRULONG_DEVICE void clear_sums() {
    PRULONG_UNROLL
    for (int i = 0; i < Sums::kSize; ++i) sums_[i] = 0;
  }
  /// The thread's upper row among the warpgroup's 64.
  PRULONG_DEVICE int warp_row() const { return 16 * (warp_index() % 4) + lane_index() / 4; }

  PRULONG_DEVICE void take_turn() {
    if constexpr (Shape::kTurns) sync_named(kTurnBarrier + group_, 2 * kWarpgroupThreads);
  }
  PRULONG_DEVICE void pass_turn() {
    if constexpr (Shape::kTurns) {
      arrive_named(kTurnBarrier + (group_ + 1 == Shape::kConsumers ? 0 : group_ + 1), 2 * kWarpgroupThreads);
    }
  }

  /// Takes the item's steps, of which there is one at least.
  PRULONG_DEVICE void visit() {
    wait(barriers_.k_full(k_.stage()), k_.parity());
    begin_matrices(scores_);
    multiply_keys();
    wait_matrices<0>(scores_);
    release_keys();
    take_scores();  // nothing is summed yet
    weigh();
    while (--left_ > 0) {
      advance_block();
      wait(barriers_.k_full(k_.stage()), k_.parity());
      take_turn();
      begin_matrices(scores_);
      multiply_keys();
      wait(barriers_.v_full(v_.stage()), v_.parity());
      begin_matrices(sums_, weights_);
      multiply_values();
      pass_turn();
      wait_matrices<1>(scores_);
      release_keys();
      const bool corrects = take_scores();
      settle(softmax_.maximum[0] + softmax_.maximum[1]);  // the products end under the search for maxima
      wait_matrices<0>(sums_, weights_);
      release_values();
      if (corrects) softmax_.correct(sums_);
      weigh();
    }
    wait(barriers_.v_full(v_.stage()), v_.parity());
    begin_matrices(sums_, weights_);
    multiply_values();
    wait_matrices<0>(sums_, weights_);
    release_values();
  }

  /// Writes the item's log-sum-exps and output, and gives its stage back.
  PRULONG_DEVICE void finish() {
    const WorkHead head = load_shared<WorkHead>(work());
    const WorkRows rows = load_shared<WorkRows>(work() + 16);
    const Inverse inverse = finish_rows(head, rows);
    const int count = shuffle(rows.count, 0) - 64 * group_;
    if (shuffle(head.partial, 0) >= 0) {
      write_partial(head.partial, count, inverse);
    } else {
      write_rows(head, rows.first + 64 * group_, count, inverse);
    }
    sync_warp();
    release(barriers_.q_empty(q_.stage()));
  }

  /// Writes log-sum-exps. Returns what the sums are to be multiplied with.
  PRULONG_DEVICE Inverse finish_rows(WorkHead head, WorkRows rows) {
    const bool local = head.branch == static_cast<int>(Branch::kLocal);
    float* const lse_out =
        (head.partial >= 0 ? a_.partial_lse + head.partial * int64_t{Shape::kQueryRows}
                           : (local ? a_.lse_local : a_.lse_global) +
                                 head.query_head * int64_t{a_.schedule.batch.q_tokens} + rows.first) +
        64 * group_;
    Inverse inverse;
    PRULONG_UNROLL
    for (int r = 0; r < 2; ++r) {
      float sum = softmax_.sum[r];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      inverse.of_row[r] = sum > 0 ? 1.0f / sum : sum;  // 0 without keys; NaN stays
      const float lse =
          sum == 0 ? -__builtin_inff() : (softmax_.maximum[r] * a_.scale + log2_fast(sum)) * 0.69314718055994531f;
      const int row = warp_row() + 8 * r;
      if (lane_index() % 4 == 0 && row < rows.count - 64 * group_) store_global(lse_out + row, lse);
    }
    return inverse;
  }

  PRULONG_DEVICE void write_partial(int slot, int count, Inverse inverse) {
    PRULONG_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int row = warp_row() + 8 * r;
      if (row >= count) continue;
      float* const out = a_.partial_out + (slot * int64_t{Shape::kQueryRows} + 64 * group_ + row) * Shape::kHeadDim +
                         2 * (lane_index() % 4);
      PRULONG_UNROLL
      for (int i = 0; i < Shape::kHeadDim / 8; ++i) {
        store_global(reinterpret_cast<Pair*>(out + 8 * i),
                     Pair{sums_[4 * i + 2 * r] * inverse.of_row[r], sums_[4 * i + 2 * r + 1] * inverse.of_row[r]});
      }
    }
  }

  /// Stages the rows in shared memory, from where a bulk store takes them while the next item runs.
  PRULONG_DEVICE void write_rows(WorkHead head, int first_row, int count, Inverse inverse) {
    const bool complement = head.branch == static_cast<int>(Branch::kComplement);
    const int warp = warp_index() % 4, lane = lane_index();
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
        words[i] = pack<Shape::kType>(sums_[8 * s + 2 * i] * inverse.of_row[i % 2],
                                      sums_[8 * s + 2 * i + 1] * inverse.of_row[i % 2]);
      }
      store_matrices(staged + s / 4 * Shape::kOutputPanel + row * 128 + ((s % 4 * 2 + lane / 16) ^ (row % 8)) * 16,
                     {words[0], words[1], words[2], words[3]});
    }
    fence_async_proxy();
    sync_named(kStoreBarrier + group_, kWarpgroupThreads);
    if (count >= 64) {
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

  static constexpr int kStoreBarrier = 1;  // + warpgroup: its output in shared memory
  static constexpr int kTurnBarrier = 4;   // + warpgroup: it may issue a step's products

  const ForwardArguments& a_;
  const Shared memory_;
  const Barriers<Shape> barriers_;
  const int group_;
  Ring<2> q_;
  Ring<Shape::kStages> k_, v_;
  // The item: its branch, the position of the warpgroup's first row, how many steps are left, the key block of the
  // step, and the key block before which there is a gap.
  Branch branch_;
  int position_, left_, block_, near_begin_;
  Scores scores_;
  Operand<kKeyBlock / 16> weights_;
  Sums sums_;
  Softmax softmax_;
};

}  // namespace prulong::kernels::forward
