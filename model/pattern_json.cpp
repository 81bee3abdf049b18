// SPDX-License-Identifier: MIT
// Pattern files as text: a strict reader, and a writer with one line per layer.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/error.h"
#include "common/json_text.h"
#include "model/pattern_io.h"

namespace prulong {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kFormat = "prulong-pattern";
constexpr int64_t kVersion = 1;
constexpr size_t kMaxQuoted = 80;  // of a bad key, in a message
constexpr const char* kAdvice = "; copy the file again";

std::string shortened(std::string text, size_t limit) {
  if (text.size() > limit) text = text.substr(0, limit) + "...";
  return text;
}

/// Reads the values of one object of a pattern file; every refusal names file and key.
class Fields {
 public:
  Fields(const fs::path& file, std::string prefix, const json& object, const std::vector<std::string>& keys,
         bool others_allowed = false)
      : file_(file), prefix_(std::move(prefix)), object_(object) {
    for (const auto& [key, value] : object.items()) {
      if (!others_allowed && std::find(keys.begin(), keys.end(), key) == keys.end()) {
        throw Error(file_.string() + ": unknown key " + shortened(prefix_ + key, kMaxQuoted));
      }
    }
    for (const std::string& key : keys) {
      if (!object.contains(key)) throw Error(file_.string() + ": key " + prefix_ + key + " is missing");
    }
  }

  int64_t integer(const std::string& key, int64_t minimum) const {
    const json& value = object_.at(key);
    const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= INT64_MAX : value.is_number_integer();
    if (!fits || value.get<int64_t>() < minimum) {
      refuse(key, "an integer of at least " + std::to_string(minimum), value);
    }
    return value.get<int64_t>();
  }

  double number(const std::string& key, double minimum, double maximum) const {
    const json& value = object_.at(key);
    if (!value.is_number() || !(value.get<double>() >= minimum && value.get<double>() <= maximum)) {
      std::ostringstream range;
      range << "a number from " << minimum << " to " << maximum;
      refuse(key, range.str(), value);
    }
    return value.get<double>();
  }

  std::string text(const std::string& key) const {
    const json& value = object_.at(key);
    if (!value.is_string() || value.get_ref<const std::string&>().empty())
      refuse(key, "a text that is not empty", value);
    return value.get<std::string>();
  }

  const json& object(const std::string& key) const {
    const json& value = object_.at(key);
    if (!value.is_object()) refuse(key, "an object", value);
    return value;
  }

  /// The values of a layers x kv_heads matrix, row by row; `read` refuses a bad one by returning false.
  template <typename T, typename Read>
  std::vector<T> matrix(const std::string& key, const ModelShape& model, const std::string& expected, Read read) const {
    const json& rows = object_.at(key);
    const std::string size = std::to_string(model.layers) + " rows (layers) of " + std::to_string(model.kv_heads);
    if (!rows.is_array()) refuse(key, size, rows);
    if (static_cast<int64_t>(rows.size()) != model.layers) {
      throw Error(file_.string() + ": key " + prefix_ + key + ": expected " + size + ", found " +
                  std::to_string(rows.size()) + " rows");
    }
    std::vector<T> values;
    for (size_t layer = 0; layer < rows.size(); ++layer) {
      const std::string row_key = key + "[" + std::to_string(layer) + "]";
      const json& row = rows[layer];
      if (!row.is_array() || static_cast<int64_t>(row.size()) != model.kv_heads) {
        refuse(row_key, std::to_string(model.kv_heads) + " values (KV heads)", row);
      }
      for (size_t head = 0; head < row.size(); ++head) {
        T value{};
        if (!read(row[head], value)) refuse(row_key + "[" + std::to_string(head) + "]", expected, row[head]);
        values.push_back(value);
      }
    }
    return values;
  }

  [[noreturn]] void refuse(const std::string& key, const std::string& expected, const json& found) const {
    throw Error(file_.string() + ": key " + prefix_ + key + ": expected " + expected + ", found " + shown(found));
  }

