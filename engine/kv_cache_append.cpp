// SPDX-License-Identifier: MIT
// The book-keeping of a step: which pages every head takes and gives back, layer by layer.
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>

#include "common/error.h"
#include "engine/kv_cache.h"

namespace prulong {
namespace {

constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();

/// References to pages as a plan would leave them.
class Counts {
 public:
  explicit Counts(const PagePool& pool) : pool_(pool) {}
  /// Takes one away. @returns what is left.
  int32_t release(int32_t page) {
    const int32_t now = pool_.references(page);
    if (now == 1) return 0;  // its only owner looks at it once
    return --shared_.try_emplace(page, now).first->second;
  }
  bool shared(int32_t page) const {
    if (pool_.references(page) == 1) return false;
    const auto found = shared_.find(page);
    return found == shared_.end() || found->second > 1;
  }

 private:
  const PagePool& pool_;
  std::unordered_map<int32_t, int32_t> shared_;
};

}  // namespace

std::vector<KvCache::Growth> KvCache::growths(const std::vector<Sequence>& sequences,
                                              const std::vector<int64_t>& counts) {
  if (sequences.size() != counts.size()) {
    throw Error("kv cache: append: " + std::to_string(sequences.size()) + " sequences, but " +
                std::to_string(counts.size()) + " counts of new tokens");
  }
  std::vector<Sequence> sorted = sequences;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) {
    throw Error("kv cache: append: sequence " + std::to_string(*twice) + " is given twice; give it once a step");
  }
  std::vector<Growth> found;
  int64_t sum = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    Book& grown = book(sequences[i]);
    if (counts[i] < 0 || counts[i] > kMostTokens - grown.tokens || (sum += counts[i]) > kMostTokens) {
      throw Error("kv cache: append: counts must not be negative, nor a sequence or a step longer than " +
                  std::to_string(kMostTokens) + " tokens; got " + std::to_string(counts[i]) + " for sequence " +
                  std::to_string(sequences[i]) + " with " + std::to_string(grown.tokens));
    }
    found.push_back({&grown, counts[i]});
  }
  return found;
}

KvCache::Plan KvCache::plan(const std::vector<Growth>& growths) const {
  Plan plan;
  Counts counts(pool_);
  int64_t now = 0;
  const auto heads = static_cast<size_t>(options_.kv_heads);
  std::vector<bool> copied(growths.size() * heads);  // of a layer: does the list get a page for its last one?
  for (size_t layer = 0; layer < static_cast<size_t>(options_.layers); ++layer) {
    for (size_t i = 0; i < copied.size(); ++i) {
      const Growth& growth = growths[i / heads];
      const Head& head = growth.book->heads[layer * heads + i % heads];
      const int64_t needs = pages_for(head.length + growth.count);
      copied[i] = writes_into_last(head, growth.count) && counts.shared(head.pages.back());
      if (copied[i]) counts.release(head.pages.back());
      const int64_t taken = needs - static_cast<int64_t>(head.pages.size()) + copied[i];
      now += taken;
      plan.taken += taken;
      plan.widest = std::max(plan.widest, needs);
    }
    plan.pages = std::max(plan.pages, now);
    for (size_t i = 0; i < copied.size(); ++i) {
      const Growth& growth = growths[i / heads];
      const size_t index = layer * heads + i % heads;
      if (options_.is_global[index] != 0) continue;
      const Head& head = growth.book->heads[index];
      const int64_t kept = static_cast<int64_t>(head.pages.size()) - copied[i];  // pages that it had and still has
      const int64_t hidden = hidden_pages(head, growth.book->tokens + growth.count);
      for (int64_t page = sink_pages_; page < sink_pages_ + hidden; ++page) {
        now -= page >= kept || counts.release(head.pages[static_cast<size_t>(page)]) == 0;
      }
    }
  }
  return plan;
}

bool KvCache::writes_into_last(const Head& head, int64_t count) const {
  return count > 0 && head.length % options_.page != 0;
}

int64_t KvCache::hidden_pages(const Head& head, int64_t tokens) const {
  const int64_t first = std::max<int64_t>(0, tokens - options_.slack - options_.window + 1);
  return std::max<int64_t>(0, first / options_.page - sink_pages_ - head.dropped);
}

void KvCache::grow(Head& head, int64_t count, std::vector<std::pair<int32_t, int32_t>>& copies) {
  const int64_t needs = pages_for(head.length + count);
  if (writes_into_last(head, count) && pool_.references(head.pages.back()) > 1) {
    const int32_t shared = head.pages.back();
    pool_.release(shared);
    head.pages.back() = pool_.take();
    copies.emplace_back(shared, head.pages.back());
  }
  while (static_cast<int64_t>(head.pages.size()) < needs) head.pages.push_back(pool_.take());
  head.length += count;
}

