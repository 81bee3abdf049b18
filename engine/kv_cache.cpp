// SPDX-License-Identifier: MIT
#include "engine/kv_cache.h"

#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <string>

#include "common/error.h"

namespace prulong {
namespace {

constexpr int64_t kMostEntries = std::numeric_limits<int32_t>::max();  // places, lengths and page numbers are int32

std::string text(int64_t number) { return std::to_string(number); }

void check_range(const char* name, int64_t value, int64_t least, int64_t most = kMostEntries) {
  if (value < least || value > most) {
    throw Error(std::string("kv cache: ") + name + " must be from " + text(least) + " to " + text(most) + ", got " +
                text(value));
  }
}

int64_t page_bytes(const KvCacheOptions& options) {
  return 2 * options.page * options.head_dim * static_cast<int64_t>(c10::elementSize(options.dtype));
}

/// The options with what they leave open filled in.
KvCacheOptions checked(KvCacheOptions options) {
  constexpr int64_t kMostSize = 1 << 16, kMostPage = 1024;
  check_range("layers", options.layers, 1, kMostSize);
  check_range("kv_heads", options.kv_heads, 1, kMostSize);
  check_range("head_dim", options.head_dim, 1, kMostSize);
  check_range("sink", options.sink, 0);
  check_range("window", options.window, 1);
  check_range("slack", options.slack, 0);
  if (options.page < 1 || options.page > kMostPage || !std::has_single_bit(static_cast<uint64_t>(options.page))) {
    throw Error("kv cache: page must be a power of two from 1 to " + text(kMostPage) + ", got " + text(options.page));
  }
  const bool cuda = options.device.is_cuda();
  if (!cuda && !options.device.is_cpu()) {
    throw Error("kv cache: device must be cpu or cuda, got " + options.device.str());
  }
  if (cuda && !options.device.has_index()) options.device = c10::impl::VirtualGuardImpl(at::kCUDA).getDevice();
  const at::ScalarType dtype = options.dtype;
  if (dtype != at::kFloat && dtype != at::kBFloat16 && dtype != at::kHalf && (cuda || dtype != at::kDouble)) {
    throw Error(std::string("kv cache: dtype must be float32, bfloat16 or float16 (or float64 on a CPU), got ") +
                c10::toString(dtype));
  }
  const int64_t heads = options.layers * options.kv_heads, least = heads * page_bytes(options);
  if (options.bytes < least) {
    throw Error("kv cache: bytes must hold a page of each of the " + text(heads) + " heads, " + text(least) +
                " bytes; got " + text(options.bytes));
  }
  if (options.is_global.empty()) options.is_global.assign(static_cast<size_t>(heads), 1);
  if (static_cast<int64_t>(options.is_global.size()) != heads) {
    throw Error("kv cache: is_global must have layers * kv_heads = " + text(heads) + " values, got " +
                text(static_cast<int64_t>(options.is_global.size())));
  }
  return options;
}

at::Tensor mask_tensor(const KvCacheOptions& options) {
  const at::Tensor mask = at::empty({options.layers, options.kv_heads}, at::TensorOptions(at::kBool));
  std::transform(options.is_global.begin(), options.is_global.end(), mask.mutable_data_ptr<bool>(),
                 [](uint8_t value) { return value != 0; });
  return mask.to(options.device);
}

void check_places(at::ArrayRef<int64_t> places, int64_t entries) {
  for (size_t i = 0; i < places.size(); ++i) {
    const int64_t before = i == 0 ? -1 : places[i - 1];
    if (places[i] <= before || places[i] >= entries) {
      throw Error("kv cache: keep: places must rise and be below the head's " + text(entries) + " entries; place " +
                  text(static_cast<int64_t>(i)) + " is " + text(places[i]) + (i == 0 ? "" : " behind " + text(before)));
    }
  }
}

int64_t pool_pages(const KvCacheOptions& options) {
  return std::min(options.bytes / page_bytes(options), kMostEntries);
}

}  // namespace

KvCache::KvCache(const KvCacheOptions& options)
    : options_(checked(options)),
      pool_(pool_pages(options_), options_.page, options_.head_dim, options_.dtype, options_.device),
      is_global_(mask_tensor(options_)),
      sink_pages_(pages_for(options_.sink)) {}

KvCache::Book& KvCache::book(Sequence sequence) {
  return const_cast<Book&>(static_cast<const KvCache*>(this)->book(sequence));
}

const KvCache::Book& KvCache::book(Sequence sequence) const {
  const auto found = books_.find(sequence);
  if (found == books_.end()) throw Error("kv cache: there is no sequence " + text(sequence));
  return found->second;
}

size_t KvCache::index(int64_t layer, int64_t head) const {
  check_range("layer", layer, 0, options_.layers - 1);
  check_range("head", head, 0, options_.kv_heads - 1);
  return static_cast<size_t>(layer * options_.kv_heads + head);
}

KvCache::Sequence KvCache::add() {
  books_[next_sequence_].heads.resize(options_.is_global.size());
  return next_sequence_++;
}

KvCache::Sequence KvCache::fork(Sequence sequence) {
  Book copy = book(sequence);
  for (const Head& head : copy.heads) {
    for (const int32_t page : head.pages) pool_.add_reference(page);
  }
  books_.emplace(next_sequence_, std::move(copy));
  return next_sequence_++;
}

void KvCache::drop(Sequence sequence) {
  for (Head& head : book(sequence).heads) release_pages(head, 0, static_cast<int64_t>(head.pages.size()));
  books_.erase(sequence);
}

void KvCache::release_pages(Head& head, int64_t begin, int64_t end) {
  if (begin == end) return;
  const auto first = head.pages.begin() + begin, last = head.pages.begin() + end;
  std::for_each(first, last, [this](int32_t page) { pool_.release(page); });
  head.pages.erase(first, last);
  stale_ = true;
}

void KvCache::keep(int64_t layer, Sequence sequence, int64_t head, const at::Tensor& places) {
  const size_t at = index(layer, head);
  Head& list = book(sequence).heads[at];
  if (options_.is_global[at] == 0) {
    throw Error("kv cache: keep: head " + text(head) + " of layer " + text(layer) +
                " is local: sink and window say what it holds; only global heads can be evicted from");
  }
  if (!places.defined() || places.dim() != 1 || places.scalar_type() != at::kLong ||
      (!places.is_cpu() && places.device() != options_.device)) {
    throw Error("kv cache: keep: places must be [n] int64 on the CPU or the cache's device");
  }
  const at::Tensor on_host = places.cpu().contiguous();
  const at::ArrayRef<int64_t> kept(on_host.const_data_ptr<int64_t>(), static_cast<size_t>(on_host.numel()));
  check_places(kept, list.length);
  const auto n = static_cast<int64_t>(kept.size()), had = static_cast<int64_t>(list.pages.size());

  // Entries that stay where they are need not be written, and their pages may stay shared.
  int64_t same = 0;
  while (same < n && kept[static_cast<size_t>(same)] == same) ++same;
  const int64_t pages = pages_for(n), first = same == n ? pages : same / options_.page;
  const auto shared = [&](int64_t page) { return pool_.references(list.pages[static_cast<size_t>(page)]) > 1; };
  int64_t fresh = 0, freed = 0;
  for (int64_t page = first; page < had; ++page) {
    fresh += page < pages && shared(page);
    freed += page >= pages && !shared(page);
  }
  if (fresh > pool_.free() + freed) {
    throw Error("kv cache: keep: " + text(fresh) + " pages are needed for entries shared with a fork, " +
                text(pool_.free() + freed) + " are free; drop sequences or make the cache larger");
  }
  pool_.prepare(std::min(fresh, pool_.free()));

  const int64_t begin = std::min(first * options_.page, n);
  const auto rows_of = [&](const auto& place) {  // of the pool, for entries from `begin` on
    const at::Tensor rows = at::empty({n - begin}, at::TensorOptions(at::kLong));
    auto* row = rows.mutable_data_ptr<int64_t>();
    for (int64_t i = begin; i < n; ++i) {
      *row++ = list.pages[static_cast<size_t>(place(i) / options_.page)] * options_.page + place(i) % options_.page;
    }
    return rows.to(options_.device);
  };
  at::Tensor k_rows = k_pages().view({-1, options_.head_dim}), v_rows = v_pages().view({-1, options_.head_dim});
  // All is read before anything is given back or written.
  const at::Tensor from = rows_of([&](int64_t i) { return kept[static_cast<size_t>(i)]; });
  const at::Tensor k = k_rows.index_select(0, from), v = v_rows.index_select(0, from);
  release_pages(list, pages, had);
  for (int64_t page = first; page < pages; ++page) {
    if (!shared(page)) continue;
    pool_.release(list.pages[static_cast<size_t>(page)]);
    list.pages[static_cast<size_t>(page)] = pool_.take();
    stale_ = true;
  }
  const at::Tensor to = rows_of([](int64_t i) { return i; });
  k_rows.index_copy_(0, to, k);
  v_rows.index_copy_(0, to, v);
  list.length = list.fixed = n;
}

void KvCache::truncate(Sequence sequence, int64_t n) {
  Book& shortened = book(sequence);
  check_range("truncate: n", n, 0, shortened.tokens);
  const int64_t left = shortened.tokens - n, sink_end = sink_pages_ * options_.page;
  int64_t most = shortened.tokens;
  bool evicted = false, hidden = false;
  for (size_t i = 0; i < shortened.heads.size(); ++i) {
    const Head& head = shortened.heads[i];
    if (options_.is_global[i] != 0) {
      evicted = evicted || n > head.length - head.fixed;
      most = std::min(most, head.length - head.fixed);
    } else if (head.dropped > 0 && left > sink_end) {  // the next query must not see what is missing
      const int64_t of_head = left + n - options_.window + 1 - sink_end - head.dropped * options_.page;
      hidden = hidden || n > of_head;
      most = std::min(most, of_head);
    }
  }
  if (evicted || hidden) {
    throw Error("kv cache: truncate: only the last " + text(most) + " tokens of sequence " + text(sequence) +
                " can be taken back, not " + text(n) + ": " +
                (hidden ? "local heads gave back what the window would hold then; a larger slack keeps more"
                        : "entries were evicted since"));
  }
  shortened.tokens = left;
  for (Head& head : shortened.heads) {
    if (head.dropped > 0 && left <= sink_end) {
      head.dropped = 0;
      head.length = left;
    } else {
      head.length -= n;
    }
    release_pages(head, pages_for(head.length), static_cast<int64_t>(head.pages.size()));
  }
}

int64_t KvCache::tokens(Sequence sequence) const { return book(sequence).tokens; }

int64_t KvCache::entries(int64_t layer, Sequence sequence, int64_t head) const {
  return book(sequence).heads[index(layer, head)].length;
}

int64_t KvCache::entries(Sequence sequence) const {
  int64_t sum = 0;
  for (const Head& head : book(sequence).heads) sum += head.length;
  return sum;
}

KvCache::Bytes KvCache::bytes() const {
  return {pool_.taken_bytes(), pool_.used() * pool_.page_bytes(), pool_.most_used() * pool_.page_bytes()};
}

int64_t KvCache::pages_needed(int64_t tokens, int64_t chunk) const {
  check_range("tokens", tokens, 0);
  check_range("chunk", chunk, 1);
  if (tokens == 0) return 0;
  const int64_t page = options_.page, reach = options_.slack + options_.window - 1;
  const auto ceiling = [&](int64_t entries) { return entries < 0 ? -(-entries / page) : pages_for(entries); };
  // The longest that a local list gets with so many tokens in flight: where they begin one place into a page.
  const auto local = [&](int64_t in_flight) {
    return std::min(pages_for(tokens), sink_pages_ + 1 + ceiling(in_flight + reach - 1));
  };
  const int64_t locals = std::count(options_.is_global.begin(), options_.is_global.end(), 0);
  int64_t later = static_cast<int64_t>(options_.is_global.size()) - locals;  // global heads
  const int64_t at_rest = later * pages_for(tokens) + locals * local(0);
  // While a layer attends, a page more of each of its local lists for a page in flight, and, from the second one on, a
  // page less of each global list of the layers after it.
  const int64_t in_flight = local(std::min(chunk, tokens)) - local(0);
  int64_t most = 0;
  for (int64_t layer = 0; layer < options_.layers; ++layer) {
    const auto begin = options_.is_global.begin() + layer * options_.kv_heads;
    const int64_t here = std::count(begin, begin + options_.kv_heads, 0);
    later -= options_.kv_heads - here;
    if (in_flight > 0) most = std::max(most, here + std::max<int64_t>(0, here - later) * (in_flight - 1));
  }
  return at_rest + most;
}

}  // namespace prulong
