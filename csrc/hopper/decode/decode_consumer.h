// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/decode/decode_loader.h"
#include "csrc/hopper/decode/decode_merge.h"
#include "csrc/hopper/device/wgmma.h"
#include "csrc/hopper/forward/forward_softmax.h"

namespace prulong::kernels::decode {

/// The warpgroup that computes all rows of a piece against half of every key block: keys 64 `group` and on. Row r of a
/// list belongs to token r / group and to query head r mod group of the KV head's; queries are operands in registers.
///
/// The first warpgroup takes what the second has found at the end of a piece, warp by warp and thread by thread, for
/// both hold their rows in the same places.
template <class Shape>
class Consumer {
 public:
  PRULONG_DEVICE Consumer(const DecodeArguments& arguments, Shared memory, int group)
      : a_(arguments),
        memory_(memory),
        barriers_{memory + Shape::kBarriers},
        group_(group),
        warp_(shuffle(warp_index() % 4, 0)),
        heads_(arguments.batch.group()) {}

  PRULONG_DEVICE void run(Walk walk, int cta) {
    if (group_ == 0) arrive_named(kTaken + warp_, 2 * kWarpThreads);
    PRULONG_UNROLL
    for (int s = 0; s < kHalfSlices; ++s) {  // of warps without rows; their products are never looked at
      PRULONG_UNROLL
      for (int i = 0; i < 4; ++i) weights_.word(s, i) = 0;
    }
    for (Piece piece; walk.next(&piece);) {
      rows_ = shuffle(piece.list.tokens * heads_, 0);
      begin(piece.list);
      for (int step = piece.steps.begin; step < piece.steps.end; ++step) {
        visit(piece.list, piece.list.blocks.at(step) * kKeyBlock + Shape::kHalf * group_);
      }
      if (16 * warp_ < rows_) join();
      if (group_ == 0) finish(piece, cta);
    }
    if (group_ == 1) sync_named(kTaken + warp_, 2 * kWarpThreads);
  }

 private:
  static constexpr int kHalfSlices = Shape::kHalf / 16;
  using Half = Accumulator<Shape::kHalf>;
  using Sums = Accumulator<Shape::kHeadDim>;

  /// The thread's row 0 <= r < 2 among the list's.
  PRULONG_DEVICE int row(int r) const { return 16 * warp_ + lane_index() / 4 + 8 * r; }
  /// Where a row stands among all [q tokens, query heads].
  PRULONG_DEVICE OutputRow output(const List& list, int row) const {
    return {list.first_token + row / heads_, list.kv_head * heads_ + row % heads_};
  }

  /// Loads the queries of a list's rows.
  PRULONG_DEVICE void begin(const List& list) {
    softmax_ = Softmax{};
    PRULONG_UNROLL
    for (int i = 0; i < Sums::kSize; ++i) sums_[i] = 0;
    PRULONG_UNROLL
    for (int r = 0; r < 2; ++r) {
      const bool there = row(r) < rows_;
      const OutputRow place = output(list, there ? row(r) : 0);
      const int position = list.length - list.tokens + place.token - list.first_token;
      limits_[r] = key_limits(list.branch, a_.batch.locality, there ? position : -1);
      const auto* const words = static_cast<const uint32_t*>(a_.q) +
                                packed_row(place.token, a_.batch.query_heads, place.head) * (Shape::kHeadDim / 2) +
                                lane_index() % 4;
      PRULONG_UNROLL
      for (int s = 0; s < Shape::kHeadDim / 16; ++s) {
        queries_.word(s, r) = there ? load_global(words + 8 * s) : 0;
        queries_.word(s, 2 + r) = there ? load_global(words + 8 * s + 4) : 0;
      }
    }
  }

  /// Waits for the next tile. Returns where the consumer's half of it begins.
  PRULONG_DEVICE Shared take_tile() {
    wait(barriers_.full(ring_.stage()), ring_.parity());
    return memory_ + Shape::kTiles + ring_.stage() * Shape::kTileBytes + group_ * Shape::kHalf * 128;
  }
  PRULONG_DEVICE void release_tile() {
    release(barriers_.empty(ring_.stage()));
    ring_.advance();
  }

