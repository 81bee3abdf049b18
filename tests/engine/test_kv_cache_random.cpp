// SPDX-License-Identifier: MIT
// Random sequences of operations against plain lists of entries.
#include "engine/kv_cache.h"

#include <ATen/ops/tensor.h>

#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <set>

#include "common/error.h"
#include "tests/support/catch.h"

using namespace prulong;

namespace {

using Ints = std::vector<int64_t>;

/// What one head must hold: the entries' ids in order, and how much of it truncate may not touch.
struct Entries {
  Ints ids;
  int64_t fixed = 0;    ///< of a global head
  int64_t dropped = 0;  ///< pages of a local one
};
struct Model {
  Ints tokens;  ///< ids by position
  std::vector<Entries> heads;
};

/// The lists that a step on a CPU describes.
class Lists {
 public:
  Lists(const CacheStep& step, int64_t page)
      : tables_(step.page_table.const_data_ptr<int32_t>()),
        lengths_(step.lengths.const_data_ptr<int32_t>()),
        batch_(step.lengths.size(1)),
        heads_(step.lengths.size(2)),
        width_(step.page_table.size(3)),
        page_(page) {}
  int64_t length(int64_t layer, size_t b, int64_t head) const { return lengths_[index(layer, b, head)]; }
  std::vector<int32_t> pages(int64_t layer, size_t b, int64_t head) const {
    const int32_t* row = tables_ + index(layer, b, head) * width_;
    const int64_t pages = (length(layer, b, head) + page_ - 1) / page_;
    const bool padded =
        pages <= width_ && std::all_of(row + pages, row + width_, [](int32_t page) { return page == 0; });
    if (!padded) FAIL("a table's places behind the list are not 0");
    return {row, row + pages};
  }

 private:
  int64_t index(int64_t layer, size_t b, int64_t head) const {
    return (layer * batch_ + static_cast<int64_t>(b)) * heads_ + head;
  }
  const int32_t *tables_, *lengths_;
  int64_t batch_, heads_, width_, page_;
};

/// A cache beside plain lists.
class World {
 public:
  World(const KvCacheOptions& options, uint64_t seed)
      : cache(options), options_(cache.options()), page_(options.page), random_(seed) {
    sink_end_ = (options.sink + page_ - 1) / page_ * page_;
  }

  int64_t below(int64_t bound) { return std::uniform_int_distribution<int64_t>(0, bound - 1)(random_); }
  int64_t any_sequence() { return std::next(models.begin(), below(static_cast<int64_t>(models.size())))->first; }
  bool global(size_t head) const { return options_.is_global[head] != 0; }

  void add() { models[cache.add()].heads.resize(options_.is_global.size()); }
  void fork(int64_t sequence) { models[cache.fork(sequence)] = Model(models.at(sequence)); }
  void drop(int64_t sequence) {
    cache.drop(sequence);
    models.erase(sequence);
  }

  /// @returns whether there were pages enough.
  bool append(const Ints& sequences, const Ints& counts) {
    const int64_t needed = pages_for_append(sequences, counts), free = cache.free_pages();
    CacheStep step;
    try {
      step = cache.append(sequences, counts);
    } catch (const Error& error) {
      INFO(error.what());
      REQUIRE(needed > free);
      CHECK_THAT(error.what(), ContainsSubstring(std::to_string(needed) + " pages are needed, " + std::to_string(free) +
                                                 " of " + std::to_string(cache.pages()) + " are free"));
      return false;
    }
    REQUIRE(needed <= free);
    peak = std::max(peak, cache.pages() - free + needed);
    for (size_t b = 0; b < sequences.size(); ++b) {
      Model& model = models.at(sequences[b]);
      for (int64_t i = 0; i < counts[b]; ++i) {
        model.tokens.push_back(next_id_);
        for (Entries& head : model.heads) head.ids.push_back(next_id_);
        ++next_id_;
      }
    }
    for (int64_t layer = 0; layer < options_.layers; ++layer) {
      cache.copy_pages(step, layer);
      write(step, layer, counts);
      check_step(step, layer, sequences, counts);
    }
    for (const int64_t sequence : sequences) release(models.at(sequence));
    return true;
  }

