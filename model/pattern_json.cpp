// SPDX-License-Identifier: MIT
// Pattern files as text: a strict reader, and a writer with one line per layer.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/error.h"
#include "common/json_value.h"
#include "model/pattern_io.h"

namespace prulong {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kFormat = "prulong-pattern";
constexpr int64_t kVersion = 1;
constexpr const char* kAdvice = "; copy the file again";

/// The values of a layers x kv_heads matrix, row by row; `read` refuses a bad one by returning false.
template <typename T, typename Read>
std::vector<T> matrix_of(const JsonValue& matrix, const ModelShape& model, const std::string& expected, Read read) {
  const auto rows = matrix.list();
  if (static_cast<int64_t>(rows.size()) != model.layers) {
    matrix.refuse("expected " + std::to_string(model.layers) + " rows (layers) of " + std::to_string(model.kv_heads));
  }
  std::vector<T> values;
  for (const JsonValue& row : rows) {
    const auto entries = row.list();
    if (static_cast<int64_t>(entries.size()) != model.kv_heads) {
      row.refuse("expected " + std::to_string(model.kv_heads) + " values (KV heads)");
    }
    for (const JsonValue& entry : entries) {
      T value{};
      if (!read(entry.raw(), value)) entry.refuse("expected " + expected);
      values.push_back(value);
    }
  }
  return values;
}

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
  const JsonValue root = JsonValue::parse(text, file.string(), "");  // Pattern::load says what to do
  if (root.at("format").raw() != kFormat) {
    throw Error(file.string() + ": not a pattern file: no \"format\": \"" + kFormat + "\"");
  }
  const JsonValue version = root.at("version");
  if (version.raw() != kVersion || !version.raw().is_number_integer()) {
    version.refuse("this program reads version " + std::to_string(kVersion));
  }
  root.refuse_others({"format", "version", "model", "sink", "window", "sparsity", "mask", "scores", "provenance"});
  const JsonValue shape = root.at("model");
  shape.refuse_others({"type", "layers", "kv_heads", "query_heads", "head_dim"});
  Pattern pattern;
  pattern.model = {shape.at("type").text(), shape.at("layers").integer(1), shape.at("kv_heads").integer(1),
                   shape.at("query_heads").integer(1), shape.at("head_dim").integer(1)};
  if (pattern.model.type.empty()) shape.at("type").refuse("expected a text that is not empty");
  pattern.sink = root.at("sink").integer(0);
  pattern.window = root.at("window").integer(1);
  pattern.sparsity = root.at("sparsity").number(0, 1);
  pattern.mask = matrix_of<uint8_t>(root.at("mask"), pattern.model, "0 or 1", read_role);
  pattern.scores = matrix_of<double>(root.at("scores"), pattern.model, "a finite number", read_score);
  for (const auto& [key, value] : root.at("provenance").members()) {
    if (!value.raw().is_string()) value.refuse("expected a text");
    pattern.provenance[key] = value.raw().get<std::string>();
  }
  pattern.check(file.string());
  return pattern;
}

int64_t integer_of_json(const fs::path& file, const std::string& text, const std::string& key, int64_t minimum) {
  return JsonValue::parse(text, file.string(), kAdvice).at(key).integer(minimum);
}

}  // namespace prulong
