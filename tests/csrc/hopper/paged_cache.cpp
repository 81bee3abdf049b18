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

int pages_of(int length) { return detail::divide_up(length, kKeyBlock); }

}  // namespace

PagedLists::PagedLists(const PagedExample& example, int head_dim, uint64_t seed)
    : example_(example), q_bounds_(bounds_of(example.q_lengths)) {
  std::mt19937_64 random(seed * 1000 + 29);
  int places = 1, pages = kSparePages;
  for (const std::vector<int>& of_heads : example.lengths) {
    REQUIRE(of_heads.size() == example.is_global.size());
    for (const int length : of_heads) {
      lengths_.push_back(length);
      places = std::max(places, pages_of(length) + 1);
      pages += pages_of(length);
    }
  }
  std::copy(example.is_global.begin(), example.is_global.end(), is_global_.begin());
  std::vector<int> order(static_cast<size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  for (const int length : lengths_) {
    for (int place = 0; place < places; ++place) {
      const bool used = place < pages_of(length);
      table_.push_back(used ? order.back() : static_cast<int>(random()));
      if (used) order.pop_back();
    }
  }
  true_table_ = table_;

  batch_.documents = static_cast<int>(example.lengths.size());
  batch_.q_tokens = q_bounds_.back();
  batch_.k_tokens = places * kKeyBlock;
  batch_.kv_heads = static_cast<int>(example.is_global.size());
  batch_.query_heads = batch_.kv_heads * example.group;
  batch_.head_dim = head_dim;
  batch_.locality = example.locality;
  batch_.q_bounds = q_bounds_.data();
  batch_.is_global = is_global_.data();
  batch_.paged = {table_.data(), lengths_.data(), places, pages};
}

PagedCache::PagedCache(const PagedExample& example, ElementType type, int head_dim, uint64_t seed)
    : PagedLists(example, head_dim, seed), type_(type), dim_(static_cast<size_t>(head_dim)) {
  std::mt19937_64 random(seed * 1000 + 23);
  std::normal_distribution<float> normal(0, 1);
  const auto draw = [&](float size) { return device::emulation::round_element(type_, size * normal(random)); };
  q.resize(static_cast<size_t>(batch_.q_tokens * batch_.query_heads) * dim_);
  for (uint16_t& x : q) x = draw(example.magnitude);
  k.assign(static_cast<size_t>(batch_.paged.pool_pages * kKeyBlock) * dim_, kNanBits);
  v = k;
  for (int s = 0; s < batch_.documents; ++s) {
    for (int h = 0; h < batch_.kv_heads; ++h) {
      for (int j = 0; j < length(s, h); ++j) {
        for (size_t d = 0; d < dim_; ++d) {
          k[entry(s, h, j) + d] = draw(example.magnitude);
          v[entry(s, h, j) + d] = draw(1);
        }
      }
    }
  }
  out.assign(q.size(), kNanBits);
  lse.assign(static_cast<size_t>(batch_.q_tokens * batch_.query_heads), kNan);
}

size_t PagedCache::entry(int sequence, int head, int j) const {
  const int row = true_table_[place(sequence, head, j / kKeyBlock)] * kKeyBlock + j % kKeyBlock;
  return static_cast<size_t>(row) * dim_;
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

PagedCache::Errors PagedCache::errors(const std::vector<std::array<int, 2>>& wrong_lists) const {
  const auto round = [&](double x) {
    const uint16_t bits = device::emulation::round_element(type_, static_cast<float>(x));
    return static_cast<double>(device::emulation::widen_element(type_, bits));
  };
  // Not-a-number counts as an infinite error.
  const auto worse = [](double worst, double error) {
    return error <= worst ? worst : std::isnan(error) ? INFINITY : error;
  };
  Errors worst = {0, 0, 0};
  std::vector<double> scores, exact(dim_), plain(dim_);
  std::vector<int> keys;
  for (int row = 0; row < batch_.q_tokens * batch_.query_heads; ++row) {
    const int token = row / batch_.query_heads, head = row % batch_.query_heads, kv_head = head / batch_.group();
    int s = 0;
    while (token >= batch_.q_bounds[s + 1]) ++s;
    const double got_lse = static_cast<double>(lse[static_cast<size_t>(head * batch_.q_tokens + token)]);
    const size_t at = static_cast<size_t>(row) * dim_;
    if (std::count(wrong_lists.begin(), wrong_lists.end(), std::array<int, 2>{s, kv_head}) != 0) {
      REQUIRE(std::isnan(got_lse));
      for (size_t d = 0; d < dim_; ++d) REQUIRE(std::isnan(value(out, at + d)));
      continue;
    }
    const int position = batch_.paged.lengths[list(s, kv_head)] - batch_.q_bounds[s + 1] + token;
    const Branch branch = batch_.is_global[kv_head] ? Branch::kGlobal : Branch::kLocal;
    keys.clear();
    scores.clear();
    double top = -INFINITY, top_plain = -INFINITY, total = 0, total_plain = 0;
    for (int j = 0; j <= position; ++j) {
      if (!visible(branch, example_.locality, position, j)) continue;
      const size_t key = entry(s, kv_head, j);
      double sum = 0;
      for (size_t d = 0; d < dim_; ++d) sum += value(q, at + d) * value(k, key + d);
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
      const size_t key = entry(s, kv_head, keys[n]);
      for (size_t d = 0; d < dim_; ++d) {
        exact[d] += p * value(v, key + d);
        plain[d] += p_plain * value(v, key + d);
      }
    }
    for (size_t d = 0; d < dim_; ++d) {
      worst.out = worse(worst.out, std::fabs(value(out, at + d) - exact[d]));
      worst.plain = worse(worst.plain, std::fabs(round(plain[d]) - exact[d]));
    }
    worst.lse = worse(worst.lse, std::fabs(got_lse - top - std::log(total)));
  }
  return worst;
}

void PagedCache::check(const std::vector<std::array<int, 2>>& wrong_lists) const {
  const Errors worst = errors(wrong_lists);
  CHECK(worst.out <= 2 * worst.plain + 1e-6);
  CHECK(worst.lse <= 1e-4);
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
