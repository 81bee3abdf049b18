// SPDX-License-Identifier: MIT
#include "model/model_config.h"

#include <nlohmann/json.hpp>
#include <string>

#include "common/error.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"
#include "tests/support/files.h"

namespace prulong {
namespace {

using nlohmann::json;

const json kPlain = {{"model_type", "llama"},    {"vocab_size", 100},      {"hidden_size", 64},
                     {"intermediate_size", 128}, {"num_hidden_layers", 3}, {"num_attention_heads", 8}};

ModelConfig read(const json& config) {
  const test::TemporaryFolder folder;
  test::write_text(folder / "config.json", config.dump());
  return read_model_config(folder.path());
}

/// kPlain with changes merged in; null removes a key.
json with(const json& changes) {
  json config = kPlain;
  config.update(changes);
  return config;
}

TEST_CASE("model config: defaults are those of transformers") {
  const ModelConfig config = read(kPlain);
  CHECK(config.model_type == "llama");
  CHECK(config.vocab_size == 100);
  CHECK(config.hidden_size == 64);
  CHECK(config.intermediate_size == 128);
  CHECK(config.layers == 3);
  CHECK(config.query_heads == 8);
  CHECK(config.kv_heads == 8);
  CHECK(config.head_dim == 8);
  CHECK(config.rms_norm_eps == 1e-6);
  CHECK_FALSE(config.tied_embeddings);
  CHECK(config.max_positions == 2048);
  CHECK(config.rope.kind == RopeConfig::Kind::kDefault);
  CHECK(config.rope.theta == 10000.0);
  CHECK(config.shape() == ModelShape{"llama", 3, 8, 8, 8});
  CHECK_FALSE(config.qkv_biases);
  CHECK_FALSE(config.qk_norms);
}

TEST_CASE("model config: families, and what transformers assumes of them") {
  const ModelConfig mistral = read(with({{"model_type", "mistral"}, {"sliding_window", nullptr}}));
  CHECK(mistral.shape() == ModelShape{"mistral", 3, 8, 8, 8});
  CHECK(mistral.max_positions == 131072);
  CHECK_FALSE(mistral.qkv_biases);
  CHECK_FALSE(mistral.qk_norms);

  const ModelConfig qwen2 = read(with({{"model_type", "qwen2"}, {"num_attention_heads", 32}}));
  CHECK(qwen2.shape() == ModelShape{"qwen2", 3, 32, 32, 2});
  CHECK(qwen2.max_positions == 32768);
  CHECK(qwen2.qkv_biases);
  CHECK_FALSE(qwen2.qk_norms);

  const ModelConfig qwen3 = read(with({{"model_type", "qwen3"}, {"num_key_value_heads", 2}}));
  CHECK(qwen3.shape() == ModelShape{"qwen3", 3, 2, 8, 128});
  CHECK(qwen3.max_positions == 32768);
  CHECK_FALSE(qwen3.qkv_biases);
  CHECK(qwen3.qk_norms);

  for (const char* type : {"mistral", "qwen2", "qwen3"}) {
    const ModelConfig config =
        read(with({{"model_type", type}, {"num_key_value_heads", nullptr}, {"sliding_window", nullptr}}));
    CHECK(config.kv_heads == 8);
    CHECK(config.rms_norm_eps == 1e-6);
    CHECK(config.rope.theta == 10000.0);
    CHECK_FALSE(config.tied_embeddings);
  }
}

TEST_CASE("model config: RoPE as transformers 4.x and 5.x write it") {
  const json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  json nested = llama3;
  nested["rope_theta"] = 500000.0;
  json untold = llama3;
  untold.erase("original_max_position_embeddings");
  for (const json& changes :
       {json{{"rope_theta", 500000.0}, {"rope_scaling", llama3}}, json{{"rope_parameters", nested}},
        json{{"rope_theta", 5e5}, {"rope_scaling", untold}, {"max_position_embeddings", 8192}}}) {
    const RopeConfig rope = read(with(changes)).rope;
    CHECK(rope.kind == RopeConfig::Kind::kLlama3);
    CHECK(rope.theta == 500000.0);
    CHECK(rope.factor == 8.0);
    CHECK(rope.low_freq_factor == 1.0);
    CHECK(rope.high_freq_factor == 4.0);
    CHECK(rope.original_max_positions == 8192);
  }
  const RopeConfig linear = read(with({{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}})).rope;
  CHECK(linear.kind == RopeConfig::Kind::kLinear);
  CHECK(linear.factor == 2.0);
  CHECK(linear.theta == 10000.0);
  const RopeConfig plain = read(with({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 100000}}}})).rope;
  CHECK(plain.kind == RopeConfig::Kind::kDefault);
  CHECK(plain.theta == 100000.0);
  CHECK(read(with({{"rope_scaling", nullptr}, {"rope_theta", 25.0}})).rope.theta == 25.0);
}