  /// All lists at rest, and who has which pages.
  void check() {
    Ints sequences;
    for (const auto& [sequence, model] : models) sequences.push_back(sequence);
    const CacheStep step = cache.append(sequences, Ints(sequences.size(), 0));
    std::set<int32_t> pages;
    for (int64_t layer = 0; layer < options_.layers; ++layer) check_lists(step, layer, sequences, &pages);
    for (const auto& [sequence, model] : models) {
      REQUIRE(cache.tokens(sequence) == static_cast<int64_t>(model.tokens.size()));
      int64_t sum = 0;
      for (size_t h = 0; h < model.heads.size(); ++h) {
        const auto length = static_cast<int64_t>(model.heads[h].ids.size());
        sum += length;
        if (!global(h)) REQUIRE(length <= options_.window + options_.slack + 2 * page_ + sink_end_);
      }
      REQUIRE(cache.entries(sequence) == sum);
    }
    const auto used = static_cast<int64_t>(pages.size());
    REQUIRE(cache.free_pages() + used == cache.pages());
    const int64_t page_bytes = 2 * page_ * options_.head_dim * static_cast<int64_t>(c10::elementSize(options_.dtype));
    REQUIRE(cache.bytes().in_use == used * page_bytes);
    REQUIRE(cache.bytes().allocated >= cache.bytes().in_use);
    REQUIRE(cache.bytes().peak == peak * page_bytes);
  }

  /// Evicts from a random head: random entries stay, often the first ones all.
  void keep(int64_t sequence) {
    const int64_t layer = below(options_.layers), h = below(options_.kv_heads);
    const auto index = static_cast<size_t>(layer * options_.kv_heads + h);
    Entries& head = models.at(sequence).heads[index];
    const int64_t all_until = below(2) ? below(static_cast<int64_t>(head.ids.size()) + 1) : 0, share = below(4);
    Ints places, ids;
    for (int64_t i = 0; i < static_cast<int64_t>(head.ids.size()); ++i) {
      if (i >= all_until && below(3) >= share) continue;
      places.push_back(i);
      ids.push_back(head.ids[static_cast<size_t>(i)]);
    }
    try {
      cache.keep(layer, sequence, h, at::tensor(places, at::kLong));
    } catch (const Error& error) {
      if (!global(index)) {
        CHECK_THAT(error.what(), ContainsSubstring("is local"));
      } else {
        CHECK_THAT(error.what(), ContainsSubstring("pages are needed for entries shared with a fork"));
        REQUIRE(cache.free_pages() < static_cast<int64_t>(places.size()) / page_ + 1);
      }
      return;
    }
    REQUIRE(global(index));
    head.ids = ids;
    head.fixed = static_cast<int64_t>(ids.size());
    peak = std::max(peak, cache.pages() - cache.free_pages());
  }

  void truncate(int64_t sequence, int64_t n) {
    Model& model = models.at(sequence);
    const bool possible = can_truncate(model, n);
    try {
      cache.truncate(sequence, n);
    } catch (const Error& error) {
      INFO(error.what());
      REQUIRE(!possible);
      return;
    }
    REQUIRE(possible);
    model.tokens.resize(model.tokens.size() - static_cast<size_t>(n));
    for (size_t h = 0; h < model.heads.size(); ++h) {
      Entries& head = model.heads[h];
      const auto left = static_cast<int64_t>(model.tokens.size());
      if (!global(h) && left <= sink_end_) {
        head.dropped = 0;
        head.ids = model.tokens;
      } else {
        head.ids.resize(head.ids.size() - static_cast<size_t>(n));
      }
    }
  }

  KvCache cache;
  std::map<int64_t, Model> models;
  int64_t peak = 0;

 private:
  bool held(const Entries& head, int64_t position) const {
    return position < sink_end_ || position >= sink_end_ + head.dropped * page_;
  }

  bool can_truncate(const Model& model, int64_t n) const {
    const int64_t left = static_cast<int64_t>(model.tokens.size()) - n;
    if (left < 0) return false;
    for (size_t h = 0; h < model.heads.size(); ++h) {
      const Entries& head = model.heads[h];
      if (global(h) && n > static_cast<int64_t>(head.ids.size()) - head.fixed) return false;
      if (global(h)) continue;
      for (int64_t i = 0; i < left; ++i) {  // what queries from position `left` on see
        if ((i < options_.sink || left - i < options_.window) && !held(head, i)) return false;
      }
      if (left > sink_end_ && !held(head, left)) return false;  // nor has it a place between what is missing
    }
    return true;
  }

  /// Pages behind the sink whose every position is out of reach of a query `slack` tokens back.
  void release(Model& model) {
    const auto tokens = static_cast<int64_t>(model.tokens.size());
    for (size_t h = 0; h < model.heads.size(); ++h) {
      Entries& head = model.heads[h];
      const auto last = [&] { return sink_end_ + (head.dropped + 1) * page_ - 1; };
      while (!global(h) && last() < tokens && tokens - options_.slack - last() >= options_.window) {
        const auto begin = head.ids.begin() + sink_end_;
        head.ids.erase(begin, begin + page_);
        ++head.dropped;
      }
    }
  }

