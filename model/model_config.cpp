// SPDX-License-Identifier: MIT
#include "model/model_config.h"

#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "common/error.h"
#include "common/json_value.h"
#include "common/mapped_file.h"

namespace prulong {
namespace {

using nlohmann::json;
using std::filesystem::path;

/// What all families share where a config.json is silent: transformers' defaults.
constexpr double kRmsNormEps = 1e-6;
constexpr double kRopeTheta = 10000.0;

/// One model type: how its layers differ from Llama's, and what transformers assumes where its config.json is silent.
struct Family {
  std::string_view model_type;
  bool qkv_biases = false;
  bool qk_norms = false;
  int64_t max_positions = 0;
  int64_t kv_heads = 0;        ///< 0: as many as query heads
  int64_t head_dim = 0;        ///< 0: hidden_size / query heads
  int64_t sliding_window = 0;  ///< tokens; 0: none
  /// Of the key that switches the sliding window; nothing: there is no such key, the window alone decides.
  std::optional<bool> use_sliding_window = std::nullopt;
};
constexpr std::array kFamilies{
    Family{.model_type = "llama", .max_positions = 2048, .use_sliding_window = true},
    Family{.model_type = "mistral", .max_positions = 131072, .kv_heads = 8, .sliding_window = 4096},
    Family{.model_type = "qwen2",
           .qkv_biases = true,
           .max_positions = 32768,
           .kv_heads = 32,
           .sliding_window = 4096,
           .use_sliding_window = false},
    Family{.model_type = "qwen3",
           .qk_norms = true,
           .max_positions = 32768,
           .kv_heads = 32,
           .head_dim = 128,
           .sliding_window = 4096,
           .use_sliding_window = false}};

constexpr size_t kMaxConfigBytes = size_t{16} << 20;

/// A size; `fallback` where the file has none. A null is no value, but no silence either: what transformers assumes for
/// an absent key it does not assume for a null.
int64_t size_of(const JsonValue& value, std::optional<int64_t> fallback = std::nullopt,
                int64_t largest = std::numeric_limits<int32_t>::max()) {
  return value.has_value() || !fallback ? value.integer(1, largest) : *fallback;
}

double positive_of(const JsonValue& value, double fallback) { return value.has_value() ? value.positive() : fallback; }

bool flag_of(const JsonValue& value, bool fallback) { return value.has_value() ? value.boolean() : fallback; }

std::string text_of(const JsonValue& value, const char* fallback) {
  return value.has_value() ? value.text() : fallback;
}

JsonValue open_config(const path& folder) {
  if (!std::filesystem::is_directory(folder)) {
    throw Error(folder.string() + ": no such folder; expected a Hugging Face model folder with config.json");
  }
  const path file = folder / "config.json";
  const MappedFile mapping(file);
  if (mapping.bytes().size() > kMaxConfigBytes)
    throw Error(file.string() + ": larger than 16 MB: not a model's config; download it again");
  const char* text = reinterpret_cast<const char*>(mapping.bytes().data());
  return JsonValue::parse({text, mapping.bytes().size()}, file.string(), "");
}

const Family& find_family(const JsonValue& config) {
  const std::string type = text_of(config.at("model_type"), "");
  std::string known;
  for (const Family& family : kFamilies) {
    if (family.model_type == type) return family;
    known += (known.empty() ? "\"" : ", \"") + std::string(family.model_type) + "\"";
  }
  config.at("model_type").refuse("supported model types: " + known);
}

void refuse_sliding_windows(const JsonValue& config, const Family& family) {
  const bool windows =
      !family.use_sliding_window || flag_of(config.at("use_sliding_window"), *family.use_sliding_window);
  if (windows && config.at("sliding_window").has_value()) {
    config.at("sliding_window").refuse("models trained with a sliding window are not supported");
  }
  if (windows && !config.at("sliding_window").present() && family.sliding_window != 0) {
    config.at("sliding_window")
        .refuse("transformers takes that as a window of " + std::to_string(family.sliding_window) +
                ", which is not supported; write null if the model has none");
  }
  if (!config.at("layer_types").has_value()) return;
  if (!config.at("layer_types").raw().is_array()) config.at("layer_types").refuse("expected a list");
  for (const json& type : config.at("layer_types").raw()) {
    if (type != "full_attention") config.at("layer_types").refuse("only layers of \"full_attention\" are supported");
  }
}

/// Keys that change the mathematics in ways this model does not have.
void refuse_unsupported(const JsonValue& config, const Family& family) {
  if (text_of(config.at("hidden_act"), "silu") != "silu") config.at("hidden_act").refuse("only \"silu\" is supported");
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (flag_of(config.at(key), false)) {
      config.at(key).refuse(family.qkv_biases ? "biases other than those of q, k and v are not supported"
                                              : "projections with biases are not supported");
    }
  }
  if (config.at("quantization_config").has_value()) {
    config.at("quantization_config")
        .refuse("quantised weights are not supported: save the model in bfloat16 or float32");
  }
  // Embedding models; transformers takes a null for false.
  if (config.at("is_causal").present() && config.at("is_causal").raw() != true) {
    config.at("is_causal").refuse("only true is supported: here every token attends to itself and the ones before it");
  }
  if (config.at("transformers_weights").has_value()) {
    config.at("transformers_weights")
        .refuse("weights are read from model.safetensors or its shards only: rename the file");
  }
  refuse_sliding_windows(config, family);
  if (size_of(config.at("pretraining_tp"), 1) != 1) config.at("pretraining_tp").refuse("only 1 is supported");
}

RopeConfig read_rope(const JsonValue& config, int64_t max_positions) {
  // transformers 4.x: rope_theta and rope_scaling at the top; 5.x: one rope_parameters with rope_theta inside.
  const bool old_layout = config.at("rope_scaling").has_value();
  const bool new_layout = config.at("rope_parameters").has_value();
  if (old_layout && new_layout && config.at("rope_scaling").raw() != config.at("rope_parameters").raw()) {
    config.at("rope_scaling").refuse("it differs from \"rope_parameters\": keep one of them");
  }
  const char* key = new_layout ? "rope_parameters" : "rope_scaling";
  if ((old_layout || new_layout) && !config.at(key).is_object()) config.at(key).refuse("expected an object");
  const JsonValue rope = config.at(key);  // where neither is there, all its members are absent
  for (const auto& [name, value] :
       old_layout || new_layout ? rope.members() : std::vector<std::pair<std::string, JsonValue>>()) {
    if (value.is_object()) value.refuse("RoPE that differs by layer type is not supported");
  }
  for (const JsonValue* reader : {&config, &rope}) {
    if (positive_of(reader->at("partial_rotary_factor"), 1.0) != 1.0) {
      reader->at("partial_rotary_factor").refuse("only 1.0 is supported");
    }
  }

  RopeConfig result;
  result.theta = positive_of(rope.at("rope_theta"), positive_of(config.at("rope_theta"), kRopeTheta));
  const char* type_key = rope.at("rope_type").has_value() ? "rope_type" : "type";
  const std::string type = text_of(rope.at(type_key), "default");
  if (type == "default") return result;
  if (type != "linear" && type != "llama3") {
    rope.at(type_key).refuse("supported are \"default\", \"linear\", \"llama3\"");
  }
  result.factor = rope.at("factor").positive();
  if (type == "linear") {
    result.kind = RopeConfig::Kind::kLinear;
    return result;
  }
  result.kind = RopeConfig::Kind::kLlama3;
  result.low_freq_factor = rope.at("low_freq_factor").positive();
  result.high_freq_factor = rope.at("high_freq_factor").positive();
  if (result.high_freq_factor <= result.low_freq_factor) {
    rope.at("high_freq_factor").refuse("expected more than low_freq_factor");
  }
  // transformers 5.x prefers the number outside, 4.x the one inside.
  const char* original = "original_max_position_embeddings";
  if (rope.at(original).has_value() && config.at(original).has_value() &&
      size_of(rope.at(original)) != size_of(config.at(original))) {
    rope.at(original).refuse("it differs from the one at the top of the file: keep one of them");
  }
  result.original_max_positions = size_of(rope.at(original), size_of(config.at(original), max_positions));
  return result;
}

int64_t read_kv_heads(const JsonValue& config, const Family& family, int64_t query_heads) {
  const char* key = "num_key_value_heads";
  const int64_t kv_heads =
      size_of(config.at(key), !config.at(key).present() && family.kv_heads != 0 ? family.kv_heads : query_heads);
  if (query_heads % kv_heads != 0) {
    config.at(key).refuse(
        (!config.at(key).present() ? "transformers takes that as " + std::to_string(kv_heads) + "; " : "") +
        "it must divide \"num_attention_heads\", which is " + std::to_string(query_heads));
  }
  return kv_heads;
}

int64_t read_head_dim(const JsonValue& config, const Family& family, int64_t hidden_size, int64_t query_heads) {
  const char* key = "head_dim";
  const bool from_family = !config.at(key).present() && family.head_dim != 0;
  if (!config.at(key).has_value() && !from_family && hidden_size % query_heads != 0) {
    config.at("hidden_size")
        .refuse("without \"head_dim\" it must be a multiple of \"num_attention_heads\", which is " +
                std::to_string(query_heads));
  }
  const int64_t head_dim = size_of(config.at(key), from_family ? family.head_dim : hidden_size / query_heads);
  if (head_dim % 2 != 0) {
    config.at(key).refuse("RoPE needs an even size, it would be " + std::to_string(head_dim));
  }
  return head_dim;
}

}  // namespace