CacheStep KvCache::append(const std::vector<Sequence>& sequences, const std::vector<int64_t>& counts) {
  const std::vector<Growth> growing = growths(sequences, counts);
  const Plan needed = plan(growing);
  if (needed.pages > pool_.free()) {
    throw Error("kv cache: append: " + std::to_string(needed.pages) + " pages are needed, " +
                std::to_string(pool_.free()) + " of " + std::to_string(pool_.pages()) +
                " are free; drop sequences, append fewer tokens at once or make the cache larger");
  }
  pool_.prepare(needed.pages);

  // One buffer, so one copy to the device: the table unless the last one still holds, lengths, bounds.
  const bool same_table = needed.taken == 0 && !stale_ && last_sequences_ == sequences;
  const int64_t layers = options_.layers, heads = options_.kv_heads, batch = static_cast<int64_t>(sequences.size());
  constexpr int64_t kWidthStep = 16;  // the shape changes rarely
  const int64_t width = std::max(kWidthStep, (needed.widest + kWidthStep - 1) / kWidthStep * kWidthStep);
  const int64_t lists = layers * batch * heads, table_size = same_table ? 0 : lists * width;
  const auto ints = at::TensorOptions(at::kInt);
  const at::Tensor host = at::empty({table_size + lists + batch + 1}, ints.pinned_memory(options_.device.is_cuda()));
  const at::Tensor device = options_.device.is_cuda() ? at::empty(host.sizes(), ints.device(options_.device)) : host;
  int32_t* row = host.mutable_data_ptr<int32_t>();
  int32_t* length = row + table_size;
  int32_t* bound = length + lists;

  CacheStep step;
  step.copies.resize(static_cast<size_t>(layers));
  stale_ = false;  // until pages are given back
  for (size_t layer = 0; layer < static_cast<size_t>(layers); ++layer) {
    const auto first = layer * static_cast<size_t>(heads), last = first + static_cast<size_t>(heads);
    for (const Growth& growth : growing) {
      for (size_t h = first; h < last; ++h) {
        Head& head = growth.book->heads[h];
        grow(head, growth.count, step.copies[layer]);
        *length++ = static_cast<int32_t>(head.length);
        if (same_table) continue;
        std::fill(std::copy(head.pages.begin(), head.pages.end(), row), row + width, 0);
        row += width;
      }
    }
    for (const Growth& growth : growing) {
      for (size_t h = first; h < last; ++h) {
        Head& head = growth.book->heads[h];
        if (options_.is_global[h] != 0) continue;
        const int64_t hidden = hidden_pages(head, growth.book->tokens + growth.count);
        release_pages(head, sink_pages_, sink_pages_ + hidden);
        head.dropped += hidden;
        head.length -= hidden * options_.page;
      }
    }
  }
  *bound = 0;
  for (const Growth& growth : growing) {
    growth.book->tokens += growth.count;
    step.max_seqlen_q = std::max(step.max_seqlen_q, growth.count);
    bound[1] = bound[0] + static_cast<int32_t>(growth.count);
    ++bound;
  }
  if (options_.device.is_cuda()) device.copy_(host, /*non_blocking=*/true);
  if (!same_table) {
    last_sequences_ = sequences;
    last_table_ = device.narrow(0, 0, table_size).view({layers, batch, heads, width});
  }
  step.page_table = last_table_;
  step.lengths = device.narrow(0, table_size, lists).view({layers, batch, heads});
  step.cu_seqlens_q = device.narrow(0, table_size + lists, batch + 1);
  return step;
}

void KvCache::copy_pages(const CacheStep& step, int64_t layer) {
  const auto& pairs = step.copies.at(static_cast<size_t>(layer));
  if (pairs.empty()) return;
  const auto count = static_cast<int64_t>(pairs.size());
  const at::Tensor numbers = at::empty({2, count}, at::TensorOptions(at::kLong));
  auto* number = numbers.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    std::tie(number[i], number[count + i]) = pairs[static_cast<size_t>(i)];
  }
  const at::Tensor on_device = numbers.to(options_.device), from = on_device[0], to = on_device[1];
  for (at::Tensor pages : {pool_.k_pages(), pool_.v_pages()}) pages.index_copy_(0, to, pages.index_select(0, from));
}

}  // namespace prulong