  /// Takes the keys from first_key on in: the consumer's half of a key block.
  PRULONG_DEVICE void visit(const List& list, int first_key) {
    const Descriptor k = describe_k_major(take_tile());
    const bool found = load_shared<int>(memory_ + Shape::kPages + 4 * ring_.stage()) >= 0;
    begin_matrices(scores_, queries_);
    PRULONG_UNROLL
    for (int s = 0; s < Shape::kHeadDim / 16; ++s) {
      multiply<Shape::kType, Major::kK>(scores_, queries_, s, k.advanced(s / 4 * Shape::kKeyPanel + s % 4 * 32), s > 0);
    }
    commit_matrices();
    wait_matrices<0>(scores_, queries_);
    sync_warp();  // all lanes have read the page
    release_tile();
    if (16 * warp_ < rows_) weigh(list, first_key, found);

    const Shared values = take_tile();
    mend(values, list.length - first_key);
    const Descriptor v = describe_mn_major(values, Shape::kKeyPanel);
    begin_matrices(sums_, weights_);
    PRULONG_UNROLL
    for (int s = 0; s < kHalfSlices; ++s) {
      multiply<Shape::kType, Major::kMN>(sums_, weights_, s, v.advanced(s * 2048), true);
    }
    commit_matrices();
    wait_matrices<0>(sums_, weights_);
    release_tile();
  }

  /// Scores to weights.
  PRULONG_DEVICE void weigh(const List& list, int first_key, bool found) {
    const Range positions = {list.length - list.tokens, list.length};
    if (needs_mask(list.branch, a_.batch.locality, positions, {first_key, first_key + Shape::kHalf})) {
      mask_scores(scores_, limits_, first_key);
    }
    const bool corrects = softmax_.take(scores_, a_.scale);
    softmax_.weigh(scores_, a_.scale);
    if (corrects) softmax_.correct(sums_);
    if (!found) softmax_.sum[0] = softmax_.sum[1] = __builtin_nanf("");
    PRULONG_UNROLL
    for (int s = 0; s < kHalfSlices; ++s) {
      PRULONG_UNROLL
      for (int i = 0; i < 4; ++i) {
        weights_.word(s, i) = pack<Shape::kType>(scores_[8 * s + 2 * i], scores_[8 * s + 2 * i + 1]);
      }
    }
  }

  /// Zeros the values from key `valid` of the half on: their weights are 0, but 0 * NaN is NaN.
  PRULONG_DEVICE void mend(Shared values, int valid) {
    if (valid >= Shape::kHalf) return;
    const int first = 8 * kernels::detail::greater(valid, 0);
    for (int chunk = first + thread_index() % kWarpgroupThreads; chunk < 8 * Shape::kHalf; chunk += kWarpgroupThreads) {
      PRULONG_UNROLL
      for (int p = 0; p < Shape::kPanels; ++p) {
        store_shared(values + p * Shape::kKeyPanel + 16 * chunk, Word4{0, 0, 0, 0});
      }
    }
    fence_async_proxy();
    sync_named(kMended + group_, kWarpgroupThreads);
  }

  /// Joins the results of both consumers in the first, for a warp with rows.
  PRULONG_DEVICE void join() {
    PRULONG_UNROLL
    for (int r = 0; r < 2; ++r) {
      softmax_.sum[r] += shuffle_xor(softmax_.sum[r], 1);
      softmax_.sum[r] += shuffle_xor(softmax_.sum[r], 2);
    }
    const Shared gift = memory_ + Shape::kGift + 16 * (thread_index() % kWarpgroupThreads);
    const auto vector = [&](int n) { return gift + n * 16 * kWarpgroupThreads; };
    constexpr int kStatistics = Shape::kGiftVectors - 1;
    if (group_ == 1) {
      sync_named(kTaken + warp_, 2 * kWarpThreads);
      PRULONG_UNROLL
      for (int n = 0; n < kStatistics; ++n) {
        store_shared(vector(n), Float4{sums_[4 * n], sums_[4 * n + 1], sums_[4 * n + 2], sums_[4 * n + 3]});
      }
      store_shared(vector(kStatistics),
                   Float4{softmax_.maximum[0], softmax_.maximum[1], softmax_.sum[0], softmax_.sum[1]});
      arrive_named(kGiven + warp_, 2 * kWarpThreads);
      return;
    }
    sync_named(kGiven + warp_, 2 * kWarpThreads);
    const Float4 other = load_shared<Float4>(vector(kStatistics));
    const float maximum[2] = {other.x, other.y}, sum[2] = {other.z, other.w};
    float weight[2];  // of the other's results
    PRULONG_UNROLL
    for (int r = 0; r < 2; ++r) {
      const float top = largest(softmax_.maximum[r], maximum[r]);
      softmax_.correction[r] = exp2_fast((softmax_.maximum[r] - top) * a_.scale);
      weight[r] = exp2_fast((maximum[r] - top) * a_.scale);
      softmax_.maximum[r] = top;
      softmax_.sum[r] = softmax_.sum[r] * softmax_.correction[r] + sum[r] * weight[r];
    }
    softmax_.correct(sums_);
    PRULONG_UNROLL
    for (int n = 0; n < kStatistics; ++n) {
      const Float4 values = load_shared<Float4>(vector(n));
      sums_[4 * n] += values.x * weight[0];
      sums_[4 * n + 1] += values.y * weight[0];
      sums_[4 * n + 2] += values.z * weight[1];
      sums_[4 * n + 3] += values.w * weight[1];
    }
    arrive_named(kTaken + warp_, 2 * kWarpThreads);
  }

