// SPDX-License-Identifier: MIT
#include "engine/decoder.h"

#include <ATen/Context.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>

#include <memory>
#include <random>

#include "engine/cached_attention.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"

namespace prulong {
namespace {

KvCacheOptions options_for(const Llama& model, int64_t page) {
  KvCacheOptions options;
  options.layers = model.config().layers;
  options.kv_heads = model.config().kv_heads;
  options.head_dim = model.config().head_dim;
  options.is_global = {1, 0, 0, 1};
  options.sink = 5;
  options.window = page + 3;
  options.page = page;
  options.bytes = int64_t{1} << 28;
  options.dtype = model.dtype();
  options.device = model.device();
  return options;
}

/// The same step by an ordinary pass.
at::Tensor plain_step(const Llama& model, KvCache& cache, const std::vector<int64_t>& tokens,
                      const std::vector<KvCache::Sequence>& sequences) {
  std::vector<double> places;
  for (const auto sequence : sequences) places.push_back(static_cast<double>(cache.tokens(sequence)));
  const at::Device device = model.device();
  const std::vector<int64_t> ones(sequences.size(), 1);
  const auto attention = std::make_shared<CachedAttention>(cache, cache.append(sequences, ones));
  return model.logits(
      model.forward(at::tensor(tokens, at::kLong).to(device), at::tensor(places, at::kFloat).to(device), attention),
      true);
}

/// Steps of sequences that come and go, by a decoder and by ordinary passes over a cache of their own.
void check_against_plain(const Llama& model, int64_t page, int64_t steps, int64_t* replays) {
  const c10::NoGradGuard no_grad;
  KvCache cache(options_for(model, page)), plain(options_for(model, page));
  Decoder decoder(model, cache);
  std::vector<KvCache::Sequence> sequences, plain_sequences;
  std::mt19937 random(1);
  for (int64_t s = 0; s < steps; ++s) {
    if (s % 40 == 0 && sequences.size() < 4) {
      sequences.push_back(cache.add());
      plain_sequences.push_back(plain.add());
    }
    if (s % 90 == 89) {
      cache.drop(sequences.front());
      plain.drop(plain_sequences.front());
      sequences.erase(sequences.begin());
      plain_sequences.erase(plain_sequences.begin());
    }
    std::vector<int64_t> tokens;
    for (size_t i = 0; i < sequences.size(); ++i) tokens.push_back(static_cast<int64_t>(random() % 37));
    const at::Tensor found = decoder.step(tokens, sequences).cpu();
    const at::Tensor expected = plain_step(model, plain, tokens, plain_sequences).cpu();
    CAPTURE(s, sequences.size());
    CHECK(at::equal(found, expected));
  }
  *replays = decoder.replays();
}

}  // namespace

TEST_CASE("decoder: a step is an ordinary pass over one token of each sequence") {
  int64_t replays = 0;
  check_against_plain(test::tiny_llama(at::kFloat), 8, 150, &replays);
  CHECK(replays == 0);
}

TEST_CASE("On a GPU a replayed graph gives what an ordinary pass gives") {
  if (!at::globalContext().hasCUDA()) {
    WARN("no GPU: not tested");
    return;
  }
  ModelConfig config = test::tiny_config();
  config.head_dim = 64;
  TensorMap weights = test::tiny_weights(config, at::kBFloat16);
  for (auto& [name, tensor] : weights) tensor = tensor.to(at::kCUDA);
  int64_t replays = 0;
  check_against_plain(Llama(config, std::move(weights)), 128, 450, &replays);
  CHECK(replays > 300);
}

}  // namespace prulong
