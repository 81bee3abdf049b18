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

/// Page tables and lengths of an example: pages in random order, nonsense in the tables' unused places.
class PagedLists {
 public:
  PagedLists(const PagedExample& example, int head_dim, uint64_t seed);
  PagedLists(const PagedLists&) = delete;
  PagedLists& operator=(const PagedLists&) = delete;

  const Batch& batch() const { return batch_; }
  /// The table's place of an entry's block, a length, and a bound of the queries, to spoil them.
  int& page(int sequence, int head, int block) { return table_[place(sequence, head, block)]; }
  int& length(int sequence, int head) { return lengths_[list(sequence, head)]; }
  int& q_bound(int n) { return q_bounds_[static_cast<size_t>(n)]; }

 protected:
  size_t list(int sequence, int head) const { return static_cast<size_t>(sequence * batch_.kv_heads + head); }
  size_t place(int sequence, int head, int block) const {
    return list(sequence, head) * static_cast<size_t>(batch_.paged.table_pages) + static_cast<size_t>(block);
  }

  PagedExample example_;
  Batch batch_ = {};
  std::vector<int> table_, true_table_;

 private:
  std::vector<int> q_bounds_, lengths_;
  std::array<bool, 64> is_global_ = {};
};

/// The memory of a call: random queries, keys and values, NaN wherever no entry lies.
class PagedCache : public PagedLists {
 public:
  PagedCache(const PagedExample& example, ElementType type, int head_dim, uint64_t seed);

  float scale() const;
  /// Registers everything for an emulation.
  void register_in(device::emulation::GlobalMemory& memory);

  /// Holds out and lse against the mathematics; rows of the given lists (sequence, KV head) must be NaN.
  void check(const std::vector<std::array<int, 2>>& wrong_lists = {}) const;
  /// The largest errors of out, of what plain PyTorch would make of it in the tensors' type, and of lse.
  struct Errors {
    double out, plain, lse;
    bool small() const { return out <= 2 * plain + 1e-6 && lse <= 1e-4; }
  };
  Errors errors(const std::vector<std::array<int, 2>>& wrong_lists = {}) const;
  /// All rows are NaN.
  void check_all_wrong() const;

  std::vector<uint16_t> q, k, v;  // [tokens, query heads, dim], [pages, kKeyBlock, dim] twice
  std::vector<uint16_t> out;
  std::vector<float> lse;

 private:
  double value(const std::vector<uint16_t>& bits, size_t at) const;
  size_t entry(int sequence, int head, int j) const;

  ElementType type_;
  size_t dim_;
};

/// Schedules to try: `few`, or PRULONG_EMULATION_SEEDS.
int emulation_seeds(int few);

}  // namespace prulong::kernels::tests
