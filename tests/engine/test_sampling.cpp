// SPDX-License-Identifier: MIT
#include "engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <string>

#include "common/error.h"
#include "tests/support/catch.h"

using namespace prulong;

namespace {

int64_t sampled(std::vector<float> logits, const Sampling& sampling, std::vector<int64_t> seen = {},
                int64_t index = 0) {
  return sample_token(logits, sampling, seen, index);
}

/// How often each token comes among `draws` draws.
std::map<int64_t, double> shares(const std::vector<float>& logits, const Sampling& sampling, int64_t draws = 20000) {
  std::map<int64_t, double> result;
  for (int64_t i = 0; i < draws; ++i) result[sampled(logits, sampling, {}, i)] += 1.0 / static_cast<double>(draws);
  return result;
}

std::string refusal(const Sampling& sampling) {
  try {
    check_sampling(sampling, 10);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("sampling: temperature 0 takes the likeliest token, the lowest of equal ones") {
  CHECK(sampled({1, 3, 2, 3}, {}) == 1);
  CHECK(sampled({-5}, {}) == 0);
  CHECK(sampled({1, 3, 2}, {.temperature = 1, .top_k = 1}) == 1);
}

TEST_CASE("sampling: tokens come as often as the softmax says") {
  const std::vector<float> logits = {0, 1, 2, -1, 0.5};
  for (const double temperature : {0.5, 1.0, 2.0}) {
    double total = 0;
    std::vector<double> expected;
    for (const float x : logits) total += expected.emplace_back(std::exp(x / temperature));
    const auto found = shares(logits, {.temperature = temperature, .seed = 5});
    for (const auto& [token, share] : found) {
      // Four standard deviations of a share among 20,000 draws.
      CHECK(std::abs(share - expected[static_cast<size_t>(token)] / total) < 4 * 0.5 / std::sqrt(20000.0));
    }
  }
}

TEST_CASE("sampling: top_k and top_p leave only the likeliest tokens") {
  const std::vector<float> logits = {std::log(0.1F), std::log(0.4F), std::log(0.2F), std::log(0.3F)};
  const auto tokens = [&](const Sampling& sampling) {
    std::vector<int64_t> result;
    for (const auto& [token, share] : shares(logits, sampling, 2000)) result.push_back(token);
    return result;
  };
  CHECK(tokens({.temperature = 1}) == std::vector<int64_t>{0, 1, 2, 3});
  CHECK(tokens({.temperature = 1, .top_k = 2}) == std::vector<int64_t>{1, 3});
  CHECK(tokens({.temperature = 1, .top_k = 99}) == std::vector<int64_t>{0, 1, 2, 3});
  CHECK(tokens({.temperature = 1, .top_p = 0.05}) == std::vector<int64_t>{1});
  CHECK(tokens({.temperature = 1, .top_p = 0.39}) == std::vector<int64_t>{1});
  CHECK(tokens({.temperature = 1, .top_p = 0.65}) == std::vector<int64_t>{1, 3});
  CHECK(tokens({.temperature = 1, .top_p = 0.75}) == std::vector<int64_t>{1, 2, 3});
  // The share counts among the top_k, as in transformers, which cuts by top_k first: 0.4 of 0.7.
  CHECK(tokens({.temperature = 1, .top_k = 2, .top_p = 0.5}) == std::vector<int64_t>{1});
  CHECK(tokens({.temperature = 1, .top_k = 2, .top_p = 0.6}) == std::vector<int64_t>{1, 3});
}

TEST_CASE("sampling: a nucleus of many tokens is the same as by sorting all of them") {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> logits(5000);
  for (float& x : logits) x = normal(random);
  std::vector<size_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  double total = 0, held = 0;
  for (const float x : logits) total += std::exp(double{x});
  size_t kept = 0;
  while (held < 0.7 * total) held += std::exp(double{logits[order[kept++]]});
  const float least = logits[order[kept - 1]];
  for (int64_t i = 0; i < 2000; ++i) {
    const int64_t token = sampled(logits, {.temperature = 1, .top_p = 0.7}, {}, i);
    CHECK(logits[static_cast<size_t>(token)] >= least);
  }
}

TEST_CASE("sampling: the penalty acts once on each token seen, towards less likely") {
  const Sampling sampling = {.repetition_penalty = 2};
  CHECK(sampled({4, 3, 1}, sampling, {0}) == 1);        // 2, 3, 1
  CHECK(sampled({4, 1.5F, 1}, sampling, {0, 0}) == 0);  // 2, not 1
  CHECK(sampled({-1, -1.5F}, sampling, {0}) == 1);      // -2, -1.5
}

TEST_CASE("sampling: a draw depends on seed and index alone") {
  const std::vector<float> logits(100, 0.0F);
  const Sampling one = {.temperature = 1, .seed = 1}, two = {.temperature = 1, .seed = 2};
  std::vector<int64_t> first, again, other;
  for (int64_t i = 0; i < 20; ++i) {
    first.push_back(sampled(logits, one, {}, i));
    again.push_back(sampled(logits, one, {3, 4}, i));
    other.push_back(sampled(logits, two, {}, i));
  }
  CHECK(first == again);
  CHECK(first != other);
}

TEST_CASE("sampling: logits without a finite maximum are refused, -infinity never comes") {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(sampled({nan, 1}, {}), Error);
  CHECK_THROWS_AS(sampled({1, nan}, {.temperature = 1}), Error);
  CHECK_THROWS_AS(sampled({infinity, 1}, {}), Error);
  CHECK_THROWS_AS(sampled({-infinity, -infinity}, {}), Error);
  for (int64_t i = 0; i < 200; ++i) CHECK(sampled({-infinity, 0, -infinity}, {.temperature = 5}, {}, i) == 1);
}

TEST_CASE("sampling: stops are met at the end of what was chosen") {
  const Sampling sampling = {.stop_tokens = {7}, .stop_sequences = {{1, 2, 3}}};
  const auto met = [&](std::vector<int64_t> chosen) { return meets_stop(sampling, chosen); };
  CHECK(!met({}));
  CHECK(met({7}));
  CHECK(met({5, 7}));
  CHECK(!met({7, 5}));
  CHECK(met({1, 2, 3}));
  CHECK(met({9, 1, 2, 3}));
  CHECK(!met({2, 3}));
  CHECK(!met({1, 2, 3, 4}));
}

TEST_CASE("sampling: options out of range are refused by name") {
  CHECK(refusal({}).empty());
  CHECK(refusal({.max_new_tokens = 0}) == "max_new_tokens: expected at least 1, found 0");
  CHECK(refusal({.temperature = -0.5}).find("temperature: expected a finite number of at least 0") == 0);
  CHECK(refusal({.temperature = std::nan("")}).find("temperature") == 0);
  CHECK(refusal({.top_k = -1}).find("top_k") == 0);
  CHECK(refusal({.top_p = 0}) == "top_p: expected a number above 0, at most 1, found 0");
  CHECK(refusal({.top_p = 1.5}).find("top_p") == 0);
  CHECK(refusal({.repetition_penalty = 0}).find("repetition_penalty") == 0);
  CHECK(refusal({.seed = -1}).find("seed") == 0);
  CHECK(refusal({.stop_tokens = {10}}) == "stop_tokens: expected token ids of the model, 0 to 9, found 10");
  CHECK(refusal({.stop_sequences = {{}}}).find("stop_sequences") == 0);
}
