// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/address.h"
#include "csrc/hopper/backward/backward_loader.h"
#include "csrc/hopper/device/arithmetic.h"
#include "csrc/hopper/device/wgmma.h"

namespace prulong::kernels::backward {

/// A consumer warpgroup: keys 64 `group` and on of every item.
///
/// A step's products are S^T = K Q^T, dP^T = V dO^T, dV += P^T dO, dQ = dS K, dK += dS^T Q, in this order: exponentials
/// are computed under dP, dS under dV, and dQ leaves the registers under dK. All but dQ are done for one part of 64
/// queries after another. dQ needs the keys of both warpgroups; each computes 64 x 64 of it.
template <class Shape>
class Consumer {
 public:
  PRULONG_DEVICE Consumer(const BackwardArguments& arguments, Shared memory, int group)
      : a_(arguments), memory_(memory), barriers_{memory + Shape::kBarriers}, group_(group) {}

  PRULONG_DEVICE void run() {
    for (Ring<2> slot;; slot.advance()) {
      wait(barriers_.item_full(slot.stage()), slot.parity());
      const ItemSlot item{memory_ + Shape::kItems + slot.stage() * kItemBytes};
      const int steps = shuffle(item.steps(), 0);
      if (steps < 0) return;
      PRULONG_UNROLL
      for (int i = 0; i < Gradient::kSize; ++i) dk_[i] = dv_[i] = 0;
      if (steps > 0) visit(steps);
      finish(item, slot.stage());
    }
  }

 private:
  static constexpr int kPartRows = 64;
  static constexpr int kParts = Shape::kRows / kPartRows;
  static constexpr int kPartBytes = kPartRows * 128;  // of a panel
  using Gradient = Accumulator<Shape::kHeadDim>;
  using Scores = Accumulator<kPartRows>;
  using Weights = Operand<kPartRows / 16>;

  PRULONG_DEVICE Shared q_tile(int part) const {
    return memory_ + Shape::kQ + ring_.stage() * Shape::kQueryBytes + part * kPartBytes;
  }
  PRULONG_DEVICE Shared o_tile(int part) const {
    return memory_ + Shape::kO + ring_.stage() * Shape::kQueryBytes + part * kPartBytes;
  }
  PRULONG_DEVICE Shared score_tile() const { return memory_ + Shape::kScores + scores_slot_ * Shape::kScoreBytes; }

  /// Begins d = A B^T: this warpgroup's 64 rows of K or V by the rows of a part of a query tile.
  PRULONG_DEVICE void multiply_rows(Scores& d, Shared keys, Shared queries) {
    const Descriptor a = describe_k_major(keys + group_ * 8192), b = describe_k_major(queries);
    PRULONG_UNROLL
    for (int s = 0; s < Shape::kHeadDim / 16; ++s) {
      multiply<Shape::kType, Major::kK, Major::kK>(d, a.advanced(s / 4 * Shape::kKeyPanel + s % 4 * 32),
                                                   b.advanced(s / 4 * Shape::kQueryPanel + s % 4 * 32), s > 0);
    }
    commit_matrices();
  }
  /// Begins d += W B: weights by the rows of a part of a query tile.
  PRULONG_DEVICE void accumulate(Gradient& d, Weights& weights, Shared queries) {
    const Descriptor b = describe_mn_major(queries, Shape::kQueryPanel);
    PRULONG_UNROLL
    for (int s = 0; s < kPartRows / 16; ++s) {
      multiply<Shape::kType, Major::kMN>(d, weights, s, b.advanced(s * 2048), true);
    }
    commit_matrices();
  }
  /// Begins this warpgroup's part of dS K: of 64 rows its half of the columns, or of 128 rows its half.
  PRULONG_DEVICE void multiply_scores(Accumulator<64>& d) {
    const Descriptor a = describe_mn_major(score_tile() + (Shape::kRowPanels == 2 ? group_ * Shape::kKeyPanel : 0), 0);
    const Descriptor b =
        describe_mn_major(memory_ + Shape::kK + (Shape::kPanels == 2 ? group_ * Shape::kKeyPanel : 0), 0);
    PRULONG_UNROLL
    for (int s = 0; s < kKeyBlock / 16; ++s) {
      multiply<Shape::kType, Major::kMN, Major::kMN>(d, a.advanced(s * 2048), b.advanced(s * 2048), s > 0);
    }
    commit_matrices();
  }

