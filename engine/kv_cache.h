// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/page_pool.h"

namespace prulong {

/// What a cache is for, and how much it may hold.
struct KvCacheOptions {
  int64_t layers, kv_heads, head_dim;
  std::vector<uint8_t> is_global;  ///< [layers * kv_heads], 1 = global; empty: every head is
  int64_t sink = 0, window = 1;    ///< of local heads
  /// Tokens that truncate can take back without a local head missing an entry. Local heads keep as many entries more.
  int64_t slack = 0;
  int64_t page = 32;  ///< entries of a page, a power of two; 128 on Hopper GPUs, whose kernels' key block it is
  int64_t bytes;      ///< most bytes of keys and values; memory is taken page by page as it is needed
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
};

/// What the operators need to know of one step: the new tokens of some sequences, and where every head's entries are
/// while the layer attends. On the cache's device, all layers at once.
struct CacheStep {
  at::Tensor page_table;    ///< [layers, B, Hkv, N] int32
  at::Tensor lengths;       ///< [layers, B, Hkv] int32, the new tokens included
  at::Tensor cu_seqlens_q;  ///< [B + 1] int32
  int64_t max_seqlen_q = 0;
  /// By layer: pages to copy (from, to) before the layer writes. They were shared with a fork.
  std::vector<std::vector<std::pair<int32_t, int32_t>>> copies;
};

/// Which keys exist: per layer, sequence and KV head an ordered list of kept entries (rotated key and value), in pages
/// that belong to one head each. Global heads keep everything; local heads give back whole pages that no later query
/// can see; `keep` rewrites a head's list. The book is kept on the host, the entries lie on the device.
///
/// A local head keeps the pages that hold the sink, and from the page on that holds the first entry in the window of
/// the earliest later query. Behind the sink's pages, place in the list = position - a multiple of `page`, so attention
/// by places (csrc/ops/paged_attention.h) sees exactly the entries that positions would show.
///
/// All layers share one pool, so the pages that a prompt's chunk needs while one layer attends serve the next layer
/// too: the work of all layers belongs on one stream. Rows of a page past a list's end hold anything.
class KvCache {
 public:
  using Sequence = int64_t;

  /// @throws Error if a number is out of range, the mask has another size, or `bytes` hold less than a page per head.
  explicit KvCache(const KvCacheOptions& options);

  const KvCacheOptions& options() const { return options_; }
  /// [pages, page, head_dim] each, on the device. Their addresses never change.
  const at::Tensor& k_pages() const { return pool_.k_pages(); }
  const at::Tensor& v_pages() const { return pool_.v_pages(); }
  /// [kv_heads] bool, on the device: a layer's global heads.
  at::Tensor is_global(int64_t layer) const { return is_global_[layer]; }

  /// A new, empty sequence.
  Sequence add();
  /// A sequence with the same entries, in shared pages: a page is copied when one of its owners writes into it.
  /// @throws Error if there is no such sequence (all functions here).
  Sequence fork(Sequence sequence);
  /// Gives all its pages back.
  void drop(Sequence sequence);

  /// Books counts[i] >= 0 new tokens for sequences[i] (each at most once) in every layer, and what local heads give
  /// back after the layer has attended. The caller then runs the layers in order: copies, append_kv, paged_attention.
  /// If that fails midway, drop these sequences.
  /// @throws Error if there are not enough pages, or the system has no memory for them, with need and room; if a
  /// sequence is given twice or a count is out of range. The cache is unchanged then.
  CacheStep append(const std::vector<Sequence>& sequences, const std::vector<int64_t>& counts);
  /// Makes a step's copies of one layer. To be called before append_kv.
  void copy_pages(const CacheStep& step, int64_t layer);

