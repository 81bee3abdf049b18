// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/page_memory.h"

namespace prulong {

/// Numbers from 0 on, of which the lowest is found at once: among 2^23 by a look at 2^11 words at most.
class NumberSet {
 public:
  int64_t size() const { return size_; }
  /// @pre the number is not in it.
  void insert(int64_t number);
  /// @pre the number is in it.
  void erase(int64_t number);
  /// @pre the set is not empty.
  int64_t lowest() const;

 private:
  std::vector<uint64_t> words_, summary_;  ///< a bit per number; a bit per word, set unless the word is 0
  int64_t size_ = 0;
};

/// Pages of keys and values, counted references to them, and the memory behind those that were ever used. Lowest pages
/// are handed out first, so that what is in use stays together and the rest can go back to the system.
class PagePool {
 public:
  /// @throws Error as PageMemory::reserve does.
  PagePool(int64_t pages, int64_t page, int64_t head_dim, at::ScalarType dtype, at::Device device);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  /// [pages, page, head_dim]; they keep the memory alive. Only pages that were handed out may be touched.
  const at::Tensor& k_pages() const { return k_pages_; }
  const at::Tensor& v_pages() const { return v_pages_; }

  int64_t pages() const { return pages_; }
  int64_t used() const { return used_; }
  int64_t free() const { return pages_ - used_; }
  /// Most pages used at once so far.
  int64_t most_used() const { return most_used_; }
  int32_t references(int32_t page) const { return references_[static_cast<size_t>(page)]; }

  /// Takes memory until n <= free() pages can be had without more.
  /// @throws Error if the system has none left; no page has changed then.
  void prepare(int64_t n);
  /// A page with one reference, the lowest that has memory.
  /// @pre prepare: fewer pages were taken since than it was asked for, those released meanwhile apart.
  int32_t take();
  void add_reference(int32_t page) { ++references_[static_cast<size_t>(page)]; }
  /// Gives a reference back; with the last one the page is free.
  void release(int32_t page);

  /// Bytes of keys and values in a page.
  int64_t page_bytes() const { return 2 * half_bytes_; }
  /// Bytes taken from the system.
  int64_t taken_bytes() const { return k_memory_->taken_bytes() + v_memory_->taken_bytes(); }
  /// Gives back what holds no page in use. A GPU finishes its work first.
  void trim();

 private:
  /// Pages that lie in a piece of memory, at least in part: half-open.
  std::pair<int64_t, int64_t> pages_in(int64_t piece) const;
  bool has_memory(int64_t page) const;

  int64_t pages_;
  int64_t half_bytes_;  ///< of a page's keys
  std::shared_ptr<PageMemory> k_memory_, v_memory_;
  at::Tensor k_pages_, v_pages_;
  std::vector<int32_t> references_;  ///< of pages that had memory so far
  NumberSet ready_;                  ///< free pages with memory
  int64_t used_ = 0, most_used_ = 0;
  int64_t next_piece_ = 0;  ///< the pieces before it have memory
};

}  // namespace prulong
