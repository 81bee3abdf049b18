// SPDX-License-Identifier: MIT
#include "engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <string>

#include "common/error.h"
#include "common/philox.h"

namespace prulong {
namespace {

[[noreturn]] void refuse(const std::string& name, const std::string& expected, const std::string& found) {
  throw Error(name + ": expected " + expected + ", found " + found);
}

std::string written(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

/// Each token once, so that a token seen twice is not punished twice.
void punish_repetition(std::span<float> logits, double penalty, std::span<const int64_t> seen) {
  std::vector<int64_t> tokens(seen.begin(), seen.end());
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  for (const int64_t token : tokens) {
    float& logit = logits[static_cast<size_t>(token)];
    logit = static_cast<float>(logit < 0 ? logit * penalty : logit / penalty);
  }
}

/// The likeliest `top_k` tokens, or the fewest that together have a share of `top_p` of the weights, likeliest first;
/// the smaller set of both. Of equal ones the lower token comes first.
std::vector<int64_t> likeliest(const std::vector<double>& weights, int64_t top_k, double top_p) {
  std::vector<int64_t> order(weights.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto before = [&](int64_t a, int64_t b) {
    const double x = weights[static_cast<size_t>(a)], y = weights[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  const auto count = static_cast<int64_t>(order.size());
  const int64_t most = top_k > 0 ? std::min(top_k, count) : count;
  // Sorted in growing parts: mostly a few tokens hold nearly everything.
  int64_t sorted = 0;
  const auto sort_to = [&](int64_t end) {
    std::partial_sort(order.begin() + sorted, order.begin() + end, order.end(), before);
    sorted = end;
  };
  if (top_p >= 1) {
    sort_to(most);
    order.resize(static_cast<size_t>(most));
    return order;
  }
  double total = 0;
  if (most < count) {
    sort_to(most);
    for (int64_t i = 0; i < most; ++i) total += weights[static_cast<size_t>(order[static_cast<size_t>(i)])];
  } else {
    total = std::accumulate(weights.begin(), weights.end(), 0.0);
  }
  double held = 0;
  int64_t kept = 0;
  while (kept < most && (kept == 0 || held < top_p * total)) {
    if (kept == sorted) sort_to(std::min(most, 4 * sorted + 64));
    held += weights[static_cast<size_t>(order[static_cast<size_t>(kept++)])];
  }
  order.resize(static_cast<size_t>(kept));
  return order;
}

}  // namespace

void check_sampling(const Sampling& s, int64_t vocab_size) {
  if (s.max_new_tokens < 1) refuse("max_new_tokens", "at least 1", std::to_string(s.max_new_tokens));
  if (!(s.temperature >= 0 && std::isfinite(s.temperature)))
    refuse("temperature", "a finite number of at least 0 (0: always the likeliest token)", written(s.temperature));
  if (s.top_k < 0) refuse("top_k", "at least 0 (0: all tokens)", std::to_string(s.top_k));
  if (!(s.top_p > 0 && s.top_p <= 1)) refuse("top_p", "a number above 0, at most 1", written(s.top_p));
  if (!(s.repetition_penalty > 0 && std::isfinite(s.repetition_penalty)))
    refuse("repetition_penalty", "a finite number above 0 (1: none)", written(s.repetition_penalty));
  if (s.seed < 0) refuse("seed", "at least 0", std::to_string(s.seed));
  const auto check = [&](const char* name, int64_t token) {
    if (token < 0 || token >= vocab_size)
      refuse(name, "token ids of the model, 0 to " + std::to_string(vocab_size - 1), std::to_string(token));
  };
  for (const int64_t token : s.stop_tokens) check("stop_tokens", token);
  for (const auto& sequence : s.stop_sequences) {
    if (sequence.empty()) refuse("stop_sequences", "at least one token in each", "an empty one");
    for (const int64_t token : sequence) check("stop_sequences", token);
  }
}

void check_maximum(float largest) {
  if (std::isfinite(largest)) return;
  throw Error("the model's logits have no finite maximum: its weights are broken, or too large for their type");
}

int64_t sample_token(std::span<float> logits, const Sampling& sampling, std::span<const int64_t> seen, int64_t index) {
  if (sampling.repetition_penalty != 1) punish_repetition(logits, sampling.repetition_penalty, seen);
  const auto largest = std::max_element(logits.begin(), logits.end());
  const bool is_nan = std::any_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x); });
  check_maximum(is_nan ? std::numeric_limits<float>::quiet_NaN() : *largest);
  if (sampling.temperature == 0 || sampling.top_k == 1) return largest - logits.begin();

  std::vector<double> weights(logits.size());
  std::transform(logits.begin(), logits.end(), weights.begin(),
                 [&](float x) { return std::exp((double{x} - double{*largest}) / sampling.temperature); });
  std::vector<int64_t> tokens;
  if (sampling.top_k > 0 || sampling.top_p < 1) {
    tokens = likeliest(weights, sampling.top_k, sampling.top_p);
  } else {
    tokens.resize(weights.size());
    std::iota(tokens.begin(), tokens.end(), int64_t{0});
  }
  double total = 0;
  for (const int64_t token : tokens) total += weights[static_cast<size_t>(token)];
  double left = total * uniform_pair(static_cast<uint64_t>(sampling.seed), Stream::kSampling, index, 0, 0, 0)[0];
  for (const int64_t token : tokens) {
    left -= weights[static_cast<size_t>(token)];
    if (left < 0) return token;
  }
  // Rounding may leave a little: then it is the last token that has a weight.
  return *std::find_if(tokens.rbegin(), tokens.rend(), [&](int64_t t) { return weights[static_cast<size_t>(t)] > 0; });
}

bool meets_stop(const Sampling& sampling, std::span<const int64_t> chosen) {
  if (chosen.empty()) return false;
  const auto& stops = sampling.stop_tokens;
  if (std::find(stops.begin(), stops.end(), chosen.back()) != stops.end()) return true;
  return std::any_of(sampling.stop_sequences.begin(), sampling.stop_sequences.end(), [&](const auto& sequence) {
    return sequence.size() <= chosen.size() &&
           std::equal(sequence.begin(), sequence.end(), chosen.end() - static_cast<int64_t>(sequence.size()));
  });
}

}  // namespace prulong