TEST_CASE("model config: accepted variants") {
  CHECK(read(with({{"head_dim", 32}, {"num_key_value_heads", 2}})).head_dim == 32);
  CHECK(read(with({{"head_dim", 32}, {"hidden_size", 63}})).hidden_size == 63);
  CHECK(read(with({{"tie_word_embeddings", true}})).tied_embeddings);
  CHECK(read(with({{"sliding_window", 4096}, {"use_sliding_window", false}})).layers == 3);
  CHECK(read(with({{"layer_types", {"full_attention", "full_attention", "full_attention"}}})).layers == 3);
  for (const char* type : {"qwen2", "qwen3"}) {  // their window is off unless its switch is on
    const json base = {{"model_type", type}, {"num_key_value_heads", 8}};
    for (const json& changes : {json{{"sliding_window", 4096}},
                                json{{"sliding_window", 4096}, {"use_sliding_window", false}, {"max_window_layers", 2}},
                                json{{"sliding_window", nullptr}, {"use_sliding_window", true}},
                                json{{"layer_types", {"full_attention", "full_attention", "full_attention"}}},
                                json{{"layer_types", nullptr}, {"attention_bias", false}}}) {
      json config = base;
      config.update(changes);
      INFO(config.dump());
      CHECK(read(with(config)).layers == 3);
    }
  }
  CHECK(read(with({{"attention_dropout", 0.1}, {"unknown_key", "x"}, {"quantization_config", nullptr}})).layers == 3);
}

