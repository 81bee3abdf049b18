// SPDX-License-Identifier: MIT
#include "csrc/cpu/paged_attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "csrc/attention_spec.h"
#include "csrc/cpu/page_kernel.h"
#include "csrc/ops/checks.h"

namespace prulong::pages {
namespace {

/// Consecutive queries of one sequence with the query heads of one KV head, and the pages that any of them sees.
struct Tile {
  int64_t sequence, head;
  int64_t first_token, tokens;  // of the packed queries
  int64_t first_place;          // of the first one
  int64_t sink_pages;           // pages [0, sink_pages) and [near, end)
  int64_t near, end;

  int64_t pages() const { return sink_pages + end - near; }
  int64_t page(int64_t step) const { return step < sink_pages ? step : near + step - sink_pages; }
};

/// Part of a tile's pages, for one worker.
struct Part {
  size_t tile;
  int64_t begin, end;  // of Tile::pages
};

/// What all workers read.
template <class Stored>
struct Call {
  const PageLists& lists;
  const PagedArguments& a;
  Locality locality;
  int64_t page, dim, group;
  std::vector<Tile> tiles;
  at::Tensor out, lse;
};

/// Rows of a tile that keep its arrays in the second-level cache and its parts' merging cheap.
constexpr int64_t kTileRows = 192;

std::vector<Tile> make_tiles(const PageLists& lists, const bool* is_global, Locality locality, int64_t page,
                             int64_t group) {
  const int64_t threads = at::get_num_threads();
  const int64_t all = std::max<int64_t>(1, lists.q_bounds.back() * lists.heads());
  // Eight tiles a thread at least, as far as there are queries.
  const int64_t most = std::clamp<int64_t>(all / (8 * threads), 1, std::max<int64_t>(1, kTileRows / group));
  std::vector<Tile> tiles;
  for (int64_t b = 0; b < lists.sequences(); ++b) {
    for (int64_t first = 0; first < lists.rows(b); first += most) {
      for (int64_t h = 0; h < lists.heads(); ++h) {
        Tile tile = {b, h, lists.q_bounds[b] + first, std::min(most, lists.rows(b) - first), 0, 0, 0, 0};
        tile.first_place = lists.length(b, h) - lists.rows(b) + first;
        const int64_t last = tile.first_place + tile.tokens - 1;
        tile.end = last / page + 1;
        if (!is_global[h]) {
          tile.near = std::max<int64_t>(0, tile.first_place - locality.window + 1) / page;
          const int64_t sink = std::min<int64_t>(locality.sink, last + 1);
          tile.sink_pages = std::min((sink + page - 1) / page, tile.near);
        }
        tiles.push_back(tile);
      }
    }
  }
  return tiles;
}

/// Shares of about equal cost, one per worker; a tile may lie in several.
std::vector<std::vector<Part>> share_out(const std::vector<Tile>& tiles, int64_t workers) {
  // A page costs its transposition, about as much as this many queries' products.
  constexpr int64_t kPageCost = 8;
  const auto cost = [](const Tile& tile) { return tile.tokens + kPageCost; };
  int64_t total = 0, done = 0;
  for (const Tile& tile : tiles) total += cost(tile) * tile.pages();
  std::vector<std::vector<Part>> shares(static_cast<size_t>(workers));
  for (size_t t = 0; t < tiles.size(); ++t) {
    for (int64_t begin = 0; begin < tiles[t].pages();) {
      const int64_t worker = std::min(workers - 1, done * workers / total);
      const int64_t room = ((worker + 1) * total + workers - 1) / workers - done;
      const int64_t some =
          worker == workers - 1 ? tiles[t].pages() : std::max<int64_t>(1, (room + cost(tiles[t]) - 1) / cost(tiles[t]));
      const int64_t end = std::min(tiles[t].pages(), begin + some);
      shares[static_cast<size_t>(worker)].push_back({t, begin, end});
      done += (end - begin) * cost(tiles[t]);
      begin = end;
    }
  }
  return shares;
}

/// The softmax of each of some pages, or of all of them together.
template <class Real>
class Partials {
 public:
  void reserve(int64_t pages, int64_t rows, int64_t columns) {
    rows_ = rows;
    columns_ = columns;
    numbers_.resize(static_cast<size_t>(pages * rows * (columns + 2)));
  }
  PageSoftmax<Real> at(int64_t page) {
    Real* out = numbers_.data() + page * rows_ * (columns_ + 2);
    return {out, out + rows_ * columns_, out + rows_ * (columns_ + 1)};
  }

