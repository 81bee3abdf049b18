// SPDX-License-Identifier: MIT
#include "model/llama.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

#include "common/error.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"

namespace prulong {
namespace {

using test::tiny_llama;

const auto kF64 = at::TensorOptions().dtype(at::kDouble);
const auto kI32 = at::TensorOptions().dtype(at::kInt);

/// Three documents of 5, 1 and 7 tokens.
PackedTokens three_documents() { return PackedTokens::documents(test::random_tokens(13, 37), {0, 5, 6, 13}); }

/// Gates of every sort: closed, open and in between.
at::Tensor mixed_gates() { return at::tensor({0.3, 1.0, 0.0, 0.8}, kF64).view({2, 2}); }

/// The model by the textbook formulas on one document, every head by its own [T, T] scores.
at::Tensor textbook(const Llama& model, const at::Tensor& tokens, const at::Tensor& gates, int64_t sink,
                    int64_t window) {
  const ModelConfig& c = model.config();
  const auto weight = [&](const std::string& name) { return model.weights().at(name + ".weight"); };
  const auto norm = [&](const at::Tensor& x, const at::Tensor& w) {
    return x.div(x.pow(2).mean(-1, true).add(c.rms_norm_eps).sqrt()).mul(w);
  };
  const int64_t count = tokens.size(0), half = c.head_dim / 2;
  const auto size = static_cast<double>(c.head_dim);
  const at::Tensor position = at::arange(count, kF64).unsqueeze(1);
  const at::Tensor angle = position.mul(at::arange(half, kF64).mul(-2.0 * std::log(c.rope.theta) / size).exp());
  const auto turn = [&](const at::Tensor& x) {  // [T, D]
    const at::Tensor a = x.narrow(1, 0, half), b = x.narrow(1, half, half);
    return at::cat({a.mul(angle.cos()).sub(b.mul(angle.sin())), b.mul(angle.cos()).add(a.mul(angle.sin()))}, 1);
  };
  const at::Tensor distance = position.sub(position.t());
  const at::Tensor causal = distance.ge(0),
                   local = causal.logical_and(distance.lt(window).logical_or(position.t().lt(sink)));
  at::Tensor x = weight("model.embed_tokens").index_select(0, tokens);
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    const at::Tensor h = norm(x, weight(layer + "input_layernorm"));
    const auto head = [&](const std::string& name, int64_t i) {
      const std::string where = layer + "self_attn." + name;
      const auto rows = [&](const at::Tensor& all) { return all.narrow(0, i * c.head_dim, c.head_dim); };
      at::Tensor y = h.mm(rows(weight(where + "_proj")).t());
      if (c.qkv_biases) y = y.add(rows(model.weights().at(where + "_proj.bias")));
      if (c.qk_norms && name != "v") y = norm(y, weight(where + "_norm"));
      return y;
    };
    std::vector<at::Tensor> outputs;
    for (int64_t i = 0; i < c.query_heads; ++i) {
      const int64_t group = i / (c.query_heads / c.kv_heads);
      const at::Tensor scores = turn(head("q", i)).mm(turn(head("k", group)).t()).div(std::sqrt(size));
      const auto attend = [&](const at::Tensor& visible) {
        return scores.masked_fill(visible.logical_not(), -INFINITY).softmax(-1).mm(head("v", group));
      };
      const at::Tensor z = gates[l][group];
      outputs.push_back(attend(causal).mul(z).add(attend(local).mul(z.neg().add(1))));
    }
    x = x.add(at::cat(outputs, 1).mm(weight(layer + "self_attn.o_proj").t()));
    const at::Tensor m = norm(x, weight(layer + "post_attention_layernorm"));
    const at::Tensor gate = m.mm(weight(layer + "mlp.gate_proj").t()), up = m.mm(weight(layer + "mlp.up_proj").t());
    x = x.add(gate.mul(gate.sigmoid()).mul(up).mm(weight(layer + "mlp.down_proj").t()));
  }
  return norm(x, weight("model.norm"));
}

/// A scalar that depends on every entry of the output.
at::Tensor score(const at::Tensor& hidden) {
  return hidden.to(at::kDouble).mul(at::arange(hidden.numel(), kF64).sin().view(hidden.sizes())).sum();
}

TEST_CASE("llama: the textbook formulas, gates and packed documents included") {
  const Llama model = GENERATE(false, true) ? test::extended_llama(at::kDouble) : tiny_llama(at::kDouble);
  const PackedTokens input = three_documents();
  const HeadMask mask{mixed_gates(), 1, 2};
  std::vector<at::Tensor> alone;
  for (const auto& [begin, length] : {std::pair{0, 5}, std::pair{5, 1}, std::pair{6, 7}}) {
    alone.push_back(textbook(model, input.tokens.narrow(0, begin, length), mask.heads, mask.sink, mask.window));
  }
  // 1e-6: RoPE's frequencies are float32, as everywhere.
  CHECK(at::allclose(model.forward(input, mask), at::cat(alone, 0), 0, 1e-6));
  CHECK_FALSE(at::allclose(model.forward(input, {}), at::cat(alone, 0), 0, 1e-2));
}

TEST_CASE("llama: packed documents give what each gives alone") {
  const Llama model = tiny_llama(at::kDouble);
  const PackedTokens input = three_documents();
  const HeadMask mask{mixed_gates(), 1, 2};
  const at::Tensor packed = model.forward(input, mask);
  for (const auto& [begin, length] : {std::pair{0, 5}, std::pair{5, 1}, std::pair{6, 7}}) {
    const at::Tensor alone = model.forward(PackedTokens::single(input.tokens.narrow(0, begin, length)), mask);
    // Attention sees only differences of positions: that they restart shows in the float32 angles' rounding alone.
    CHECK(at::allclose(packed.narrow(0, begin, length), alone, 0, 1e-12));
  }
}

TEST_CASE("llama: boolean mask, gates of zero and one, and no mask agree") {
  const Llama model = tiny_llama(at::kFloat);
  const PackedTokens input = three_documents();
  const at::Tensor mask = at::tensor({1, 0, 0, 1}).to(at::kBool).view({2, 2});
  const at::Tensor by_mask = model.forward(input, {mask, 1, 2});
  CHECK(at::allclose(by_mask, model.forward(input, {mask.to(at::kFloat), 1, 2}), 1e-5, 1e-5));
  const at::Tensor open = model.forward(input, {});
  CHECK(at::allclose(open, model.forward(input, {at::ones({2, 2}), 1, 2}), 1e-6, 1e-6));
  CHECK(at::allclose(open, model.forward(input, {at::ones({2, 2}).to(at::kBool), 1, 2}), 1e-5, 1e-5));
  CHECK_FALSE(at::allclose(open, by_mask, 1e-2, 1e-2));
}

TEST_CASE("llama: mask of a pattern") {
  const Llama model = tiny_llama(at::kFloat);
  Pattern pattern;
  pattern.model = model.config().shape();
  pattern.sink = 1;
  pattern.window = 2;
  pattern.scores = {1, 0, 0, 1};
  pattern.mask = {1, 0, 0, 1};
  const HeadMask mask = HeadMask::from_pattern(pattern, model.config(), at::kCPU);
  CHECK(at::equal(mask.heads, at::tensor({1, 0, 0, 1}).to(at::kBool).view({2, 2})));
  CHECK(mask.sink == 1);
  CHECK(mask.window == 2);
  pattern.model.layers = 3;
  CHECK_THROWS_AS(HeadMask::from_pattern(pattern, model.config(), at::kCPU), Error);
}

TEST_CASE("llama: gate gradients by finite differences") {
  const Llama model = tiny_llama(at::kDouble);
  const PackedTokens input = three_documents();
  const at::Tensor gates = at::tensor({0.3, 0.6, 0.5, 0.8}, kF64).view({2, 2}).set_requires_grad(true);
  const auto value = [&](const at::Tensor& g) { return score(model.forward(input, {g, 1, 2})); };
  const at::Tensor found = torch::autograd::grad({value(gates)}, {gates})[0];
  const double step = 1e-5;
  const c10::NoGradGuard no_grad;
  for (int64_t i = 0; i < 4; ++i) {
    at::Tensor up = gates.detach().clone(), down = gates.detach().clone();
    up.view(-1)[i].add_(step);
    down.view(-1)[i].sub_(step);
    const double expected = (value(up).item<double>() - value(down).item<double>()) / (2 * step);
    CHECK(found.view(-1)[i].item<double>() == Approx(expected).epsilon(1e-6).margin(1e-8));
  }
}

TEST_CASE("llama: weight and gate gradients against the textbook model") {
  for (Llama model :
       {tiny_llama(at::kDouble), tiny_llama(at::kDouble, /*tied=*/true), test::extended_llama(at::kDouble)}) {
    model.set_trainable(true);
    const at::Tensor tokens = test::random_tokens(9, 37), labels = test::random_tokens(9, 37);
    const at::Tensor gates = at::tensor({0.3, 0.6, 0.5, 0.8}, kF64).view({2, 2}).set_requires_grad(true);
    std::vector<at::Tensor> leaves{gates};
    for (const auto& [name, weight] : model.weights()) leaves.push_back(weight);
    const at::Tensor found = model.forward(PackedTokens::single(tokens), {gates, 1, 2});
    const at::Tensor expected = textbook(model, tokens, gates, 1, 2);
    const auto loss = [&](const at::Tensor& hidden) { return next_token_loss(hidden, model.head_weight(), labels, 4); };
    const auto found_grads = torch::autograd::grad({loss(found)}, leaves);
    const auto expected_grads = torch::autograd::grad({loss(expected)}, leaves);
    for (size_t i = 0; i < leaves.size(); ++i) CHECK(at::allclose(found_grads[i], expected_grads[i], 1e-5, 1e-5));
  }
}

TEST_CASE("llama: recomputing changes neither values nor gradients by a bit") {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [trainable, extended] : {std::pair{false, false}, {true, false}, {false, true}, {true, true}}) {
      Llama model = extended ? test::extended_llama(dtype) : tiny_llama(dtype);
      model.set_trainable(trainable);
      const PackedTokens input = three_documents();
      const at::Tensor gates = mixed_gates().to(at::kFloat).set_requires_grad(true);
      std::vector<at::Tensor> leaves{gates};
      if (trainable) {
        // The head is no part of the hidden states.
        for (const auto& [name, weight] : model.weights()) {
          if (name != "lm_head.weight") leaves.push_back(weight);
        }
      }
      const at::Tensor plain = model.forward(input, {gates, 1, 2});
      const auto plain_grads = torch::autograd::grad({score(plain)}, leaves);
      // The attention's results of no layer, the last one, all, and more than there are.
      for (const int64_t results : {int64_t{0}, int64_t{1}, model.config().layers, int64_t{99}}) {
        const at::Tensor again = model.forward(input, {gates, 1, 2}, {true, results});
        CHECK(at::equal(plain, again));
        const auto again_grads = torch::autograd::grad({score(again)}, leaves);
        for (size_t i = 0; i < leaves.size(); ++i) CHECK(at::equal(plain_grads[i], again_grads[i]));
      }
    }
  }
}