TEST_CASE("model config: what would change the mathematics is refused by name") {
  const auto refused = [](const json& changes, const std::string& message) {
    INFO(changes.dump());
    CHECK_THROWS_WITH(read(with(changes)), ContainsSubstring("config.json: ") && ContainsSubstring(message));
    CHECK_THROWS_AS(read(with(changes)), Error);
  };
  refused({{"model_type", "gpt2"}},
          R"("model_type" is "gpt2"; supported model types: "llama", "mistral", "qwen2", "qwen3")");
  refused({{"model_type", "qwen3_moe"}}, R"("model_type" is "qwen3_moe"; supported model types)");
  refused({{"model_type", nullptr}}, R"("model_type" is null)");
  refused({{"hidden_act", "gelu"}}, R"("hidden_act" is "gelu"; only "silu")");
  refused({{"attention_bias", true}}, R"("attention_bias" is true)");
  refused({{"mlp_bias", true}}, R"("mlp_bias" is true)");
  refused({{"quantization_config", {{"bits", 4}}}}, R"("quantization_config" is {"bits":4})");
  refused({{"sliding_window", 4096}}, R"("sliding_window" is 4096)");
  refused({{"sliding_window", 4096}, {"use_sliding_window", true}}, R"("sliding_window" is 4096)");
  refused({{"layer_types", {"full_attention", "sliding_attention"}}}, R"("layer_types" is ["full_attention",)");
  refused({{"layer_types", "full_attention"}}, R"("layer_types" is "full_attention"; expected a list)");
  refused({{"layer_types", {1}}}, R"("layer_types" is [1]; only layers of "full_attention")");
  refused({{"pretraining_tp", 2}}, R"("pretraining_tp" is 2; only 1)");
  refused({{"partial_rotary_factor", 0.5}}, R"("partial_rotary_factor" is 0.5)");
  refused({{"num_key_value_heads", 3}},
          R"("num_key_value_heads" is 3; it must divide "num_attention_heads", which is 8)");
  refused({{"hidden_size", 63}}, R"("hidden_size" is 63)");
  refused({{"head_dim", 7}}, R"("head_dim" is 7; RoPE needs an even size)");
  refused({{"hidden_size", 24}}, R"("head_dim" is missing; RoPE needs an even size, it would be 3)");
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}) {
    for (const json& value :
         {json(0), json(-1), json(1.5), json("8"), json(true), json(3000000000), json(json::array())}) {
      refused({{key, value}}, std::string("\"") + key + "\" is " + value.dump() + "; expected an integer");
    }
    refused({{key, nullptr}}, std::string("\"") + key + "\" is null; expected an integer");
  }
  refused({{"num_hidden_layers", 2000000000}}, R"("num_hidden_layers" is 2000000000; expected an integer)");
  refused({{"rms_norm_eps", 0}}, R"("rms_norm_eps" is 0; expected a positive number)");
  refused({{"rms_norm_eps", "1e-6"}}, R"("rms_norm_eps" is "1e-6")");
  refused({{"tie_word_embeddings", 1}}, R"("tie_word_embeddings" is 1; expected true or false)");
  refused({{"rope_theta", -1.0}}, R"("rope_theta" is -1.0)");
  refused({{"rope_scaling", "linear"}}, R"("rope_scaling" is "linear"; expected an object)");
  refused({{"rope_scaling", {{"type", "yarn"}, {"factor", 2}}}}, R"("rope_scaling.type" is "yarn"; supported are)");
  refused({{"rope_parameters", {{"rope_type", "dynamic"}, {"factor", 2}}}},
          R"("rope_parameters.rope_type" is "dynamic")");
  refused({{"rope_scaling", {{"type", "linear"}}}}, R"("rope_scaling.factor" is missing; expected a positive number)");
  refused({{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}}}}, R"("rope_scaling.low_freq_factor" is missing)");
  refused({{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 4}}}},
          R"("rope_scaling.high_freq_factor" is 4; expected more than low_freq_factor)");
  refused({{"rope_parameters", {{"rope_theta", 1e4}, {"partial_rotary_factor", 0.25}}}},
          R"("rope_parameters.partial_rotary_factor" is 0.25)");
  refused({{"rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}}}},
          R"("rope_parameters.full_attention" is {)");
  refused({{"rope_parameters", {{"rope_theta", 1e4}}}, {"rope_scaling", {{"rope_theta", 1e5}}}},
          R"(it differs from "rope_parameters")");
}

TEST_CASE("model config: what a family has and this model has not") {
  const auto refused = [](const char* type, const json& changes, const std::string& message) {
    json config = {{"model_type", type}, {"num_key_value_heads", 8}, {"sliding_window", nullptr}};
    config.update(changes);
    INFO(config.dump());
    json whole = with(config);
    for (const auto& [key, value] : config.items()) {
      if (value == "absent") whole.erase(key);
    }
    CHECK_THROWS_WITH(read(whole), ContainsSubstring("config.json: ") && ContainsSubstring(message));
  };
  refused("mistral", {{"sliding_window", 4096}}, R"("sliding_window" is 4096; models trained with a sliding window)");
  refused("mistral", {{"sliding_window", 4096}, {"use_sliding_window", false}}, R"("sliding_window" is 4096)");
  refused("mistral", {{"sliding_window", "absent"}}, R"("sliding_window" is missing; transformers takes that as a )");
  refused("mistral", {{"attention_bias", true}}, R"("attention_bias" is true; projections with biases)");
  refused("mistral", {{"num_key_value_heads", "absent"}, {"num_attention_heads", 4}},
          R"("num_key_value_heads" is missing; transformers takes that as 8; it must divide "num_attention_heads")");
  for (const char* type : {"qwen2", "qwen3"}) {
    refused(type, {{"sliding_window", 4096}, {"use_sliding_window", true}}, R"("sliding_window" is 4096)");
    refused(type, {{"sliding_window", "absent"}, {"use_sliding_window", true}}, R"("sliding_window" is missing; )");
    refused(type, {{"use_sliding_window", 1}}, R"("use_sliding_window" is 1; expected true or false)");
    refused(type, {{"layer_types", {"full_attention", "full_attention", "sliding_attention"}}},
            R"("layer_types" is [)");
    refused(type, {{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}}}, R"("rope_scaling.type" is "yarn")");
    refused(type, {{"rope_parameters", {{"rope_type", "yarn"}}}}, R"("rope_parameters.rope_type" is "yarn")");
    refused(type, {{"hidden_act", "gelu"}}, R"("hidden_act" is "gelu")");
  }
  refused("qwen2", {{"attention_bias", true}}, R"(biases other than those of q, k and v are not supported)");
  refused("qwen3", {{"attention_bias", true}}, R"(projections with biases are not supported)");
}