 private:
  std::vector<Real> numbers_;
  int64_t rows_ = 0, columns_ = 0;
};

/// One thread's work on tiles.
template <class Stored, class Real>
class Worker {
 public:
  explicit Worker(const Call<Stored>& call) : call_(call), columns_(padded_columns(call.dim)) {
    keys_.resize(std::is_same_v<Stored, Real> ? 0 : static_cast<size_t>(call.page * call.dim));
    const bool copies_values = !std::is_same_v<Stored, Real> || columns_ != call.dim;
    values_.resize(copies_values ? static_cast<size_t>(call.page * columns_) : 0);
    one_.reserve(1, kTileRows + call.group, columns_);
  }

  /// Makes a tile the one that step() computes.
  void take(const Tile& tile) {
    tile_ = &tile;
    rows_ = tile.tokens * call_.group;
    queries_.resize(static_cast<size_t>(rows_ * call_.dim));
    scratch_.resize(static_cast<size_t>(page_scratch(rows_, call_.dim, call_.page)));
    one_.reserve(1, rows_, columns_);
    const at::Tensor& q = call_.a.q;
    const auto* from = static_cast<const Stored*>(q.const_data_ptr());
    Real* to = queries_.data();
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t token = tile.first_token + r / call_.group, head = tile.head * call_.group + r % call_.group;
      const Stored* row = from + token * q.stride(0) + head * q.stride(1);
      for (int64_t d = 0; d < call_.dim; ++d) *to++ = static_cast<Real>(row[d]) * static_cast<Real>(call_.a.scale);
    }
  }

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

  /// The softmax of one of the tile's pages.
  void step(int64_t index, const PageSoftmax<Real>& result) {
    const int64_t number = tile_->page(index), first_key = number * call_.page;
    const int64_t length = call_.lists.length(tile_->sequence, tile_->head);
    const int64_t entries = std::min(call_.page, length - first_key);
    const int32_t* pages = call_.lists.pages(tile_->sequence, tile_->head);
    const auto place = [&](const at::Tensor& pool, int64_t page) {
      return static_cast<const Stored*>(pool.const_data_ptr()) + pages[page] * call_.page * call_.dim;
    };
    const Stored *k = place(call_.a.k_pages, number), *v = place(call_.a.v_pages, number);
    const Real *next_keys = nullptr, *next_values = nullptr;
    if constexpr (std::is_same_v<Stored, Real>) {
      if (index + 1 < tile_->pages()) {
        next_keys = place(call_.a.k_pages, tile_->page(index + 1));
        next_values = place(call_.a.v_pages, tile_->page(index + 1));
      }
    }
    attend_page<Real>(widest_isa(),
                      {.queries = queries_.data(),
                       .keys = converted(k, keys_, entries, call_.dim),
                       .values = converted(v, values_, entries, columns_),
                       .rows = rows_,
                       .group = call_.group,
                       .dim = call_.dim,
                       .entries = entries,
                       .page = call_.page,
                       .first_place = tile_->first_place,
                       .first_key = first_key,
                       .is_global = call_.a.is_global.template const_data_ptr<bool>()[tile_->head],
                       .sink = call_.locality.sink,
                       .window = call_.locality.window,
                       .next_keys = next_keys,
                       .next_values = next_values},
                      scratch_.data(), result);
  }

  /// Merges pages [begin, end) of the tile into `total`.
  void merge(int64_t begin, int64_t end, const PageSoftmax<Real>& total) {
    for (int64_t i = begin; i < end; ++i) {
      step(i, one_.at(0));
      merge_page<Real>(widest_isa(), one_.at(0), total, i == 0, rows_, call_.dim);
    }
  }

  /// Writes the tile's results.
  void write(const PageSoftmax<Real>& total) const {
    const int64_t heads = call_.a.q.size(1), tokens = call_.a.q.size(0);
    auto* out = static_cast<Stored*>(call_.out.mutable_data_ptr());
    Real* lse = call_.lse.template mutable_data_ptr<Real>();
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t token = tile_->first_token + r / call_.group, head = tile_->head * call_.group + r % call_.group;
      Stored* row = out + (token * heads + head) * call_.dim;
      const Real* from = total.out + r * columns_;
      for (int64_t d = 0; d < call_.dim; ++d) row[d] = static_cast<Stored>(from[d] / total.sum[r]);
      lse[head * tokens + token] = total.maximum[r] + std::log(total.sum[r]);
    }
  }

 private:
  /// Rows of a page as Real, `columns` apart: themselves where they are so.
  const Real* converted(const Stored* from, std::vector<Real>& copy, int64_t entries, int64_t columns) const {
    if constexpr (std::is_same_v<Stored, Real>) {
      if (columns == call_.dim) return from;
    }
    for (int64_t e = 0; e < entries; ++e) {
      Real* row = copy.data() + e * columns;
      for (int64_t d = 0; d < call_.dim; ++d) row[d] = static_cast<Real>(from[e * call_.dim + d]);
      std::fill(row + call_.dim, row + columns, Real{});
    }
    return copy.data();
  }