TEST_CASE("llama: attention whose results are kept is computed once") {
  static int64_t runs = 0;
  const auto count = [](const at::RecordFunction& call) -> std::unique_ptr<at::ObserverContext> {
    if (std::string(call.name()) == "prulong::gated_attention_forward") ++runs;
    return nullptr;
  };
  const auto handle = at::addGlobalCallback(at::RecordFunctionCallback(count).scopes({at::RecordScope::FUNCTION}));
  const Llama model = tiny_llama(at::kDouble);
  const int64_t layers = model.config().layers;
  // A layer without a fractional gate too.
  const at::Tensor gates = at::tensor({0.0, 1.0, 0.0, 0.8}, kF64).view({2, 2}).set_requires_grad(true);
  for (const int64_t results : {int64_t{0}, int64_t{1}, layers}) {
    runs = 0;
    score(model.forward(three_documents(), {gates, 1, 2}, {true, results})).backward();
    CHECK(runs == 2 * layers - results);
  }
  at::removeCallback(handle);
}

TEST_CASE("llama: frozen weights get no gradient, and without gates nothing is recorded") {
  Llama model = tiny_llama(at::kFloat);
  const PackedTokens input = three_documents();
  CHECK_FALSE(model.forward(input, {}).requires_grad());
  CHECK_FALSE(model.forward(input, {}, {true}).requires_grad());
  const at::Tensor gates = at::rand({2, 2}).set_requires_grad(true);
  next_token_loss(model.forward(input, {gates, 1, 2}), model.head_weight(), test::random_tokens(13, 37), 4).backward();
  CHECK(gates.grad().defined());
  for (const auto& [name, weight] : model.weights()) CHECK_FALSE(weight.grad().defined());

  model.set_trainable(true);
  for (const auto& [name, weight] : model.weights()) CHECK((weight.requires_grad() && weight.is_leaf()));
  model.forward(input, {}).sum().backward();
  CHECK(model.weights().at("model.layers.0.mlp.up_proj.weight").grad().defined());
  CHECK_THROWS_WITH(model.forward(input, {at::ones({2, 2}).to(at::kBool), 1, 2}),
                    ContainsSubstring("has no gradients"));
  model.set_trainable(false);
  CHECK_FALSE(model.forward(input, {}).requires_grad());
}