 private:
  const fs::path& file_;
  std::string prefix_;
  const json& object_;
};

bool read_score(const json& value, double& score) {
  if (!value.is_number()) return false;
  score = value.get<double>();
  return std::isfinite(score);
}

bool read_role(const json& value, uint8_t& role) {
  if (!value.is_number_integer() || (value != 0 && value != 1)) return false;
  role = static_cast<uint8_t>(value.get<int64_t>());
  return true;
}

/// A JSON matrix with one line per layer.
template <typename T>
void write_matrix(std::ostringstream& out, const char* key, const std::vector<T>& values, int64_t columns) {
  out << "  \"" << key << "\": [\n";
  const size_t width = static_cast<size_t>(columns);
  for (size_t i = 0; i < values.size(); ++i) {
    out << (i % width == 0 ? "    [" : ", ") << json(values[i]).dump();  // shortest text that reads back exactly
    if (i % width == width - 1) out << (i + 1 == values.size() ? "]\n" : "],\n");
  }
  out << "  ],\n";
}

}  // namespace

std::string pattern_to_json(const Pattern& pattern) {
  const auto quoted = [](const std::string& text) {
    return json(text).dump(-1, ' ', false, json::error_handler_t::replace);  // a path may not be UTF-8
  };
  const ModelShape& model = pattern.model;
  std::ostringstream out;
  out << "{\n  \"format\": \"" << kFormat << "\",\n  \"version\": " << kVersion
      << ",\n  \"model\": {\"type\": " << quoted(model.type) << ", \"layers\": " << model.layers
      << ", \"kv_heads\": " << model.kv_heads << ", \"query_heads\": " << model.query_heads
      << ", \"head_dim\": " << model.head_dim << "},\n  \"sink\": " << pattern.sink
      << ",\n  \"window\": " << pattern.window << ",\n  \"sparsity\": " << json(pattern.sparsity).dump() << ",\n";
  write_matrix(out, "mask", pattern.mask, model.kv_heads);
  write_matrix(out, "scores", pattern.scores, model.kv_heads);
  out << "  \"provenance\": {";
  const char* separator = "\n";
  for (const auto& [key, value] : pattern.provenance) {
    out << separator << "    " << quoted(key) << ": " << quoted(value);
    separator = ",\n";
  }
  out << (pattern.provenance.empty() ? "}\n}\n" : "\n  }\n}\n");
  return out.str();
}

Pattern pattern_from_json(const fs::path& file, const std::string& text) {
  const json root = parse_json_object(text, file.string(), kAdvice);
  if (!root.contains("format") || root["format"] != kFormat) {
    throw Error(file.string() + ": not a pattern file: no \"format\": \"" + kFormat + "\"");
  }
  if (!root.contains("version") || root["version"] != kVersion || !root["version"].is_number_integer()) {
    throw Error(file.string() + ": key version: this program reads version " + std::to_string(kVersion) + ", found " +
                (root.contains("version") ? shown(root["version"]) : "none"));
  }
  const Fields fields(file, "", root,
                      {"format", "version", "model", "sink", "window", "sparsity", "mask", "scores", "provenance"});
  const Fields shape(file, "model.", fields.object("model"), {"type", "layers", "kv_heads", "query_heads", "head_dim"});
  Pattern pattern;
  pattern.model = {shape.text("type"), shape.integer("layers", 1), shape.integer("kv_heads", 1),
                   shape.integer("query_heads", 1), shape.integer("head_dim", 1)};
  pattern.sink = fields.integer("sink", 0);
  pattern.window = fields.integer("window", 1);
  pattern.sparsity = fields.number("sparsity", 0, 1);
  pattern.mask = fields.matrix<uint8_t>("mask", pattern.model, "0 or 1", read_role);
  pattern.scores = fields.matrix<double>("scores", pattern.model, "a finite number", read_score);
  for (const auto& [key, value] : fields.object("provenance").items()) {
    if (!value.is_string()) fields.refuse("provenance." + shortened(key, kMaxQuoted), "a text", value);
    pattern.provenance[key] = value.get<std::string>();
  }
  pattern.check(file.string());
  return pattern;
}

int64_t integer_of_json(const fs::path& file, const std::string& text, const std::string& key, int64_t minimum) {
  const json root = parse_json_object(text, file.string(), kAdvice);
  return Fields(file, "", root, {key}, true).integer(key, minimum);
}

}  // namespace prulong