  const Call<Stored>& call_;
  const int64_t columns_;
  const Tile* tile_ = nullptr;
  int64_t rows_ = 0;
  std::vector<Real> queries_, keys_, values_, scratch_;
  Partials<Real> one_;
};

/// Whole tiles, each worker taking the next one.
template <class Stored, class Real>
void attend_whole(const Call<Stored>& call, int64_t workers) {
  std::atomic<size_t> next = 0;
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      Worker<Stored, Real> worker(call);
      Partials<Real> total;
      // The last tiles of a chunk see the most keys: they come first.
      for (size_t t; (t = next++) < call.tiles.size();) {
        const Tile& tile = call.tiles[call.tiles.size() - 1 - t];
        worker.take(tile);
        total.reserve(1, worker.rows(), worker.columns());
        worker.merge(0, tile.pages(), total.at(0));
        worker.write(total.at(0));
      }
    }
  });
}

/// Few tiles, cut where that shares the pages out evenly. Who begins a tile merges as far as it goes; of what others
/// compute each page is kept, and merged afterwards in order.
template <class Stored, class Real>
void attend_cut(const Call<Stored>& call, int64_t workers) {
  const std::vector<std::vector<Part>> shares = share_out(call.tiles, workers);
  struct Rest {
    Part part;
    Partials<Real> pages;
  };
  std::vector<Partials<Real>> totals(call.tiles.size());
  std::vector<std::vector<Rest>> rests(shares.size());
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      Worker<Stored, Real> worker(call);
      Partials<Real> whole;
      for (const Part& part : shares[static_cast<size_t>(w)]) {
        const Tile& tile = call.tiles[part.tile];
        worker.take(tile);
        if (part.begin == 0) {
          const bool is_whole = part.end == tile.pages();
          Partials<Real>& total = is_whole ? whole : totals[part.tile];
          total.reserve(1, worker.rows(), worker.columns());
          worker.merge(0, part.end, total.at(0));
          if (is_whole) worker.write(total.at(0));
          continue;
        }
        Rest& rest = rests[static_cast<size_t>(w)].emplace_back(Rest{part, {}});
        rest.pages.reserve(part.end - part.begin, worker.rows(), worker.columns());
        for (int64_t i = part.begin; i < part.end; ++i) worker.step(i, rest.pages.at(i - part.begin));
      }
    }
  });
  Worker<Stored, Real> worker(call);
  for (std::vector<Rest>& of_worker : rests) {
    for (Rest& rest : of_worker) {
      const Tile& tile = call.tiles[rest.part.tile];
      worker.take(tile);
      const PageSoftmax<Real> total = totals[rest.part.tile].at(0);
      for (int64_t i = rest.part.begin; i < rest.part.end; ++i) {
        merge_page<Real>(widest_isa(), rest.pages.at(i - rest.part.begin), total, false, worker.rows(), call.dim);
      }
      if (rest.part.end == tile.pages()) worker.write(total);
    }
  }
}

template <class Stored, class Real>
void attend_as(const PageLists& lists, const PagedArguments& a, const at::Tensor& out, const at::Tensor& lse) {
  const int64_t page = a.k_pages.size(1), group = a.q.size(1) / lists.heads();
  const Locality locality = bounded(a.sink, a.window, std::numeric_limits<int>::max());
  const at::Tensor is_global = a.is_global.contiguous();
  PagedArguments dense = a;
  dense.is_global = is_global;
  const Call<Stored> call = {lists,
                             dense,
                             locality,
                             page,
                             a.q.size(2),
                             group,
                             make_tiles(lists, is_global.const_data_ptr<bool>(), locality, page, group),
                             out,
                             lse};
  if (call.tiles.empty()) return;
  const int64_t workers = at::in_parallel_region() ? 1 : at::get_num_threads();
  // Tiles of one query leave small results, so cutting them costs little; there are eight a worker of the larger ones.
  const bool small = std::ranges::all_of(call.tiles, [](const Tile& tile) { return tile.tokens == 1; });
  if (workers > 1 && small) {
    attend_cut<Stored, Real>(call, workers);
  } else {
    attend_whole<Stored, Real>(call, workers);
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> attend(const PageLists& lists, const PagedArguments& a) {
  const at::Tensor& q = a.q;
  const at::Tensor out = at::empty(q.sizes(), q.options());
  const at::Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(compute_type(q.scalar_type())));
  switch (q.scalar_type()) {
    case at::kDouble:
      attend_as<double, double>(lists, a, out, lse);
      break;
    case at::kFloat:
      attend_as<float, float>(lists, a, out, lse);
      break;
    case at::kBFloat16:
      attend_as<at::BFloat16, float>(lists, a, out, lse);
      break;
    default:
      attend_as<at::Half, float>(lists, a, out, lse);
  }
  return {out, lse};
}

}  // namespace prulong::pages
