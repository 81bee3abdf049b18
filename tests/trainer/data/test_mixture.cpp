// SPDX-License-Identifier: MIT
#include "trainer/data/mixture.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/support/catch.h"

namespace prulong {
namespace {

/// Sequence n says whose it is and which.
class Numbered : public Source {
 public:
  Numbered(int32_t id, int64_t vocab_size) : id_(id), vocab_size_(vocab_size) {}
  Sequence sequence(int64_t n) const override {
    return {{id_, static_cast<int32_t>(n & 0x7fffffff), static_cast<int32_t>(n >> 31)}, {0, 3}, {}};
  }
  int64_t vocab_size() const override { return vocab_size_; }
  std::string fingerprint() const override { return "source " + std::to_string(id_); }

 private:
  int32_t id_;
  int64_t vocab_size_;
};

std::unique_ptr<Source> mixture_of(const std::vector<double>& weights) {
  std::vector<WeightedSource> sources;
  for (size_t i = 0; i < weights.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    sources.push_back({std::make_unique<Numbered>(id, 100 + (id == 1 ? 50 : id)), weights[i]});
  }
  return mix_sources(std::move(sources));
}

struct Draw {
  size_t source;
  int64_t index;
};

Draw draw(const Source& mixture, int64_t n) {
  const auto tokens = mixture.sequence(n).tokens;
  return {static_cast<size_t>(tokens[0]), (int64_t{tokens[2]} << 31) | tokens[1]};
}

/// How far a source may be from its share: one where there are two or three sources, half of the others otherwise.
double allowed(size_t sources) { return std::max(1.0, 0.5 * static_cast<double>(sources - 1)) + 1e-6; }

/// Draws [first, first + count): each source goes through its own sequences one by one and has its share throughout.
void check_draws(const std::vector<double>& weights, int64_t first, int64_t count) {
  CAPTURE(weights, first);
  const auto mixture = mixture_of(weights);
  const double largest = *std::max_element(weights.begin(), weights.end());
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0,
                                       [&](double sum, double weight) { return sum + weight / largest; });
  std::vector<int64_t> next(weights.size(), first == 0 ? 0 : -1);
  bool consecutive = true;
  double worst = 0;
  for (int64_t n = first; n < first + count; ++n) {
    const Draw found = draw(*mixture, n);
    consecutive = consecutive && (next[found.source] < 0 || found.index == next[found.source]);
    next[found.source] = found.index + 1;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (next[i] >= 0) {
        const double share = static_cast<double>(n + 1) * (weights[i] / largest / total);
        worst = std::max(worst, std::abs(static_cast<double>(next[i]) - share));
      }
    }
  }
  CHECK(consecutive);
  CHECK(worst <= allowed(weights.size()));
}

TEST_CASE("sources take turns by weight, each through its own sequences in order") {
  for (const std::vector<double>& weights : std::vector<std::vector<double>>{
           {1, 1},
           {1, 2},
           {3, 1},
           {0.3, 0.7},
           {1, 1, 1},
           {5, 3, 2},
           {0.1, 0.2, 0.3},
           {1, 1e6},
           {1e6, 1},
           {1e-9, 1, 1e-9},
           {1e308, 1e308},
           {1e-300, 1e-300},
           {1, 1, 1, 1, 1, 1, 1},
           {96, 1, 1, 1, 1},
           {std::sqrt(2), std::sqrt(3), std::sqrt(5), std::sqrt(7)},
       }) {
    check_draws(weights, 0, 3000);
    check_draws(weights, 1'000'000'000, 500);
  }
  check_draws({0.3, 0.7}, int64_t{1} << 45, 500);
}

TEST_CASE("two and three sources never are more than one sequence from their share") {
  for (const double small : {0.5, 0.1, 0.017}) {
    const auto mixture = mixture_of({1 - 2 * small, small, small});
    std::vector<double> counts(3, 0.0);
    double worst = 0;
    for (int64_t n = 0; n < 2000; ++n) {
      ++counts[draw(*mixture, n).source];
      for (size_t i = 0; i < 3; ++i) {
        worst = std::max(worst, std::abs(counts[i] - static_cast<double>(n + 1) * (i == 0 ? 1 - 2 * small : small)));
      }
    }
    CHECK(worst <= 1 + 1e-9);
  }
}

TEST_CASE("a source of a millionth comes once in a million sequences") {
  const auto mixture = mixture_of({1, 999'999});
  std::vector<int64_t> found;
  // Where it may come: each half of the first millions, looked at from both ends of its place.
  for (const int64_t middle : {500'000, 1'500'000, 2'500'000}) {
    for (int64_t n = middle - 20; n < middle + 20; ++n) {
      if (draw(*mixture, n).source == 0) found.push_back(draw(*mixture, n).index);
    }
  }
  CHECK(found == std::vector<int64_t>{0, 1, 2});
}

TEST_CASE("a sequence does not depend on what was read before") {
  const auto mixture = mixture_of({2, 3, 5});
  std::vector<std::vector<int32_t>> forwards;
  for (int64_t n = 0; n < 50; ++n) forwards.push_back(mixture->sequence(n).tokens);
  for (int64_t n = 49; n >= 0; --n) CHECK(mixture->sequence(n).tokens == forwards[static_cast<size_t>(n)]);
}

TEST_CASE("one source is passed through, several add up") {
  CHECK(mixture_of({7})->fingerprint() == "source 0");
  CHECK(draw(*mixture_of({7}), 12).index == 12);
  CHECK(mixture_of({1, 1, 1})->vocab_size() == 150);
}

TEST_CASE("the fingerprint changes with the weights and the sources, not with their scale") {
  const auto of = [](const std::vector<double>& weights) { return mixture_of(weights)->fingerprint(); };
  CHECK(of({1, 2}) == of({1, 2}));
  CHECK(of({1, 2}) == of({4, 8}));
  CHECK(of({1, 2}) != of({2, 1}));
  CHECK(of({1, 2}) != of({1, 2, 1}));
  CHECK(of({1, 2}) != of({1, 2.0000001}));
  CHECK(of({1, 1e6}) != of({1, 1.1e6}));
}

}  // namespace
}  // namespace prulong