ModelConfig read_model_config(const path& folder) {
  const JsonValue config = open_config(folder);
  const Family& family = find_family(config);
  refuse_unsupported(config, family);

  ModelConfig result;
  result.model_type = family.model_type;
  result.qkv_biases = family.qkv_biases;
  result.qk_norms = family.qk_norms;
  result.vocab_size = size_of(config.at("vocab_size"));
  result.hidden_size = size_of(config.at("hidden_size"));
  result.intermediate_size = size_of(config.at("intermediate_size"));
  constexpr int64_t kMostLayers = 65535;  // as many as gates are numbered for
  result.layers = size_of(config.at("num_hidden_layers"), std::nullopt, kMostLayers);
  result.query_heads = size_of(config.at("num_attention_heads"));
  result.kv_heads = read_kv_heads(config, family, result.query_heads);
  result.head_dim = read_head_dim(config, family, result.hidden_size, result.query_heads);
  result.rms_norm_eps = positive_of(config.at("rms_norm_eps"), kRmsNormEps);
  result.tied_embeddings = flag_of(config.at("tie_word_embeddings"), false);
  result.max_positions = size_of(config.at("max_position_embeddings"), family.max_positions);
  result.rope = read_rope(config, result.max_positions);
  return result;
}

}  // namespace prulong