TEST_CASE("model config: numbers that only Python writes may stand where this model reads nothing") {
  const test::TemporaryFolder folder;
  const std::string plain = kPlain.dump();
  const auto write = [&](const std::string& more) {
    test::write_text(folder / "config.json", plain.substr(0, plain.size() - 1) + ", " + more + "}");
    return folder.path();
  };
  CHECK(read_model_config(write("\"extra\": NaN, \"task\": {\"weights\": [-Infinity, Infinity]}")).layers == 3);
  CHECK_THROWS_WITH(read_model_config(write("\"rope_theta\": NaN")),
                    ContainsSubstring("\"rope_theta\" is NaN; expected"));
  CHECK_THROWS_WITH(read_model_config(write("\"head_dim\": Infinity")), ContainsSubstring("\"head_dim\" is Infinity"));
  CHECK_THROWS_WITH(read_model_config(write("\"hidden_act\": NaN")), ContainsSubstring("expected a text"));
  CHECK_THROWS_WITH(read_model_config(write("\"rope_scaling\": {\"factor\": Infinity, \"type\": \"linear\"}")),
                    ContainsSubstring("\"rope_scaling.factor\" is Infinity"));
}

TEST_CASE("model config: attention that is not causal is refused") {
  for (const json& value : {json(false), json(nullptr), json(0), json("no")}) {
    CHECK_THROWS_WITH(read(with({{"is_causal", value}})),
                      ContainsSubstring("\"is_causal\" is " + value.dump() + "; only true is supported"));
  }
  CHECK(read(with({{"is_causal", true}})).layers == 3);
  CHECK_THROWS_WITH(read(with({{"transformers_weights", "other.safetensors"}})),
                    ContainsSubstring("\"transformers_weights\" is \"other.safetensors\"; weights are read from"));
}

TEST_CASE("model config: files that are not a config") {
  const test::TemporaryFolder folder;
  const auto refused = [&](const std::string& message) {
    CHECK_THROWS_WITH(read_model_config(folder.path()), ContainsSubstring(message));
    CHECK_THROWS_AS(read_model_config(folder.path()), Error);
  };
  CHECK_THROWS_WITH(read_model_config(folder / "no"), ContainsSubstring("no such folder"));
  refused("config.json: cannot open");
  for (const char* text : {"", "{", "{\"a\":}", "\xff"}) {
    test::write_text(folder / "config.json", text);
    refused("config.json: not valid JSON at byte");
  }
  test::write_text(folder / "config.json", "[]");
  refused("expected a JSON object");
  test::write_text(folder / "config.json", "{\"hidden_act\": \"silu\", \"hidden_act\": \"gelu\"}");
  refused("key \"hidden_act\" stands there twice");
  const int depth = 5000000;  // to print it would take more stack than there is
  test::write_text(folder / "config.json",
                   "{\"quantization_config\": " + std::string(depth, '[') + std::string(depth, ']') + "}");
  refused("nested deeper than 32 levels");
}

}  // namespace
}  // namespace prulong
