// SPDX-License-Identifier: MIT
#include "model/model_config.h"

#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "common/error.h"
#include "common/json_text.h"
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

/// Typed access to one JSON object; every refusal names file, key, value and what is supported. A null is no value, but
/// no silence either: what transformers assumes for an absent key it does not assume for a null.
class Reader {
 public:
  Reader(path file, json object, std::string prefix)
      : file_(std::move(file)), object_(std::move(object)), prefix_(std::move(prefix)) {}

  bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  bool silent(const char* key) const { return !object_.contains(key); }
  const json& at(const char* key) const { return object_[key]; }
  const json& object() const { return object_; }

  [[noreturn]] void fail(const char* key, const std::string& expected) const {
    const std::string found = object_.contains(key) ? shown(object_[key]) : "missing";
    throw Error(file_.string() + ": \"" + prefix_ + key + "\" is " + found + "; " + expected);
  }

  int64_t size(const char* key, std::optional<int64_t> fallback = std::nullopt,
               uint64_t largest = std::numeric_limits<int32_t>::max()) const {
    if (!has(key) && fallback) return *fallback;
    const json& value = has(key) ? at(key) : json();
    if (!value.is_number_unsigned() || value.get<uint64_t>() < 1 || value.get<uint64_t>() > largest) {
      fail(key, "expected a whole number from 1 to " + std::to_string(largest));
    }
    return value.get<int64_t>();
  }

  /// A finite number > 0.
  double positive(const char* key, std::optional<double> fallback = std::nullopt) const {
    if (!has(key) && fallback) return *fallback;
    const double number = has(key) && at(key).is_number() ? at(key).get<double>() : 0.0;
    if (!std::isfinite(number) || number <= 0.0) fail(key, "expected a positive number");
    return number;
  }

  bool flag(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    if (!at(key).is_boolean()) fail(key, "expected true or false");
    return at(key).get<bool>();
  }

  std::string text(const char* key, const char* fallback) const {
    if (!has(key)) return fallback;
    if (!at(key).is_string()) fail(key, "expected text");
    return at(key).get<std::string>();
  }

 private:
  path file_;
  json object_;
  std::string prefix_;
};

Reader open_config(const path& folder) {
  if (!std::filesystem::is_directory(folder)) {
    throw Error(folder.string() + ": no such folder; expected a Hugging Face model folder with config.json");
  }
  const path file = folder / "config.json";
  const MappedFile mapping(file);
  if (mapping.bytes().size() > kMaxConfigBytes)
    throw Error(file.string() + ": larger than 16 MB: not a model's config; download it again");
  const char* text = reinterpret_cast<const char*>(mapping.bytes().data());
  return {file, parse_json_object({text, mapping.bytes().size()}, file.string(), "; download it again"), ""};
}

const Family& find_family(const Reader& config) {
  const std::string type = config.text("model_type", "");
  std::string known;
  for (const Family& family : kFamilies) {
    if (family.model_type == type) return family;
    known += (known.empty() ? "\"" : ", \"") + std::string(family.model_type) + "\"";
  }
  config.fail("model_type", "supported model types: " + known);
}

void refuse_sliding_windows(const Reader& config, const Family& family) {
  const bool windows = !family.use_sliding_window || config.flag("use_sliding_window", *family.use_sliding_window);
  if (windows && config.has("sliding_window")) {
    config.fail("sliding_window", "models trained with a sliding window are not supported");
  }
  if (windows && config.silent("sliding_window") && family.sliding_window != 0) {
    config.fail("sliding_window", "transformers takes that as a window of " + std::to_string(family.sliding_window) +
                                      ", which is not supported; write null if the model has none");
  }
  if (!config.has("layer_types")) return;
  if (!config.at("layer_types").is_array()) config.fail("layer_types", "expected a list");
  for (const json& type : config.at("layer_types")) {
    if (type != "full_attention") config.fail("layer_types", "only layers of \"full_attention\" are supported");
  }
}

/// Keys that change the mathematics in ways this model does not have.
void refuse_unsupported(const Reader& config, const Family& family) {
  if (config.text("hidden_act", "silu") != "silu") config.fail("hidden_act", "only \"silu\" is supported");
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (config.flag(key, false)) {
      config.fail(key, family.qkv_biases ? "biases other than those of q, k and v are not supported"
                                         : "projections with biases are not supported");
    }
  }
  if (config.has("quantization_config")) {
    config.fail("quantization_config", "quantised weights are not supported: save the model in bfloat16 or float32");
  }
  // Embedding models; transformers takes a null for false.
  if (!config.silent("is_causal") && config.at("is_causal") != true) {
    config.fail("is_causal", "only true is supported: here every token attends to itself and the ones before it");
  }
  if (config.has("transformers_weights")) {
    config.fail("transformers_weights", "weights are read from model.safetensors or its shards only: rename the file");
  }
  refuse_sliding_windows(config, family);
  if (config.size("pretraining_tp", 1) != 1) config.fail("pretraining_tp", "only 1 is supported");
}

