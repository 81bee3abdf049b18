// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <vector>

#include "csrc/hopper/device/arithmetic.h"
#include "csrc/hopper/schedule.h"
#include "tests/emulation/emulator.h"

namespace prulong::kernels::tests {

/// Queries of some sequences over a cache in pages, and what their attention is.
struct PagedExample {
  int group = 1;
  std::vector<int> is_global = {1};       // by KV head
  std::vector<int> q_lengths;             // by sequence
  std::vector<std::vector<int>> lengths;  // by sequence and KV head: entries
  Locality locality = {128, 256};
  float magnitude = 1;  // of queries and keys
};

/// The memory of a call: pages in random order, NaN wherever no entry lies, tables whose unused places hold nonsense.
class PagedCache {
 public:
  PagedCache(const PagedExample& example, ElementType type, int head_dim, uint64_t seed);
  PagedCache(const PagedCache&) = delete;
  PagedCache& operator=(const PagedCache&) = delete;

  const Batch& batch() const { return batch_; }
  float scale() const;
  /// Registers everything for an emulation.
  void register_in(device::emulation::GlobalMemory& memory);
  /// Page of an entry's block in the table, to spoil it.
  int& page(int sequence, int head, int block);
  int& length(int sequence, int head) { return lengths_[list(sequence, head)]; }
  int& q_bound(int n) { return q_bounds_[static_cast<size_t>(n)]; }
  /// Makes an entry's key and value NaN.
  void poison(int sequence, int head, int entry);

  /// Holds out and lse against the mathematics; rows of the given lists (sequence, KV head) must be NaN.
  void check(const std::vector<std::array<int, 2>>& wrong_lists = {}) const;
  /// All rows are NaN.
  void check_all_wrong() const;

  std::vector<uint16_t> q, k, v;  // [tokens, query heads, dim], [pages, kKeyBlock, dim] twice
  std::vector<uint16_t> out;
  std::vector<float> lse;

 private:
  size_t list(int sequence, int head) const;
  double value(const std::vector<uint16_t>& bits, size_t at) const;
  size_t entry(int sequence, int head, int j) const;

  PagedExample example_;
  ElementType type_;
  int dim_;
  Batch batch_ = {};
  std::vector<int> q_bounds_, table_, true_table_, lengths_;
  std::array<bool, 64> is_global_ = {};
};

/// Schedules to try: `few`, or PRULONG_EMULATION_SEEDS.
int emulation_seeds(int few);

}  // namespace prulong::kernels::tests
