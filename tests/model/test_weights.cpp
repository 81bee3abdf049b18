// SPDX-License-Identifier: MIT
// Loading from and saving to folders.
#include "model/weights.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>

#include <functional>

#include "common/error.h"
#include "model/llama.h"
#include "model/save_model.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"
#include "tests/support/files.h"

namespace prulong {
namespace {

using test::read_text;
using test::TemporaryFolder;
using test::tiny_config_json;

TensorMap weights(bool tied = false) { return test::tiny_weights(test::tiny_config(tied), at::kFloat); }

TEST_CASE("llama weights: a folder loads in any dtype") {
  const TemporaryFolder folder;
  test::write_text(folder / "config.json", tiny_config_json());
  TensorMap stored = weights();
  stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::zeros({3});
  save_safetensors(folder / "model.safetensors", stored);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    const Llama model = Llama::load(folder.path(), dtype, at::kCPU);
    CHECK(model.dtype() == dtype);
    CHECK(model.device() == at::kCPU);
    CHECK(model.config().head_dim == 6);
    CHECK(model.weights().size() == stored.size() - 1);
    CHECK(at::equal(model.head_weight(), stored.at("lm_head.weight").to(dtype)));
  }
}

TEST_CASE("llama weights: missing, unexpected and misfitting tensors are refused by name") {
  const auto refused = [](const std::function<void(TensorMap&)>& change, const std::string& message,
                          bool tied = false) {
    const TemporaryFolder folder;
    test::write_text(folder / "config.json", tiny_config_json(tied));
    TensorMap stored = weights(tied);
    change(stored);
    save_safetensors(folder / "model.safetensors", stored);
    CHECK_THROWS_WITH(Llama::load(folder.path(), at::kFloat, at::kCPU),
                      ContainsSubstring("model.safetensors: ") && ContainsSubstring(message));
    CHECK_THROWS_AS(Llama::load(folder.path(), at::kFloat, at::kCPU), Error);
  };
  const std::string up = "model.layers.1.mlp.up_proj.weight";
  for (const auto& [name, tensor] : weights()) {
    refused([&, gone = name](TensorMap& w) { w.erase(gone); }, "tensor \"" + name + "\" is missing");
  }
  refused(
      [&](TensorMap& w) {
        w[up] = at::zeros({28, 21});
      },
      "tensor \"" + up + "\" has shape [28, 21], config.json asks for [28, 20]");
  refused([&](TensorMap& w) { w[up] = at::zeros({28, 20}).to(at::kInt); }, "tensor \"" + up + "\" has dtype Int");
  refused([](TensorMap& w) { w["model.layers.0.self_attn.q_proj.bias"] = at::zeros({24}); },
          "tensor \"model.layers.0.self_attn.q_proj.bias\" [24] has no place in a llama of 2 layers");
  refused([](TensorMap& w) { w["model.layers.2.mlp.up_proj.weight"] = at::zeros({28, 20}); }, "has no place");
  refused([](TensorMap& w) { w["lm_head.weight"] = w["model.embed_tokens.weight"].add(1); },
          "config.json ties the embeddings, but tensor \"lm_head.weight\" differs", true);

  // The tensors that families add are no less needed, and no less shaped.
  const ModelConfig extended = test::extended_config();
  for (const auto& [name, shape] : {std::pair<std::string, std::string>{"q_proj.bias", "[24]"},
                                    {"k_proj.bias", "[12]"},
                                    {"v_proj.bias", "[12]"},
                                    {"q_norm.weight", "[6]"},
                                    {"k_norm.weight", "[6]"}}) {
    TensorMap stored = test::tiny_weights(extended, at::kFloat);
    const std::string full = "model.layers.1.self_attn." + name;
    CHECK_THROWS_WITH(Llama(test::tiny_config(), stored), ContainsSubstring("has no place in a llama"));
    stored.at(full) = at::zeros({5});
    CHECK_THROWS_WITH(Llama(extended, stored),
                      ContainsSubstring("\"" + full + "\" has shape [5], config.json asks for " + shape));
    stored.erase(full);
    CHECK_THROWS_WITH(Llama(extended, stored), ContainsSubstring("\"" + full + "\" is missing, expected " + shape));
  }

  TensorMap mixed = weights();
  mixed[up] = mixed[up].to(at::kDouble);
  CHECK_THROWS_WITH(Llama(test::tiny_config(), mixed), ContainsSubstring("tensor \"" + up + "\" is Double on cpu"));
}

TEST_CASE("llama weights: a head that repeats tied embeddings is dropped") {
  TensorMap repeated = weights(true);
  repeated["lm_head.weight"] = repeated["model.embed_tokens.weight"].clone();
  const Llama model(test::tiny_config(true), repeated);
  CHECK_FALSE(model.weights().contains("lm_head.weight"));
  CHECK(model.head_weight().is_same(model.weights().at("model.embed_tokens.weight")));
}

TEST_CASE("llama weights: tensors are taken for what transformers takes them") {
  const auto same = [](const Llama& model, const TensorMap& expected) {
    REQUIRE(model.weights().size() == expected.size());
    for (const auto& [name, weight] : expected) CHECK(at::equal(model.weights().at(name), weight));
  };
  // A tied matrix as safetensors' save_model leaves it: the head alone.
  TensorMap stored = weights(true);
  auto node = stored.extract("model.embed_tokens.weight");
  node.key() = "lm_head.weight";
  stored.insert(std::move(node));
  same(Llama(test::tiny_config(true), stored), weights(true));
  // A decoder saved without its head.
  stored.clear();
  for (const auto& [name, weight] : weights(true)) stored[name.substr(std::string("model.").size())] = weight;
  same(Llama(test::tiny_config(true), stored), weights(true));
  stored["model.norm.weight"] = stored["norm.weight"];
  CHECK_THROWS_WITH(Llama(test::tiny_config(true), stored),
                    ContainsSubstring("tensors \"norm.weight\" and \"model.norm.weight\" are one weight"));
  // Parts that the model has not, of any dtype and device.
  stored = weights();
  stored["score.weight"] = at::zeros({2, 20});
  stored["steps"] = at::zeros({}, at::kInt);
  stored["rotary_emb.inv_freq"] = stored["model.rotary_emb.inv_freq"] = at::zeros({3}, at::kDouble);
  same(Llama(test::tiny_config(), stored), weights());
  // But nothing inside of what is computed.
  stored["lm_head.bias"] = at::zeros({10});
  CHECK_THROWS_WITH(Llama(test::tiny_config(), stored), ContainsSubstring("\"lm_head.bias\" [10] has no place"));
}

TEST_CASE("llama weights: saved models load again, with the dtype in config.json") {
  const TemporaryFolder from, to;
  test::write_text(from / "config.json", "{\"loss\": [NaN, -Infinity]," + tiny_config_json(true).substr(1));
  test::write_text(from / "tokenizer.json", "{}");
  const Llama model = test::tiny_llama(at::kFloat, true);
  for (int times = 0; times < 2; ++times) save_model(to / "out", model, from.path());
  const Llama again = Llama::load(to / "out", at::kFloat, at::kCPU);
  REQUIRE(again.weights().size() == model.weights().size());
  for (const auto& [name, weight] : model.weights()) CHECK(at::equal(again.weights().at(name), weight));
  CHECK(std::filesystem::exists(to.path() / "out" / "tokenizer.json"));
  CHECK_THAT(test::read_text(to / "out" / "config.json"), ContainsSubstring("\"torch_dtype\": \"float32\""));
  CHECK_THAT(test::read_text(to / "out" / "config.json"),
             ContainsSubstring("\"loss\": [\n    NaN,\n    -Infinity\n  ]"));
  // Back over its own source, too.
  save_model(to / "out", model, to / "out");
  CHECK(Llama::load(to / "out", at::kFloat, at::kCPU).weights().size() == model.weights().size());

  std::map<std::string, std::string> metadata;
  load_safetensors(to.path() / "out" / "model.safetensors", &metadata);
  CHECK(metadata.at("format") == "pt");
  CHECK_THROWS_WITH(save_model(to / "x", model, to / "no"),
                    ContainsSubstring("config.json: expected JSON, found something else"));
}

}  // namespace
}  // namespace prulong
