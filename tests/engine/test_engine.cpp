// SPDX-License-Identifier: MIT
#include "engine/engine.h"

#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>

#include <map>
#include <random>
#include <string>

#include "common/error.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"
#include "tests/support/files.h"

namespace prulong {
namespace {

using Tokens = std::vector<int64_t>;

Llama model() {
  ModelConfig config = test::tiny_config();
  config.max_positions = 300;
  return Llama(config, test::tiny_weights(config, at::kFloat));
}

Pattern pattern() {
  Pattern result = Pattern::from_scores(model().config().shape(), {0.9, 0.1, 0.2, 0.8}, 0.5, 3, 20);
  return result;
}

Tokens random_prompt(int64_t length, uint64_t seed) {
  std::mt19937_64 random(seed);
  Tokens tokens(static_cast<size_t>(length));
  for (int64_t& token : tokens) token = static_cast<int64_t>(random() % 37);
  return tokens;
}

Tokens alone(const std::optional<Pattern>& mask, const Tokens& prompt, const Sampling& sampling,
             const EngineOptions& options = {.kv_gib = 0.01}) {
  Engine engine(model(), mask, options);
  return engine.generate({prompt}, sampling).at(0).tokens;
}

/// Greedy tokens by computing the whole text anew for each.
Tokens naive(const std::optional<Pattern>& mask, Tokens tokens, int64_t count) {
  const c10::NoGradGuard no_grad;
  const Llama llama = model();
  HeadMask heads;
  if (mask) heads = HeadMask::from_pattern(*mask, llama.config(), at::kCPU);
  Tokens chosen;
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor hidden = llama.forward(PackedTokens::single(at::tensor(tokens, at::kLong)), heads);
    chosen.push_back(greedy_tokens(hidden.slice(0, -1), llama.head_weight(), 1).item<int64_t>());
    tokens.push_back(chosen.back());
  }
  return chosen;
}

template <class Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("engine: greedy tokens are those of computing the whole text anew") {
  for (const auto& mask : {std::optional<Pattern>(), std::optional<Pattern>(pattern())}) {
    for (const int64_t length : {1, 5, 31, 32, 33, 90}) {
      const Tokens prompt = random_prompt(length, static_cast<uint64_t>(length));
      CHECK(alone(mask, prompt, {.max_new_tokens = 40}) == naive(mask, prompt, 40));
    }
  }
}

TEST_CASE("engine: tokens do not depend on chunk size, neighbours and order of arrival") {
  struct Wanted {
    Tokens prompt;
    Sampling sampling;
    Tokens tokens;
  };
  for (const auto& mask : {std::optional<Pattern>(), std::optional<Pattern>(pattern())}) {
    std::mt19937 random(7);
    std::vector<Wanted> all;
    for (int64_t i = 0; i < 12; ++i) {
      Wanted wanted;
      wanted.prompt = random_prompt(1 + random() % 80, random());
      wanted.sampling = {.max_new_tokens = 1 + static_cast<int64_t>(random() % 40),
                         .temperature = i % 3 == 0 ? 0.0 : 1.5,
                         .top_k = i % 4 == 0 ? 10 : 0,
                         .top_p = i % 5 == 0 ? 0.8 : 1.0,
                         .repetition_penalty = i % 2 == 0 ? 1.2 : 1.0,
                         .seed = i};
      wanted.tokens = alone(mask, wanted.prompt, wanted.sampling);
      all.push_back(wanted);
    }
    for (const int64_t tokens_per_step : {1, 3, 17, 64, 1000}) {
      Engine engine(model(), mask, {.tokens_per_step = tokens_per_step, .max_sequences = 5, .kv_gib = 0.01});
      std::map<int64_t, size_t> submitted;
      std::map<int64_t, Tokens> streamed;
      size_t next = 0, finished = 0;
      std::vector<int64_t> cancelled;
      while (finished < all.size()) {
        // Members come at random times; some others come and are cancelled.
        while (next < all.size() && (!engine.busy() || random() % 3 == 0)) {
          submitted[engine.submit(all[next].prompt, all[next].sampling)] = next;
          ++next;
          cancelled.push_back(engine.submit(random_prompt(20, random()), {}));
        }
        if (!cancelled.empty() && random() % 4 == 0) {
          engine.cancel(cancelled.back());
          cancelled.pop_back();
        }
        const StepResult result = engine.step();
        for (const auto& [id, token] : result.tokens) streamed[id].push_back(token);
        for (const Generation& done : result.finished) {
          if (submitted.count(done.id) == 0) continue;
          CAPTURE(tokens_per_step, done.id);
          CHECK(done.tokens == all[submitted[done.id]].tokens);
          CHECK(streamed[done.id] == done.tokens);
          CHECK(done.prompt_tokens == static_cast<int64_t>(all[submitted[done.id]].prompt.size()));
          ++finished;
        }
      }
      for (const int64_t id : cancelled) engine.cancel(id);
      CHECK(!engine.busy());
      CHECK(engine.cache().free_pages() == engine.cache().pages());
    }
  }
}

TEST_CASE("engine: a small memory makes requests wait, and all of them finish") {
  // 12 pages of 64 entries: one request of 100 tokens at a time, two pages for each of four heads.
  const double kv_gib = 12.0 * 64 * 6 * 4 * 2 / (1024.0 * 1024 * 1024);
  Engine engine(model(), std::nullopt, {.kv_gib = kv_gib});
  std::vector<Tokens> prompts;
  for (uint64_t i = 0; i < 6; ++i) prompts.push_back(random_prompt(90, i));
  const auto results = engine.generate(prompts, {.max_new_tokens = 11});
  for (size_t i = 0; i < prompts.size(); ++i) {
    CHECK(results[i].tokens == alone(std::nullopt, prompts[i], {.max_new_tokens = 11}));
    CHECK(results[i].reason == FinishReason::kLength);
  }
  const std::string message = refusal([&] { engine.submit(random_prompt(200, 1), {.max_new_tokens = 10}); });
  CHECK_THAT(message,
             ContainsSubstring("200 tokens") && ContainsSubstring("10 new ones") && ContainsSubstring("kv_gib"));
  CHECK(!engine.busy());
}

TEST_CASE("engine: stops, lengths, cancelling") {
  const Tokens prompt = random_prompt(30, 4);
  const Sampling free = {.max_new_tokens = 30, .temperature = 1.0, .seed = 3};
  const Tokens all = alone(std::nullopt, prompt, free);
  REQUIRE(all.size() == 30);

  Sampling stopped = free;
  stopped.stop_sequences = {{all[9], all[10], all[11]}};
  Engine engine(model(), std::nullopt, {.kv_gib = 0.01});
  Generation result = engine.generate({prompt}, stopped).at(0);
  CHECK(result.reason == FinishReason::kStop);
  CHECK(result.tokens == Tokens(all.begin(), all.begin() + 12));

  stopped.stop_sequences.clear();
  stopped.stop_tokens = {all[5]};
  result = engine.generate({prompt}, stopped).at(0);
  CHECK(result.reason == FinishReason::kStop);
  CHECK(result.tokens.back() == all[5]);

  const int64_t id = engine.submit(prompt, free);
  for (int i = 0; i < 4; ++i) engine.step();
  const auto cancelled = engine.cancel(id);
  REQUIRE(cancelled.has_value());
  CHECK(cancelled->reason == FinishReason::kCancelled);
  CHECK(cancelled->tokens == Tokens(all.begin(), all.begin() + 4));
  CHECK(!engine.cancel(id).has_value());
  CHECK(!engine.busy());
  CHECK(engine.step().tokens.empty());
}

TEST_CASE("engine: the model's positions are the end, unless they may be passed") {
  Engine engine(model(), std::nullopt, {.kv_gib = 0.01});
  const Generation result = engine.generate({random_prompt(290, 1)}, {.max_new_tokens = 50}).at(0);
  CHECK(result.reason == FinishReason::kLength);
  CHECK(result.tokens.size() == 11);  // the last one's position would be 300; it is chosen, not computed
  const std::string message = refusal([&] { engine.submit(random_prompt(301, 1), {}); });
  CHECK_THAT(message, ContainsSubstring("at most 300 tokens") && ContainsSubstring("found 301"));
  Engine beyond(model(), std::nullopt, {.kv_gib = 0.01, .allow_beyond_positions = true});
  CHECK(beyond.generate({random_prompt(301, 1)}, {.max_new_tokens = 5}).at(0).tokens.size() == 5);
}

TEST_CASE("engine: what does not fit is refused by name, and others go on") {
  Engine engine(model(), std::nullopt, {.kv_gib = 0.01});
  const int64_t id = engine.submit(random_prompt(5, 1), {.max_new_tokens = 3});
  CHECK(refusal([&] { engine.submit({}, {}); }) == "prompt: expected at least one token, found none");
  CHECK_THAT(refusal([&] { engine.submit({1, 37}, {}); }), ContainsSubstring("token 37 at place 1"));
  CHECK_THAT(refusal([&] { engine.submit({-1}, {}); }), ContainsSubstring("token -1"));
  CHECK_THAT(refusal([&] { engine.submit({1}, {.top_p = 0}); }), ContainsSubstring("top_p"));
  while (engine.busy()) engine.step();
  CHECK(engine.stats().new_tokens == 3);
  (void)id;

  CHECK_THAT(refusal([] { Engine(model(), std::nullopt, {.tokens_per_step = -1}); }),
             ContainsSubstring("tokens_per_step"));
  CHECK_THAT(refusal([] { Engine(model(), std::nullopt, {.max_sequences = 0}); }), ContainsSubstring("max_sequences"));
  CHECK_THAT(refusal([] { Engine(model(), std::nullopt, {.kv_gib = -1}); }), ContainsSubstring("kv_gib"));
  CHECK_THAT(refusal([] { Engine(model(), std::nullopt, {.kv_gib = 1e-9}); }), ContainsSubstring("page"));
  Pattern other = pattern();
  other.model.layers = 3;
  CHECK_THAT(refusal([&] { Engine(model(), other, {}); }), ContainsSubstring("layers"));
}

TEST_CASE("engine: counts tell what a mask saves") {
  Engine full(model(), std::nullopt, {.kv_gib = 0.01}),
      masked(model(), pattern(), {.tokens_per_step = 32, .kv_gib = 0.01});
  for (Engine* engine : {&full, &masked}) {
    engine->generate({random_prompt(250, 1)}, {.max_new_tokens = 20});
    CHECK(engine->stats().prompt_tokens == 250);
    CHECK(engine->stats().decoded_tokens == 19);
    CHECK(engine->stats().new_tokens == 20);
    CHECK(engine->stats().peak_full_kv_bytes == 269 * 4 * 2 * 6 * 4);
  }
  CHECK(full.stats().peak_kv_bytes == 320 * 4 * 2 * 6 * 4);  // whole pages of 64
  CHECK(masked.stats().peak_kv_bytes < full.stats().peak_kv_bytes * 9 / 10);
}

TEST_CASE("engine: the tokens that end a text come from the model's folder") {
  const test::TemporaryFolder folder;
  const auto write = [&](const char* name, const char* text) { test::write_text(folder.path() / name, text); };
  CHECK(stop_tokens_of(folder.path()).empty());
  write("config.json", R"({"eos_token_id": 2})");
  CHECK(stop_tokens_of(folder.path()) == Tokens{2});
  write("generation_config.json", R"({"eos_token_id": [7, 8]})");
  CHECK(stop_tokens_of(folder.path()) == Tokens{7, 8});
  write("generation_config.json", R"({"eos_token_id": null})");
  CHECK(stop_tokens_of(folder.path()) == Tokens{2});
  write("generation_config.json", R"({"eos_token_id": "x"})");
  CHECK_THAT(refusal([&] { stop_tokens_of(folder.path()); }), ContainsSubstring("generation_config.json"));
}

}  // namespace prulong