TEST_CASE("llama: bfloat16 stays near float32") {
  const ModelConfig config = test::tiny_config();
  TensorMap narrow = test::tiny_weights(config, at::kBFloat16), wide;
  for (const auto& [name, weight] : narrow) wide[name] = weight.to(at::kFloat);
  const PackedTokens input = three_documents();
  const at::Tensor found = Llama(config, narrow).forward(input, {});
  CHECK(found.scalar_type() == at::kBFloat16);
  CHECK(at::allclose(found.to(at::kFloat), Llama(config, wide).forward(input, {}), 0.1, 0.1));
}

TEST_CASE("llama: without values it has the shapes and takes no memory") {
  const Llama model = Llama::without_values(test::extended_config(), at::kBFloat16);
  const TensorMap real = test::tiny_weights(test::extended_config(), at::kBFloat16);
  CHECK(model.device() == at::kMeta);
  CHECK(model.dtype() == at::kBFloat16);
  REQUIRE(model.weights().size() == real.size());
  for (const auto& [name, weight] : model.weights()) {
    CHECK(weight.sizes() == real.at(name).sizes());
    CHECK(weight.device() == at::kMeta);
  }
}

TEST_CASE("llama: an MLP in chunks of rows gives each row what it gives alone") {
  const Llama model = tiny_llama(at::kDouble);
  const int64_t rows = 8192 + 5;  // more than one chunk
  const PackedTokens input = PackedTokens::documents(test::random_tokens(rows, 37), {0, 100, 8190, rows});
  const HeadMask mask{mixed_gates(), 1, 2};
  const at::Tensor gates = mixed_gates().set_requires_grad(true);
  const at::Tensor plain = model.forward(input, {gates, 1, 2}), again = model.forward(input, {gates, 1, 2}, {true});
  const at::Tensor last = model.forward(PackedTokens::single(input.tokens.narrow(0, 8190, 7)), mask);
  CHECK(at::allclose(plain.narrow(0, 8190, 7), last, 0, 1e-12));
  CHECK(at::equal(plain, again));
  CHECK(
      at::equal(torch::autograd::grad({score(plain)}, {gates})[0], torch::autograd::grad({score(again)}, {gates})[0]));
}

