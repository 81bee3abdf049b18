// SPDX-License-Identifier: MIT
#include "tests/csrc/hopper/paged_cache.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>

#include "tests/csrc/hopper/plans.h"
#include "tests/support/catch.h"

namespace prulong::kernels::tests {
namespace {

constexpr uint16_t kNanBits = 0x7fff;  // in both 16-bit types
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kSparePages = 3;

size_t size(int n) { return static_cast<size_t>(n); }

}  // namespace

PagedCache::PagedCache(const PagedExample& example, ElementType type, int head_dim, uint64_t seed)
    : example_(example), type_(type), dim_(head_dim), q_bounds_(bounds_of(example.q_lengths)) {
  std::mt19937_64 random(seed * 1000 + 23);
  const int kv_heads = static_cast<int>(example.is_global.size()), sequences = static_cast<int>(example.lengths.size());
  int places = 1, pages = kSparePages;
  for (const std::vector<int>& of_heads : example.lengths) {
    REQUIRE(of_heads.size() == example.is_global.size());
    for (const int length : of_heads) {
      lengths_.push_back(length);
      places = std::max(places, detail::divide_up(length, kKeyBlock) + 1);
      pages += detail::divide_up(length, kKeyBlock);
    }
  }
  std::copy(example.is_global.begin(), example.is_global.end(), is_global_.begin());
  std::vector<int> order(size(pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  for (const int length : lengths_) {
    for (int place = 0; place < places; ++place) {
      const bool used = place < detail::divide_up(length, kKeyBlock);
      table_.push_back(used ? order.back() : static_cast<int>(random()));
      if (used) order.pop_back();
    }
  }
  true_table_ = table_;

  batch_.documents = sequences;
  batch_.q_tokens = q_bounds_.back();
  batch_.k_tokens = places * kKeyBlock;
  batch_.query_heads = kv_heads * example.group;
  batch_.kv_heads = kv_heads;
  batch_.head_dim = dim_;
  batch_.locality = example.locality;
  batch_.q_bounds = q_bounds_.data();
  batch_.is_global = is_global_.data();
  batch_.paged = {table_.data(), lengths_.data(), places, pages};

  std::normal_distribution<float> normal(0, 1);
  const auto draw = [&](float magnitude) {
    return device::emulation::round_element(type_, magnitude * normal(random));
  };
  q.resize(size(batch_.q_tokens) * size(batch_.query_heads * dim_));
  for (uint16_t& x : q) x = draw(example.magnitude);
  k.assign(size(pages) * size(kKeyBlock * dim_), kNanBits);
  v = k;
  for (int s = 0; s < sequences; ++s) {
    for (int h = 0; h < kv_heads; ++h) {
      for (int j = 0; j < length(s, h); ++j) {
        for (size_t d = 0; d < size(dim_); ++d) {
          k[entry(s, h, j) + d] = draw(example.magnitude);
          v[entry(s, h, j) + d] = draw(1);
        }
      }
    }
  }
  out.assign(q.size(), kNanBits);
  lse.assign(size(batch_.q_tokens) * size(batch_.query_heads), kNan);
}

size_t PagedCache::list(int sequence, int head) const { return size(sequence * batch_.kv_heads + head); }
int& PagedCache::page(int sequence, int head, int block) {
  return table_[list(sequence, head) * size(batch_.paged.table_pages) + size(block)];
}
size_t PagedCache::entry(int sequence, int head, int j) const {
  const int page = true_table_[list(sequence, head) * size(batch_.paged.table_pages) + size(j / kKeyBlock)];
  return (size(page) * size(kKeyBlock) + size(j % kKeyBlock)) * size(dim_);
}
float PagedCache::scale() const { return 1 / std::sqrt(static_cast<float>(dim_)); }
double PagedCache::value(const std::vector<uint16_t>& bits, size_t at) const {
  return device::emulation::widen_element(type_, bits[at]);
}

void PagedCache::register_in(device::emulation::GlobalMemory& memory) {
  memory.add(std::as_const(q), "q");
  memory.add(std::as_const(k), "k_pages");
  memory.add(std::as_const(v), "v_pages");
  memory.add(std::as_const(table_), "page_table");
  memory.add(out, "out");
  memory.add(lse, "lse");
}

void PagedCache::poison(int sequence, int head, int j) {
  for (std::vector<uint16_t>* pages : {&k, &v})
    std::fill_n(pages->begin() + static_cast<ptrdiff_t>(entry(sequence, head, j)), dim_, kNanBits);
}

void PagedCache::check(const std::vector<std::array<int, 2>>& wrong_lists) const {
  const auto round = [&](double x) {
    const uint16_t bits = device::emulation::round_element(type_, static_cast<float>(x));
    return static_cast<double>(device::emulation::widen_element(type_, bits));
  };
  double worst = 0, worst_plain = 0, worst_lse = 0;
  std::vector<double> scores, exact(size(dim_)), plain(size(dim_));
  std::vector<int> keys;
  for (int s = 0; s < batch_.documents; ++s) {
    for (int t = 0; t < example_.q_lengths[size(s)]; ++t) {
      for (int head = 0; head < batch_.query_heads; ++head) {
        const int kv_head = head / example_.group, token = q_bounds_[size(s)] + t;
        const size_t row = size(token) * size(batch_.query_heads) + size(head);
        const double got_lse = lse[size(head) * size(batch_.q_tokens) + size(token)];
        if (std::count(wrong_lists.begin(), wrong_lists.end(), std::array<int, 2>{s, kv_head}) != 0) {
          REQUIRE(std::isnan(got_lse));
          for (size_t d = 0; d < size(dim_); ++d) REQUIRE(std::isnan(value(out, row * size(dim_) + d)));
          continue;
        }
        const int length = lengths_[list(s, kv_head)], position = length - example_.q_lengths[size(s)] + t;
        const Branch branch = is_global_[size(kv_head)] ? Branch::kGlobal : Branch::kLocal;
        keys.clear();
        scores.clear();
        double top = -INFINITY, top_plain = -INFINITY, total = 0, total_plain = 0;
        for (int j = 0; j <= position; ++j) {
          if (!visible(branch, example_.locality, position, j)) continue;
          double sum = 0;
          for (size_t d = 0; d < size(dim_); ++d)
            sum += value(q, row * size(dim_) + d) * value(k, entry(s, kv_head, j) + d);
          keys.push_back(j);
          scores.push_back(sum * static_cast<double>(scale()));
          top = std::max(top, scores.back());
          top_plain = std::max(top_plain, round(scores.back()));
        }
        for (const double x : scores) {
          total += std::exp(x - top);
          total_plain += std::exp(round(x) - top_plain);
        }
        std::fill(exact.begin(), exact.end(), 0);
        std::fill(plain.begin(), plain.end(), 0);
        for (size_t n = 0; n < keys.size(); ++n) {
          const double p = std::exp(scores[n] - top) / total;
          const double p_plain = round(std::exp(round(scores[n]) - top_plain) / total_plain);
          for (size_t d = 0; d < size(dim_); ++d) {
            exact[d] += p * value(v, entry(s, kv_head, keys[n]) + d);
            plain[d] += p_plain * value(v, entry(s, kv_head, keys[n]) + d);
          }
        }
        for (size_t d = 0; d < size(dim_); ++d) {
          const double got = value(out, row * size(dim_) + d);
          CAPTURE(s, t, head, d);
          REQUIRE(std::isfinite(got));
          worst = std::max(worst, std::fabs(got - exact[d]));
          worst_plain = std::max(worst_plain, std::fabs(round(plain[d]) - exact[d]));
        }
        REQUIRE(std::isfinite(got_lse));
        worst_lse = std::max(worst_lse, std::fabs(got_lse - top - std::log(total)));
      }
    }
  }
  CHECK(worst <= 2 * worst_plain + 1e-6);
  CHECK(worst_lse <= 1e-4);
}

void PagedCache::check_all_wrong() const {
  for (size_t i = 0; i < out.size(); ++i) REQUIRE(std::isnan(value(out, i)));
  for (const float x : lse) REQUIRE(std::isnan(x));
}

int emulation_seeds(int few) {
  const char* text = std::getenv("PRULONG_EMULATION_SEEDS");
  return text != nullptr ? std::atoi(text) : few;
}

}  // namespace prulong::kernels::tests
