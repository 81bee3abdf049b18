// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <vector>

#include "csrc/cpu/tile_plan.h"

namespace prulong {

/// Scratch memory of one worker: a few flat buffers that grow to the largest tile and are then reused.
class Workspace {
 public:
  /// Which buffer; two live tensors never share one.
  enum Slot { kScores, kScoreGradients, kQueries, kOutputs, kOutputGradients, kExtra, kSlots };

  explicit Workspace(const at::TensorOptions& options) : options_(options) {}

  /// A contiguous tensor of unspecified content in the slot's buffer; what was there before is lost.
  at::Tensor take(Slot slot, at::IntArrayRef sizes);

 private:
  at::TensorOptions options_;
  std::array<at::Tensor, kSlots> buffers_;
};

/// Which scores of a masked key run are hidden; most tiles need the same few masks, which are kept.
class MaskCache {
 public:
  MaskCache(Locality locality, at::Device device) : locality_(locality), device_(device) {}

  /// Sets scores [H, rows * g, keys of the block] to `value` where the key is hidden from the query. Row r * g + i is
  /// the query at positions.begin + r.
  void fill_hidden(at::Tensor scores, Branch branch, const KeyBlock& block, Range positions, double value);

 private:
  struct Entry {
    std::array<int64_t, 5> key;
    at::Tensor mask;
  };
  const at::Tensor& find(Branch branch, const KeyRun& run, Range positions);

  Locality locality_;
  at::Device device_;
  std::vector<Entry> entries_;
};

/// out = a b, or out += a b, for [H, n, m] matrices.
void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate);

/// scores [H, M, keys of the block] = left [H, M, D] times the block's rows of keys [H, T, D], transposed.
void multiply_by_keys(const at::Tensor& scores, const at::Tensor& left, const at::Tensor& keys, const KeyBlock& block,
                      int64_t k_begin);

/// out [H, M, D] (+)= scores [H, M, keys of the block] times the block's rows of keys [H, T, D].
void multiply_over_keys(const at::Tensor& out, const at::Tensor& scores, const at::Tensor& keys, const KeyBlock& block,
                        int64_t k_begin, bool accumulate);

/// The block's rows of out [H, T, D] += scores^T left: scores [H, M, keys of the block], left [H, M, D].
void add_to_keys(const at::Tensor& out, const at::Tensor& scores, const at::Tensor& left, const KeyBlock& block,
                 int64_t k_begin);

/// Number of keys of one block.
int64_t count_keys(const KeyBlock& block);

}  // namespace prulong