  /// Runs a step's book-keeping on the pages that there are now, by brute force. @returns the most taken at once
  int64_t pages_for_append(const Ints& sequences, const Ints& counts) {
    Ints all;
    for (const auto& [sequence, model] : models) all.push_back(sequence);
    const CacheStep step = cache.append(all, Ints(all.size(), 0));
    const Lists now(step, page_);
    std::map<int64_t, int> references;
    std::map<std::pair<int64_t, size_t>, Ints> lists;
    for (int64_t layer = 0; layer < options_.layers; ++layer) {
      for (size_t b = 0; b < all.size(); ++b) {
        for (int64_t h = 0; h < options_.kv_heads; ++h) {
          Ints& list = lists[{all[b], static_cast<size_t>(layer * options_.kv_heads + h)}];
          for (const int32_t page : now.pages(layer, b, h)) {
            list.push_back(page);
            ++references[page];
          }
        }
      }
    }
    const auto before = static_cast<int64_t>(references.size());
    int64_t fresh = -1, most = 0;
    for (int64_t layer = 0; layer < options_.layers; ++layer) {
      for (const bool attended : {false, true}) {
        for (size_t b = 0; b < sequences.size(); ++b) {
          for (int64_t i = 0; i < options_.kv_heads; ++i) {
            const auto h = static_cast<size_t>(layer * options_.kv_heads + i);
            const Entries& head = models.at(sequences[b]).heads[h];
            Ints& list = lists[{sequences[b], h}];
            const auto length = static_cast<int64_t>(head.ids.size()) + counts[b];
            if (!attended) {
              if (counts[b] > 0 && head.ids.size() % static_cast<size_t>(page_) != 0 && references[list.back()] > 1) {
                --references[list.back()];
                references[list.back() = fresh--] = 1;
              }
              while (static_cast<int64_t>(list.size()) * page_ < length) {
                list.push_back(fresh--);
                references[list.back()] = 1;
              }
              continue;
            }
            const int64_t tokens = static_cast<int64_t>(models.at(sequences[b]).tokens.size()) + counts[b];
            int64_t last = sink_end_ + (head.dropped + 1) * page_ - 1;
            for (auto at = sink_end_ / page_;
                 !global(h) && last < tokens && tokens - options_.slack - last >= options_.window;
                 ++at, last += page_) {
              const int64_t page = list[static_cast<size_t>(at)];
              if (--references[page] == 0) references.erase(page);
            }
          }
        }
        most = std::max(most, static_cast<int64_t>(references.size()) - before);
      }
    }
    return most;
  }

  float* entry(const at::Tensor& pages, const std::vector<int32_t>& list, size_t place) const {
    const auto page = static_cast<size_t>(page_);
    const size_t row = static_cast<size_t>(list[place / page]) * page + place % page;
    return pages.mutable_data_ptr<float>() + row * static_cast<size_t>(options_.head_dim);
  }

  /// As append_kv does: the last entries of each list. Keys say which token, values which head.
  void write(const CacheStep& step, int64_t layer, const Ints& counts) {
    const Lists lists(step, page_);
    const auto* bounds = step.cu_seqlens_q.const_data_ptr<int32_t>();
    for (size_t b = 0; b < counts.size(); ++b) {
      REQUIRE(bounds[b + 1] - bounds[b] == counts[b]);
      for (int64_t h = 0; h < options_.kv_heads; ++h) {
        const auto pages = lists.pages(layer, b, h);
        for (int64_t i = 0; i < counts[b]; ++i) {
          const auto place = static_cast<size_t>(lists.length(layer, b, h) - counts[b] + i);
          *entry(cache.k_pages(), pages, place) = static_cast<float>(next_id_ - bounds[counts.size()] + bounds[b] + i);
          *entry(cache.v_pages(), pages, place) = static_cast<float>(layer * options_.kv_heads + h);
        }
      }
    }
  }

