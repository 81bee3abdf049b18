// SPDX-License-Identifier: MIT
#include "engine/cached_attention.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <memory>

#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"

namespace prulong {
namespace {

using test::extended_llama;
using test::tiny_llama;

constexpr int64_t kPage = 8, kSink = 3, kWindow = 13, kTokens = 75;

KvCacheOptions options_for(const Llama& model, const HeadMask& mask) {
  const ModelConfig& c = model.config();
  KvCacheOptions options;
  options.layers = c.layers;
  options.kv_heads = c.kv_heads;
  options.head_dim = c.head_dim;
  if (mask.heads.defined()) {
    for (int64_t i = 0; i < mask.heads.numel(); ++i) {
      options.is_global.push_back(mask.heads.view(-1)[i].item<bool>() ? 1 : 0);
    }
  }
  options.sink = mask.sink;
  options.window = mask.window;
  options.page = kPage;
  options.bytes = int64_t{1} << 22;
  options.dtype = model.dtype();
  return options;
}

/// Logits of all tokens of a sequence, `chunk` tokens at a time.
at::Tensor chunked(const Llama& model, KvCache& cache, KvCache::Sequence sequence, const at::Tensor& tokens,
                   int64_t chunk) {
  std::vector<at::Tensor> parts;
  for (int64_t begin = cache.tokens(sequence), end = begin + tokens.size(0), i = begin; i < end; i += chunk) {
    const int64_t count = std::min(chunk, end - i);
    const at::Tensor positions = at::arange(i, i + count, at::TensorOptions().dtype(at::kFloat));
    const auto attention = std::make_shared<CachedAttention>(cache, cache.append({sequence}, {count}));
    parts.push_back(model.logits(model.forward(tokens.narrow(0, i - begin, count), positions, attention), true));
  }
  return at::cat(parts);
}

at::Tensor chunked(const Llama& model, const HeadMask& mask, const at::Tensor& tokens, int64_t chunk) {
  KvCache cache(options_for(model, mask));
  return chunked(model, cache, cache.add(), tokens, chunk);
}

/// Masks of a model of two layers with two KV heads.
std::vector<HeadMask> masks() {
  const auto bools = at::TensorOptions().dtype(at::kBool);
  return {{{}, kSink, kWindow},
          {at::tensor({1, 0, 0, 1}, at::kLong).view({2, 2}).to(bools), kSink, kWindow},
          {at::tensor({0, 0, 0, 1}, at::kLong).view({2, 2}).to(bools), 0, kWindow},
          {at::tensor({0, 0, 0, 0}, at::kLong).view({2, 2}).to(bools), 2 * kPage, 1},
          {at::tensor({0, 1, 1, 0}, at::kLong).view({2, 2}).to(bools), 1, 1000}};
}

}  // namespace

TEST_CASE("cached attention: the same bits for every chunk size, and masked_attention's values") {
  const c10::NoGradGuard no_grad;
  for (const Llama& model : {tiny_llama(at::kFloat), extended_llama(at::kFloat)}) {
    const at::Tensor tokens = test::random_tokens(kTokens, model.config().vocab_size);
    for (const HeadMask& mask : masks()) {
      const at::Tensor whole = chunked(model, mask, tokens, kTokens);
      for (const int64_t chunk :
           {int64_t{1}, int64_t{7}, kPage - 1, kPage, kPage + 1, kWindow - 1, kWindow, kWindow + 1, int64_t{40}}) {
        CAPTURE(chunk, mask.sink, mask.window);
        CHECK(at::equal(chunked(model, mask, tokens, chunk), whole));
      }
      HeadMask all = mask;
      if (!all.heads.defined()) all.heads = at::tensor({1, 1, 1, 1}, at::kLong).view({2, 2}).to(at::kBool);
      const at::Tensor expected = model.logits(model.forward(PackedTokens::single(tokens), all));
      CHECK(at::allclose(whole, expected, 1e-4, 1e-5));
    }
  }
}

TEST_CASE("cached attention: float64 agrees with masked_attention to rounding") {
  const c10::NoGradGuard no_grad;
  const Llama model = tiny_llama(at::kDouble);
  const at::Tensor tokens = test::random_tokens(kTokens, model.config().vocab_size);
  for (const HeadMask& mask : masks()) {
    if (!mask.heads.defined()) continue;
    const at::Tensor expected = model.logits(model.forward(PackedTokens::single(tokens), mask));
    CHECK(at::allclose(chunked(model, mask, tokens, 7), expected, 1e-10, 1e-12));
  }
}

TEST_CASE("cached attention: forks go on from what they share, each by itself") {
  const c10::NoGradGuard no_grad;
  const Llama model = tiny_llama(at::kFloat);
  const at::Tensor tokens = test::random_tokens(60, model.config().vocab_size);
  const at::Tensor other = test::random_tokens(25, model.config().vocab_size);
  for (const HeadMask& mask : masks()) {
    KvCache cache(options_for(model, mask));
    const KvCache::Sequence first = cache.add();
    chunked(model, cache, first, tokens.narrow(0, 0, 35), 10);
    const KvCache::Sequence second = cache.fork(first);
    const at::Tensor of_first = chunked(model, cache, first, tokens.narrow(0, 35, 25), 6);
    const at::Tensor of_second = chunked(model, cache, second, other, 4);
    CHECK(at::equal(of_first, chunked(model, mask, tokens, 60).narrow(0, 35, 25)));
    const at::Tensor whole = chunked(model, mask, at::cat({tokens.narrow(0, 0, 35), other}), 60);
    CHECK(at::equal(of_second, whole.narrow(0, 35, 25)));
  }
}

TEST_CASE("cached attention: tokens taken back leave no trace") {
  const c10::NoGradGuard no_grad;
  const Llama model = tiny_llama(at::kFloat);
  const at::Tensor tokens = test::random_tokens(60, model.config().vocab_size);
  for (const HeadMask& mask : masks()) {
    KvCacheOptions options = options_for(model, mask);
    options.slack = 9;
    KvCache cache(options);
    const KvCache::Sequence sequence = cache.add();
    chunked(model, cache, sequence, tokens.narrow(0, 0, 40), 16);
    chunked(model, cache, sequence, test::random_tokens(9, model.config().vocab_size), 9);
    cache.truncate(sequence, 9);
    const at::Tensor rest = chunked(model, cache, sequence, tokens.narrow(0, 40, 20), 5);
    CHECK(at::equal(rest, chunked(model, mask, tokens, 60).narrow(0, 40, 20)));
  }
}

}  // namespace prulong