  /// Scores that the branch does not have become -inf.
  PRULONG_DEVICE void mask(Scores& s, const Step& step, int part) {
    PRULONG_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int key = step.key_begin + 64 * group_ + warp_row() + 8 * r;
      const Range seen = seeing_positions(static_cast<Branch>(step.branch), a_.schedule.batch.locality, key);
      const int column = step.position + part * kPartRows + 2 * (lane_index() % 4);
      const int begin = seen.begin - column, end = seen.end - column;
      PRULONG_UNROLL
      for (int g = 0; g < kPartRows / 8; ++g) {
        PRULONG_UNROLL
        for (int e = 0; e < 2; ++e) {
          if (8 * g + e < begin || 8 * g + e >= end) s[4 * g + 2 * r + e] = -__builtin_inff();
        }
      }
    }
  }
  /// The thread's upper row among the warpgroup's 64.
  PRULONG_DEVICE int warp_row() const { return 16 * (warp_index() % 4) + lane_index() / 4; }

  /// Statistics of the tile's two columns in group g of 8.
  PRULONG_DEVICE Float2 statistic(int which, int g) const {
    return load_shared<Float2>(memory_ + Shape::kStatistics + ring_.stage() * Shape::kStatisticsBytes +
                               which * Shape::kRows * 4 + g * 32 + lane_index() % 4 * 8);
  }
  /// Scores to weights.
  PRULONG_DEVICE void weigh(Scores& s, float scale, int part) {
    PRULONG_UNROLL
    for (int g = 0; g < kPartRows / 8; ++g) {
      const Float2 lambda = statistic(0, part * (kPartRows / 8) + g);
      PRULONG_UNROLL
      for (int r = 0; r < 2; ++r) {
        s[4 * g + 2 * r] = exp2_fast(fused(s[4 * g + 2 * r], scale, -lambda.x));
        s[4 * g + 2 * r + 1] = exp2_fast(fused(s[4 * g + 2 * r + 1], scale, -lambda.y));
      }
    }
  }
  PRULONG_DEVICE void pack_weights(Weights& to, Scores& from) {
    PRULONG_UNROLL
    for (int s = 0; s < kPartRows / 16; ++s) {
      PRULONG_UNROLL
      for (int i = 0; i < 4; ++i) {
        to.word(s, i) = pack<Shape::kType>(from[8 * s + 2 * i], from[8 * s + 2 * i + 1]);
      }
    }
  }
  /// dP to dS = P (dP - D).
  PRULONG_DEVICE void differentiate(Scores& dp, Scores& p, int part) {
    PRULONG_UNROLL
    for (int g = 0; g < kPartRows / 8; ++g) {
      const Float2 mean = statistic(1, part * (kPartRows / 8) + g);
      PRULONG_UNROLL
      for (int r = 0; r < 2; ++r) {
        dp[4 * g + 2 * r] = p[4 * g + 2 * r] * (dp[4 * g + 2 * r] - mean.x);
        dp[4 * g + 2 * r + 1] = p[4 * g + 2 * r + 1] * (dp[4 * g + 2 * r + 1] - mean.y);
      }
    }
  }
  /// A part's dS^T to shared memory: a panel, keys by queries.
  PRULONG_DEVICE void store_scores(Weights& ds, int part) {
    const int lane = lane_index();
    const int key = 64 * group_ + 16 * (warp_index() % 4) + lane % 16;
    const Shared row = score_tile() + part * Shape::kKeyPanel + key * 128 + ((lane / 16) ^ (lane % 8)) * 16;
    PRULONG_UNROLL
    for (int s = 0; s < kPartRows / 16; ++s) {
      store_matrices(row ^ (s * 32), {ds.word(s, 0), ds.word(s, 1), ds.word(s, 2), ds.word(s, 3)});
    }
  }
  /// dQ to shared memory, from where another warp adds it to the sums.
  PRULONG_DEVICE void hand_over(Accumulator<64>& dq) {
    sync_named(kSumsEmptyBarrier + group_, kSumsThreads);
    const Shared to = memory_ + Shape::kSums + group_ * Shape::kSumBytes + thread_index() % kWarpgroupThreads * 16;
    PRULONG_UNROLL
    for (int j = 0; j < 8; ++j) {
      store_shared(to + j * 2048, Float4{dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]});
    }
    fence_async_proxy();
    arrive_named(kSumsFullBarrier + group_, kSumsThreads);
  }

  /// Begins the scores of a step.
  PRULONG_DEVICE void multiply_queries(Scores (&s)[kParts]) {
    wait(barriers_.q_full(ring_.stage()), ring_.parity());
    PRULONG_UNROLL
    for (int part = 0; part < kParts; ++part) {
      begin_matrices(s[part]);
      multiply_rows(s[part], memory_ + Shape::kK, q_tile(part));
    }
  }

  /// Begins a step's sums dV, and dK but for the last part, and leaves its dS. Scores of the first part are still on
  /// their way.
  PRULONG_DEVICE void visit_parts(Scores (&s)[kParts], Weights& p, Weights& ds, float scale) {
    wait(barriers_.o_full(ring_.stage()), ring_.parity());
    const Step step = load_shared<Step>(memory_ + Shape::kSteps + ring_.stage() * 16);
    const bool masked = shuffle(step.masked, 0) != 0;
    PRULONG_UNROLL
    for (int part = 0; part < kParts; ++part) {
      Scores dp;
      begin_matrices(dp);
      multiply_rows(dp, memory_ + Shape::kV, o_tile(part));
      if (part == 0) wait_matrices<kParts>(s[0]);
      if (masked) mask(s[part], step, part);
      weigh(s[part], scale, part);
      if (part > 0) wait_matrices<1>(p, dv_, ds, dk_);
      pack_weights(p, s[part]);
      begin_matrices(p, dv_);
      accumulate(dv_, p, o_tile(part));
      if (part + 1 < kParts) {
        wait_matrices<1>(dp, s[kParts - 1]);
      } else {
        wait_matrices<1>(dp);
      }
      differentiate(dp, s[part], part);
      pack_weights(ds, dp);
      store_scores(ds, part);
      if (part + 1 == kParts) return;
      begin_matrices(ds, dk_);
      accumulate(dk_, ds, q_tile(part));
    }
  }

  PRULONG_DEVICE void visit(int steps) {
    const float scale = a_.scale * 1.4426950408889634f;
    Scores s[kParts];
    wait(barriers_.keys_full(), keys_parity_);
    keys_parity_ ^= 1;
    multiply_queries(s);
    for (;;) {
      Weights p, ds;
      visit_parts(s, p, ds, scale);
      fence_async_proxy();
      sync_named(kScoresBarrier, 2 * kWarpgroupThreads);

      Accumulator<64> dq;
      begin_matrices(dq, ds, dk_);
      multiply_scores(dq);
      accumulate(dk_, ds, q_tile(kParts - 1));
      scores_slot_ ^= 1;
      wait_matrices<1>(p, dv_, dq);
      hand_over(dq);
      const Shared empty = barriers_.empty(ring_.stage());
      ring_.advance();
      const bool ends = --steps == 0;
      if (ends || !Shape::kScoresUnderKeys) {
        wait_matrices<0>(ds, dk_);
        release(empty);
        if (ends) return;
        multiply_queries(s);
      } else {
        multiply_queries(s);
        wait_matrices<kParts>(ds, dk_);
        release(empty);
      }
    }
  }

  /// Writes dK and dV, by way of the shared memory of K and V.
  PRULONG_DEVICE void finish(ItemSlot item, int slot) {
    const int keys = item.keys(), k_row = item.k_row(), kv_head = item.kv_head();
    sync_warp();
    release(barriers_.item_empty(slot));
    sync_named(kScoresBarrier, 2 * kWarpgroupThreads);  // neither warpgroup reads K any more
    store_gradient(dk_, a_.scale, memory_ + Shape::kK, a_.dk, k_row, keys, kv_head);
    store_gradient(dv_, 1.0f, memory_ + Shape::kV, a_.dv, k_row, keys, kv_head);
    fence_async_proxy();
    sync_warp();
    release(barriers_.keys_empty());
  }
  PRULONG_DEVICE void store_gradient(Gradient& d, float scale, Shared staged, void* to, int first_row, int count,
                                     int head) {
    const int lane = lane_index(), warp_first = 64 * group_ + 16 * (warp_index() % 4);
    const int row = warp_first + lane % 16;
    PRULONG_UNROLL
    for (int s = 0; s < Shape::kHeadDim / 16; ++s) {
      uint32_t words[4];
      PRULONG_UNROLL
      for (int i = 0; i < 4; ++i) {
        words[i] = pack<Shape::kType>(d[8 * s + 2 * i] * scale, d[8 * s + 2 * i + 1] * scale);
      }
      store_matrices(staged + s / 4 * Shape::kKeyPanel + row * 128 + ((s % 4 * 2 + lane / 16) ^ (row % 8)) * 16,
                     {words[0], words[1], words[2], words[3]});
    }
    sync_warp();
    constexpr int kChunks = Shape::kHeadDim / 8;  // of 16 bytes, in a row
    for (int i = lane; i < 16 * kChunks; i += kWarpThreads) {
      const int r = warp_first + i / kChunks, chunk = i % kChunks;
      if (r >= count) break;
      const Word4 word = load_shared<Word4>(staged + chunk / 8 * Shape::kKeyPanel + r * 128 + ((chunk ^ r) % 8) * 16);
      const int64_t head_row = packed_row(first_row + r, a_.schedule.batch.kv_heads, head);
      store_global(static_cast<Word4*>(to) + head_row * kChunks + chunk, word);
    }
  }

  const BackwardArguments& a_;
  const Shared memory_;
  const Barriers<Shape> barriers_;
  const int group_;
  Ring<Shape::kStages> ring_;
  int keys_parity_ = 0;
  int scores_slot_ = 0;
  Gradient dk_, dv_;
};

}  // namespace prulong::kernels::backward
