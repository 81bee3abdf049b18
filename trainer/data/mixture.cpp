// SPDX-License-Identifier: MIT
#include "trainer/data/mixture.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numeric>
#include <string>

namespace prulong {
namespace {

/// The shortest text that reads back exactly: every change of a share shows.
std::string exact_text(double value) {
  std::array<char, 32> buffer{};
  return {buffer.data(), std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr};
}

// Source i's j-th draw is due at the virtual time (j + 1/2) / share_i; draws happen in order of their due times, ties
// by source. One draw takes one unit of time on average, so that sequence n lies near time n.
class Mixture : public Source {
 public:
  explicit Mixture(std::vector<WeightedSource> sources) : sources_(std::move(sources)) {
    double largest = 0, total = 0;
    for (const auto& entry : sources_) largest = std::max(largest, entry.weight);
    for (const auto& entry : sources_) total += entry.weight / largest;  // huge weights do not add up to infinity
    for (const auto& entry : sources_) shares_.push_back(entry.weight / largest / total);
  }

  Sequence sequence(int64_t n) const override {
    // The smallest due time by which more than n draws have happened belongs to draw n, or to one that ties with it.
    double low = 0, high = static_cast<double>(n) + static_cast<double>(sources_.size()) + 1;
    for (int i = 0; i < 128 && low < high; ++i) {
      const double middle = low + (high - low) / 2;
      if (middle == low || middle == high) break;
      (draws_until(middle) > n ? high : low) = middle;
    }
    int64_t before = draws_until(low);
    for (size_t i = 0; i < sources_.size(); ++i) {
      const int64_t first = count(i, low), last = count(i, high);
      if (n < before + last - first) return sources_[i].source->sequence(first + n - before);
      before += last - first;
    }
    return sources_.back().source->sequence(count(sources_.size() - 1, high));
  }

  int64_t vocab_size() const override {
    int64_t largest = 0;
    for (const auto& entry : sources_) largest = std::max(largest, entry.source->vocab_size());
    return largest;
  }

  std::string fingerprint() const override {
    std::string text = "mixture";
    for (size_t i = 0; i < sources_.size(); ++i) {
      text += " [" + exact_text(shares_[i]) + " " + sources_[i].source->fingerprint() + "]";
    }
    return text;
  }

 private:
  /// How many draws of source i are due by a time.
  int64_t count(size_t i, double time) const { return static_cast<int64_t>(std::floor(time * shares_[i] + 0.5)); }
  int64_t draws_until(double time) const {
    int64_t draws = 0;
    for (size_t i = 0; i < sources_.size(); ++i) draws += count(i, time);
    return draws;
  }

  std::vector<WeightedSource> sources_;
  std::vector<double> shares_;
};

}  // namespace

std::unique_ptr<Source> mix_sources(std::vector<WeightedSource> sources) {
  if (sources.size() == 1) return std::move(sources.front().source);
  return std::make_unique<Mixture>(std::move(sources));
}

}  // namespace prulong