  /// Keeps only the given entries of one global head, in this order: eviction. Does not reach pages of forks.
  /// @param places  [n] int64 on the CPU or the cache's device, places in the head's list, rising.
  /// @throws Error if the head is local, a place is out of range or not rising, or there are not enough pages.
  void keep(int64_t layer, Sequence sequence, int64_t head, const at::Tensor& places);

  /// Takes the last n tokens back: speculative decoding. Local heads allow `slack` tokens or more, heads after keep the
  /// tokens since then; back to nothing, and to what the sink's pages hold, local heads always can.
  /// @throws Error if n is more than the sequence has, or if some head no longer holds what later queries would see;
  /// the cache is unchanged then.
  void truncate(Sequence sequence, int64_t n);

  /// Tokens appended so far, less those taken back.
  int64_t tokens(Sequence sequence) const;
  /// Entries that one head holds, and of a sequence's heads together.
  int64_t entries(int64_t layer, Sequence sequence, int64_t head) const;
  int64_t entries(Sequence sequence) const;

  struct Bytes {
    int64_t allocated;  ///< memory taken from the system
    int64_t in_use;     ///< pages that some sequence has, each counted once
    int64_t peak;       ///< most `in_use` so far, while a layer attends included
  };
  Bytes bytes() const;
  /// Gives memory without pages in use back to the system (it waits for a GPU).
  void trim() { pool_.trim(); }

  /// Pages that a sequence takes at most, from empty to `tokens` tokens in chunks of at most `chunk`, and while a layer
  /// attends included.
  int64_t pages_needed(int64_t tokens, int64_t chunk) const;
  /// Pages of the pool, and those that are free.
  int64_t pages() const { return pool_.pages(); }
  int64_t free_pages() const { return pool_.free(); }

 private:
  /// The list of one layer's KV head in one sequence.
  struct Head {
    std::vector<int32_t> pages;  ///< as many as hold the entries
    int64_t length = 0;          ///< entries
    int64_t dropped = 0;         ///< pages given back behind those of the sink; of a local head
    int64_t fixed = 0;           ///< first entries that are what keep left: how they came about is not known any more
  };
  struct Book {
    int64_t tokens = 0;
    std::vector<Head> heads;  ///< [layers, kv_heads]
  };
  /// A sequence that a step appends to.
  struct Growth {
    Book* book;
    int64_t count;
  };
  /// What a step will take.
  struct Plan {
    int64_t pages = 0;   ///< at most at once, beyond those in use before
    int64_t taken = 0;   ///< in all
    int64_t widest = 0;  ///< most pages of a head
  };
  Book& book(Sequence sequence);
  const Book& book(Sequence sequence) const;
  /// Of a head in Book::heads.
  size_t index(int64_t layer, int64_t head) const;
  int64_t pages_for(int64_t entries) const { return (entries + options_.page - 1) / options_.page; }
  /// Gives pages [begin, end) of a list back.
  void release_pages(Head& head, int64_t begin, int64_t end);

  std::vector<Growth> growths(const std::vector<Sequence>& sequences, const std::vector<int64_t>& counts);
  Plan plan(const std::vector<Growth>& growths) const;
  bool writes_into_last(const Head& head, int64_t count) const;
  /// Pages behind the sink's that no query sees any more once a sequence has so many tokens.
  int64_t hidden_pages(const Head& head, int64_t tokens) const;
  /// Adds entries to a list, with pages of its own for them.
  void grow(Head& head, int64_t count, std::vector<std::pair<int32_t, int32_t>>& copies);

  KvCacheOptions options_;
  PagePool pool_;
  std::unordered_map<Sequence, Book> books_;
  Sequence next_sequence_ = 0;
  at::Tensor is_global_;  ///< [layers, kv_heads] bool, on the device
  int64_t sink_pages_;
  /// The page table of the last step, which serves the next one if no list has other pages.
  std::vector<Sequence> last_sequences_;
  at::Tensor last_table_;
  bool stale_ = true;  ///< have pages been given back or replaced since?
};

}  // namespace prulong
