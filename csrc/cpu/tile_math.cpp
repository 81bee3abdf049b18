// SPDX-License-Identifier: MIT
#include "csrc/cpu/tile_math.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>

#include <utility>

namespace prulong {
namespace {

// Calls body(first column, begin, end) for each contiguous segment of keys: adjacent runs make one matrix product.
template <typename Body>
void for_each_segment(const KeyBlock& block, Body body) {
  int64_t column = 0;
  for (size_t i = 0; i < block.size();) {
    int64_t begin = block[i].begin;
    const int64_t end = block[i].end;
    // Runs come from right to left.
    for (++i; i < block.size() && block[i].end == begin; ++i) begin = block[i].begin;
    body(column, begin, end);
    column += end - begin;
  }
}

}  // namespace

at::Tensor Workspace::take(Slot slot, at::IntArrayRef sizes) {
  at::Tensor& buffer = buffers_[slot];
  const int64_t numel = c10::multiply_integers(sizes);
  if (!buffer.defined() || buffer.numel() < numel) buffer = at::empty({numel}, options_);
  return buffer.narrow(0, 0, numel).view(sizes);
}

const at::Tensor& MaskCache::find(Branch branch, const KeyRun& run, Range positions) {
  // Key column c and query row r stand for run.begin + c and positions.begin + r, so only the difference matters (and,
  // for the sink, which side of it the run is on).
  const bool in_sink = run.end <= locality_.sink;
  const std::array<int64_t, 5> key = {static_cast<int64_t>(branch), run.begin - positions.begin, run.size(),
                                      positions.size(), in_sink};
  for (const Entry& entry : entries_) {
    if (entry.key == key) return entry.mask;
  }
  const at::Tensor all = at::ones({positions.size(), run.size()}, at::TensorOptions().dtype(at::kBool).device(device_));
  const int64_t shift = positions.begin - run.begin;  // of the diagonal
  at::Tensor mask;
  if (branch == Branch::kComplement) {
    mask = all.triu(shift - locality_.window + 1);
  } else {
    mask = all.triu(shift + 1);
    if (branch == Branch::kLocal && !in_sink) mask.logical_or_(all.tril(shift - locality_.window));
  }
  constexpr size_t kKept = 8;
  if (entries_.size() == kKept) entries_.erase(entries_.begin());
  entries_.push_back({key, mask.unsqueeze(1)});
  return entries_.back().mask;
}

void MaskCache::fill_hidden(at::Tensor scores, Branch branch, const KeyBlock& block, Range positions, double value) {
  const int64_t rows = positions.size();
  int64_t column = 0;
  // for_each_segment lays a segment out in key order, so its runs, listed from right to left, fill it from its end.
  for (size_t i = 0; i < block.size();) {
    size_t last = i;
    int64_t width = block[i].size();
    while (last + 1 < block.size() && block[last + 1].end == block[last].begin) {
      ++last;
      width += block[last].size();
    }
    const int64_t begin = block[last].begin;
    for (; i <= last; ++i) {
      if (!block[i].masked) continue;
      const at::Tensor part = scores.narrow(2, column + block[i].begin - begin, block[i].size());
      const int64_t group = scores.size(1) / rows;
      part.unflatten(1, {rows, group}).masked_fill_(find(branch, block[i], positions), value);
    }
    column += width;
  }
}

void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  if (out.size(0) == 1) {  // plain products take strided operands as they are
    at::Tensor out2 = out.select(0, 0);
    const at::Tensor a2 = a.select(0, 0);
    const at::Tensor b2 = b.select(0, 0);
    if (accumulate) {
      at::addmm_out(out2, out2, a2, b2);
    } else {
      at::mm_out(out2, a2, b2);
    }
    return;
  }
  at::Tensor target = out;
  if (accumulate) {
    at::baddbmm_out(target, target, a, b);
  } else {
    at::bmm_out(target, a, b);
  }
}

void multiply_by_keys(const at::Tensor& scores, const at::Tensor& left, const at::Tensor& keys, const KeyBlock& block,
                      int64_t k_begin) {
  for_each_segment(block, [&](int64_t column, int64_t begin, int64_t end) {
    multiply(scores.narrow(2, column, end - begin), left, keys.narrow(1, k_begin + begin, end - begin).transpose(1, 2),
             false);
  });
}

void multiply_over_keys(const at::Tensor& out, const at::Tensor& scores, const at::Tensor& keys, const KeyBlock& block,
                        int64_t k_begin, bool accumulate) {
  for_each_segment(block, [&](int64_t column, int64_t begin, int64_t end) {
    multiply(out, scores.narrow(2, column, end - begin), keys.narrow(1, k_begin + begin, end - begin), accumulate);
    accumulate = true;
  });
}

void add_to_keys(const at::Tensor& out, const at::Tensor& scores, const at::Tensor& left, const KeyBlock& block,
                 int64_t k_begin) {
  for_each_segment(block, [&](int64_t column, int64_t begin, int64_t end) {
    multiply(out.narrow(1, k_begin + begin, end - begin), scores.narrow(2, column, end - begin).transpose(1, 2), left,
             true);
  });
}

int64_t count_keys(const KeyBlock& block) {
  int64_t count = 0;
  for (const KeyRun& run : block) count += run.size();
  return count;
}

}  // namespace prulong
