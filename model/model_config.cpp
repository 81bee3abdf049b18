// SPDX-License-Identifier: MIT
#include "model/model_config.h"

#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "model/error.h"
#include "model/mapped_file.h"

namespace prulong {
namespace {

using nlohmann::json;
using std::filesystem::path;

/// What transformers assumes where a config.json of this model type is silent.
struct Family {
  std::string_view model_type;
  double rms_norm_eps;
  int64_t max_positions;
  bool tied_embeddings;
  double rope_theta;
};
constexpr std::array kFamilies{Family{"llama", 1e-6, 2048, false, 10000.0}};

constexpr size_t kMaxConfigBytes = size_t{16} << 20;

/// Typed access to one JSON object; every refusal names file, key, value and what is supported. A null counts as
/// absent, as it does for transformers.
class Reader {
 public:
  Reader(path file, json object, std::string prefix)
      : file_(std::move(file)), object_(std::move(object)), prefix_(std::move(prefix)) {}

  bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  const json& at(const char* key) const { return object_[key]; }
  const json& object() const { return object_; }

  [[noreturn]] void fail(const char* key, const std::string& expected) const {
    constexpr size_t kLongest = 80;
    std::string found = "missing";
    if (object_.contains(key)) {
      found = object_[key].dump(-1, ' ', true, json::error_handler_t::replace);
      if (found.size() > kLongest) found = found.substr(0, kLongest) + "...";
    }
    throw Error(file_.string() + ": \"" + prefix_ + key + "\" is " + found + "; " + expected);
  }

  int64_t size(const char* key, std::optional<int64_t> fallback = std::nullopt) const {
    if (!has(key) && fallback) return *fallback;
    const json& value = has(key) ? at(key) : json();
    constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
    if (!value.is_number_unsigned() || value.get<uint64_t>() < 1 || value.get<uint64_t>() > kLargest) {
      fail(key, "expected a whole number from 1 to " + std::to_string(kLargest));
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
    throw Error(file.string() + ": larger than 16 MB; not a model's config");
  const char* text = reinterpret_cast<const char*>(mapping.bytes().data());
  json object;
  try {
    object = json::parse(text, text + mapping.bytes().size());
  } catch (const json::parse_error& error) {
    throw Error(file.string() + ": not valid JSON at byte " + std::to_string(error.byte));
  } catch (const json::exception&) {
    throw Error(file.string() + ": has a number out of range");
  }
  if (!object.is_object()) throw Error(file.string() + ": expected a JSON object");
  return {file, std::move(object), ""};
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

/// Keys that change the mathematics in ways this model does not have.
void refuse_unsupported(const Reader& config) {
  if (config.text("hidden_act", "silu") != "silu") config.fail("hidden_act", "only \"silu\" is supported");
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (config.flag(key, false)) config.fail(key, "projections with biases are not supported");
  }
  if (config.has("quantization_config")) {
    config.fail("quantization_config", "quantised weights are not supported: save the model in bfloat16 or float32");
  }
  if (config.has("sliding_window") && config.flag("use_sliding_window", true)) {
    config.fail("sliding_window", "models trained with a sliding window are not supported");
  }
  if (config.size("pretraining_tp", 1) != 1) config.fail("pretraining_tp", "only 1 is supported");
}

RopeConfig read_rope(const path& file, const Reader& config, const Family& family, int64_t max_positions) {
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
  result.theta = rope.positive("rope_theta", config.positive("rope_theta", family.rope_theta));
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

}  // namespace

ModelConfig read_model_config(const path& folder) {
  const Reader config = open_config(folder);
  const Family& family = find_family(config);
  refuse_unsupported(config);

  ModelConfig result;
  result.model_type = family.model_type;
  result.vocab_size = config.size("vocab_size");
  result.hidden_size = config.size("hidden_size");
  result.intermediate_size = config.size("intermediate_size");
  result.layers = config.size("num_hidden_layers");
  result.query_heads = config.size("num_attention_heads");
  result.kv_heads = config.size("num_key_value_heads", result.query_heads);
  if (result.query_heads % result.kv_heads != 0) {
    config.fail("num_key_value_heads",
                "it must divide \"num_attention_heads\", which is " + std::to_string(result.query_heads));
  }
  if (!config.has("head_dim") && result.hidden_size % result.query_heads != 0) {
    config.fail("hidden_size", "without \"head_dim\" it must be a multiple of \"num_attention_heads\", which is " +
                                   std::to_string(result.query_heads));
  }
  result.head_dim = config.has("head_dim") ? config.size("head_dim") : result.hidden_size / result.query_heads;
  if (result.head_dim % 2 != 0) {
    config.fail("head_dim", "RoPE needs an even size, it would be " + std::to_string(result.head_dim));
  }
  result.rms_norm_eps = config.positive("rms_norm_eps", family.rms_norm_eps);
  result.tied_embeddings = config.flag("tie_word_embeddings", family.tied_embeddings);
  result.max_positions = config.size("max_position_embeddings", family.max_positions);
  result.rope = read_rope(folder / "config.json", config, family, result.max_positions);
  return result;
}

}  // namespace prulong