TEST_CASE("packed tokens: positions restart in each document; bad bounds are refused") {
  const at::Tensor tokens = test::random_tokens(6, 37);
  const PackedTokens input = PackedTokens::documents(tokens, {0, 3, 3, 6});
  CHECK(at::equal(input.positions, at::tensor({0, 1, 2, 0, 1, 2}).to(at::kFloat)));
  CHECK(at::equal(input.cu_seqlens, at::tensor({0, 3, 3, 6}, kI32)));
  CHECK(input.max_seqlen == 3);
  const auto refused = [&](const std::vector<int32_t>& bounds, const char* message) {
    CHECK_THROWS_WITH(PackedTokens::documents(tokens, bounds), ContainsSubstring(message));
  };
  refused({0, 5}, "must rise from 0 to 6, found 0 and 5 at its ends");
  refused({1, 6}, "found 1 and 6 at its ends");
  refused({0, 4, 3, 6}, "document 1 from 4 to 3");
  refused({0, 90, 6}, "document 0 from 0 to 90");
  refused({0}, "found 1 bound(s)");
  CHECK_THROWS_WITH(PackedTokens::single(tokens.to(at::kInt)), ContainsSubstring("one row of int64"));
  CHECK_THROWS_WITH(PackedTokens::single(tokens.view({2, 3})), ContainsSubstring("2 dimension(s)"));
}

TEST_CASE("llama: bad input is refused by name") {
  const Llama model = tiny_llama(at::kFloat);
  const auto refused = [&](const PackedTokens& input, const HeadMask& mask, const char* message) {
    CHECK_THROWS_WITH(model.forward(input, mask), ContainsSubstring(message));
    CHECK_THROWS_AS(model.forward(input, mask), Error);
  };
  PackedTokens input = three_documents();
  input.tokens.select(0, 9).fill_(37);
  refused(input, {}, "token 37 at position 9 is outside the model's vocabulary of 37");
  input.tokens.select(0, 4).fill_(-1);
  refused(input, {}, "token -1 at position 4");
  input = three_documents();
  input.tokens = input.tokens.to(at::kInt);
  refused(input, {}, "tokens must be one row of int64");
  input = three_documents();
  input.positions = input.positions.narrow(0, 0, 5);
  refused(input, {}, "positions must be float32 of the tokens' shape");
  input = three_documents();
  refused(input, {at::ones({2, 3}), 1, 2}, "head mask has shape [2, 3], the model has [2, 2]");
  refused(input, {at::ones({2, 2}).to(at::kInt), 1, 2}, "head mask must be float32 or bool");
}

}  // namespace
}  // namespace prulong