  /// Writes the piece's results: outputs, or partial ones. Whoever leaves the last partial result of a list merges
  /// them.
  PRULONG_DEVICE void finish(const Piece& piece, int cta) {
    const bool whole = piece.pieces == 1;
    const int slot = partial_slot(piece, cta - piece.first_cta);
    PRULONG_UNROLL
    for (int r = 0; r < 2; ++r) {
      if (row(r) >= rows_) continue;
      const float sum = softmax_.sum[r];
      const float inverse = sum > 0 ? 1.0f / sum : sum;  // 0 without keys; NaN stays
      const float lse = sum == 0 ? -__builtin_inff() : softmax_.maximum[r] * a_.scale + log2_fast(sum);
      const int column = 2 * (lane_index() % 4);
      if (whole) {
        const OutputRow place = output(piece.list, row(r));
        if (column == 0) store_global(place.lse(a_), lse * kLn2);
        uint32_t* const out = place.template out<Shape>(a_) + column / 2;
        PRULONG_UNROLL
        for (int i = 0; i < Sums::kSize / 4; ++i) {
          store_global(out + 4 * i,
                       pack<Shape::kType>(sums_[4 * i + 2 * r] * inverse, sums_[4 * i + 2 * r + 1] * inverse));
        }
      } else {
        const int64_t at = partial_row(slot, kDecodeRows, row(r));
        if (column == 0) store_global(a_.partial_lse + at, lse);
        auto* const out = reinterpret_cast<Float2*>(a_.partial_out + at * Shape::kHeadDim + column);
        PRULONG_UNROLL
        for (int i = 0; i < Sums::kSize / 4; ++i) {
          store_global(out + 4 * i, Float2{sums_[4 * i + 2 * r] * inverse, sums_[4 * i + 2 * r + 1] * inverse});
        }
      }
    }
    if (!whole && arrives_last(piece)) merge<Shape>(a_, piece, thread_index() % kWarpgroupThreads);
  }

  /// Counts the warpgroup's partial result in. Is it the last of its list?
  PRULONG_DEVICE bool arrives_last(const Piece& piece) {
    sync_named(kWritten, kWarpgroupThreads);
    int* const arrivals = a_.arrivals + piece.first_cta;
    if (thread_index() % kWarpgroupThreads == 0) {
      const bool last = fetch_add_ordered(arrivals, 1) == piece.pieces - 1;
      if (last) store_global(arrivals, 0);  // for the next launch
      store_shared(memory_ + Shape::kArrived, last ? 1 : 0);
    }
    sync_named(kWritten, kWarpgroupThreads);
    return load_shared<int>(memory_ + Shape::kArrived) != 0;
  }

  // Barriers by number; those of a warp pair: + warp.
  static constexpr int kGiven = 1;     // the second consumer's results lie in shared memory
  static constexpr int kTaken = 5;     // they have been read
  static constexpr int kMended = 9;    // + consumer: values behind the list's end are zero
  static constexpr int kWritten = 11;  // partial results lie in global memory; then, who is last in shared memory

  const DecodeArguments& a_;
  const Shared memory_;
  const Barriers<Shape> barriers_;
  const int group_, warp_, heads_;
  Ring<Shape::kStages> ring_;
  int rows_ = 0;  // of the piece
  KeyLimits limits_[2];
  Operand<Shape::kHeadDim / 16> queries_;
  Half scores_;
  Operand<kHalfSlices> weights_;
  Sums sums_;
  Softmax softmax_;
};

}  // namespace prulong::kernels::decode