RopeConfig read_rope(const path& file, const Reader& config, int64_t max_positions) {
  // transformers 4.x: rope_theta and rope_scaling at the top; 5.x: one rope_parameters with rope_theta inside.
  const bool old_layout = config.has("rope_scaling");
  const bool new_layout = config.has("rope_parameters");
  if (old_layout && new_layout && config.at("rope_scaling") != config.at("rope_parameters")) {
    config.fail("rope_scaling", "it differs from \"rope_parameters\": keep one of them");
  }
  const char* key = new_layout ? "rope_parameters" : "rope_scaling";
  if ((old_layout || new_layout) && !config.at(key).is_object()) config.fail(key, "expected an object");
  const Reader rope(file, old_layout || new_layout ? config.at(key) : json::object(), std::string(key) + ".");
  for (const auto& [name, value] : rope.object().items()) {
    if (value.is_object()) rope.fail(name.c_str(), "RoPE that differs by layer type is not supported");
  }
  for (const Reader* reader : {&config, &rope}) {
    if (reader->positive("partial_rotary_factor", 1.0) != 1.0) {
      reader->fail("partial_rotary_factor", "only 1.0 is supported");
    }
  }

  RopeConfig result;
  result.theta = rope.positive("rope_theta", config.positive("rope_theta", kRopeTheta));
  const char* type_key = rope.has("rope_type") ? "rope_type" : "type";
  const std::string type = rope.text(type_key, "default");
  if (type == "default") return result;
  if (type != "linear" && type != "llama3") {
    rope.fail(type_key, "supported are \"default\", \"linear\", \"llama3\"");
  }
  result.factor = rope.positive("factor");
  if (type == "linear") {
    result.kind = RopeConfig::Kind::kLinear;
    return result;
  }
  result.kind = RopeConfig::Kind::kLlama3;
  result.low_freq_factor = rope.positive("low_freq_factor");
  result.high_freq_factor = rope.positive("high_freq_factor");
  if (result.high_freq_factor <= result.low_freq_factor) {
    rope.fail("high_freq_factor", "expected more than low_freq_factor");
  }
  // transformers 5.x prefers the number outside, 4.x the one inside.
  const char* original = "original_max_position_embeddings";
  if (rope.has(original) && config.has(original) && rope.size(original) != config.size(original)) {
    rope.fail(original, "it differs from the one at the top of the file: keep one of them");
  }
  result.original_max_positions = rope.size(original, config.size(original, max_positions));
  return result;
}

int64_t read_kv_heads(const Reader& config, const Family& family, int64_t query_heads) {
  const char* key = "num_key_value_heads";
  const int64_t kv_heads = config.size(key, config.silent(key) && family.kv_heads != 0 ? family.kv_heads : query_heads);
  if (query_heads % kv_heads != 0) {
    config.fail(key, (config.silent(key) ? "transformers takes that as " + std::to_string(kv_heads) + "; " : "") +
                         "it must divide \"num_attention_heads\", which is " + std::to_string(query_heads));
  }
  return kv_heads;
}

int64_t read_head_dim(const Reader& config, const Family& family, int64_t hidden_size, int64_t query_heads) {
  const char* key = "head_dim";
  const bool from_family = config.silent(key) && family.head_dim != 0;
  if (!config.has(key) && !from_family && hidden_size % query_heads != 0) {
    config.fail("hidden_size", "without \"head_dim\" it must be a multiple of \"num_attention_heads\", which is " +
                                   std::to_string(query_heads));
  }
  const int64_t head_dim = config.size(key, from_family ? family.head_dim : hidden_size / query_heads);
  if (head_dim % 2 != 0) {
    config.fail(key, "RoPE needs an even size, it would be " + std::to_string(head_dim));
  }
  return head_dim;
}

}  // namespace

ModelConfig read_model_config(const path& folder) {
  const Reader config = open_config(folder);
  const Family& family = find_family(config);
  refuse_unsupported(config, family);

  ModelConfig result;
  result.model_type = family.model_type;
  result.qkv_biases = family.qkv_biases;
  result.qk_norms = family.qk_norms;
  result.vocab_size = config.size("vocab_size");
  result.hidden_size = config.size("hidden_size");
  result.intermediate_size = config.size("intermediate_size");
  constexpr uint64_t kMostLayers = 65535;  // as many as gates are numbered for
  result.layers = config.size("num_hidden_layers", std::nullopt, kMostLayers);
  result.query_heads = config.size("num_attention_heads");
  result.kv_heads = read_kv_heads(config, family, result.query_heads);
  result.head_dim = read_head_dim(config, family, result.hidden_size, result.query_heads);
  result.rms_norm_eps = config.positive("rms_norm_eps", kRmsNormEps);
  result.tied_embeddings = config.flag("tie_word_embeddings", false);
  result.max_positions = config.size("max_position_embeddings", family.max_positions);
  result.rope = read_rope(folder / "config.json", config, result.max_positions);
  return result;
}

}  // namespace prulong