  void check_lists(const CacheStep& step, int64_t layer, const Ints& sequences, std::set<int32_t>* used) const {
    const Lists lists(step, page_);
    bool same = true;
    for (size_t b = 0; b < sequences.size(); ++b) {
      for (int64_t h = 0; h < options_.kv_heads; ++h) {
        const int64_t index = layer * options_.kv_heads + h;
        const Ints& ids = models.at(sequences[b]).heads[static_cast<size_t>(index)].ids;
        const auto pages = lists.pages(layer, b, h);
        same = same && lists.length(layer, b, h) == static_cast<int64_t>(ids.size());
        for (size_t i = 0; same && i < ids.size(); ++i) {
          same = *entry(cache.k_pages(), pages, i) == static_cast<float>(ids[i]) &&
                 *entry(cache.v_pages(), pages, i) == static_cast<float>(index);
        }
        if (used != nullptr) used->insert(pages.begin(), pages.end());
      }
    }
    REQUIRE(same);
  }

  /// While a layer attends: the lists, and that places show local heads exactly what positions would.
  void check_step(const CacheStep& step, int64_t layer, const Ints& sequences, const Ints& counts) const {
    check_lists(step, layer, sequences, nullptr);
    for (size_t b = 0; b < sequences.size(); ++b) {
      const Model& model = models.at(sequences[b]);
      for (int64_t h = 0; h < options_.kv_heads; ++h) {
        const auto index = static_cast<size_t>(layer * options_.kv_heads + h);
        if (global(index)) continue;
        const Ints& ids = model.heads[index].ids;
        const auto visible = [&](const Ints& keys, int64_t i) {
          Ints seen;
          for (int64_t j = 0; j <= i; ++j) {
            if (j < options_.sink || i - j < options_.window) seen.push_back(keys[static_cast<size_t>(j)]);
          }
          return seen;
        };
        REQUIRE(static_cast<int64_t>(ids.size()) <=
                options_.window + options_.slack + 2 * page_ + sink_end_ + counts[b]);
        bool same = true;
        for (int64_t back = 1; back <= counts[b]; ++back) {
          same = same && visible(ids, static_cast<int64_t>(ids.size()) - back) ==
                             visible(model.tokens, static_cast<int64_t>(model.tokens.size()) - back);
        }
        REQUIRE(same);
      }
    }
  }

  KvCacheOptions options_;
  int64_t page_, sink_end_;
  std::mt19937_64 random_;
  int64_t next_id_ = 1;
};

KvCacheOptions random_options(std::mt19937_64& random) {
  const auto from = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  KvCacheOptions options;
  options.layers = from(1, 3);
  options.kv_heads = from(1, 3);
  options.head_dim = from(1, 3);
  options.page = int64_t{1} << from(0, 4);
  const int64_t heads = options.layers * options.kv_heads;
  for (int64_t i = 0; i < heads; ++i) options.is_global.push_back(static_cast<uint8_t>(from(0, 1)));
  if (from(0, 9) == 0) options.is_global.clear();
  options.sink = from(0, 2) * from(0, 5);
  options.window = from(1, 20);
  options.slack = from(0, 1) * from(0, 6);
  options.bytes = heads * from(1, 30) * 2 * options.page * options.head_dim * 4 + from(0, 7);
  return options;
}

}  // namespace

TEST_CASE("Random operations leave every list as plain lists would be") {
  std::mt19937_64 random(7);
  int64_t refused = 0, appended = 0;
  for (uint64_t run = 0; run < 10000; ++run) {
    CAPTURE(run);
    World world(random_options(random), run);
    world.add();
    const int64_t operations = 4 + world.below(12), most = 1 + world.below(40);
    for (int64_t i = 0; i < operations; ++i) {
      const int64_t what = world.models.empty() ? 10 : world.below(12);
      if (what < 6) {
        Ints sequences, counts;
        for (const auto& [sequence, model] : world.models) {
          if (world.below(3) == 0) continue;
          sequences.push_back(sequence);
          counts.push_back(world.below(2) ? 1 : world.below(most));
        }
        ++(world.append(sequences, counts) ? appended : refused);
      } else if (what == 6) {
        world.keep(world.any_sequence());
      } else if (what == 7) {
        const int64_t sequence = world.any_sequence();
        world.truncate(sequence, world.below(world.below(3) ? 8 : 1 + world.cache.tokens(sequence)));
      } else if (what == 8) {
        world.fork(world.any_sequence());
      } else if (what == 9) {
        world.drop(world.any_sequence());
      } else if (what == 10) {
        world.add();
      } else {
        world.cache.trim();
      }
      world.check();
    }
    while (!world.models.empty()) world.drop(world.any_sequence());
    REQUIRE(world.cache.free_pages() == world.cache.pages());
    REQUIRE(world.cache.bytes().in_use == 0);
    world.cache.trim();
    REQUIRE(world.cache.bytes().allocated == 0);
  }
  CHECK(appended > 20000);
  CHECK(refused > 2000);
}
