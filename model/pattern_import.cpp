// SPDX-License-Identifier: MIT
// Head tables of other tools: DuoAttention folders and PruLong's masks.tsv.
#include <charconv>
#include <cmath>
#include <locale>
#include <sstream>
#include <string_view>
#include <system_error>

#include "common/error.h"
#include "model/pattern_io.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxQuoted = 40;  // of a bad field, in a message

struct HeadTable {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<double> values;
};

/// The next piece of `text` up to `separator`, taken off its front.
std::string_view next_piece(std::string_view& text, char separator) {
  const size_t end = text.find(separator);
  const std::string_view piece = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return piece;
}

/// A number of any size; one too small for a double is 0, as everywhere else where decimal numbers are read.
double read_value(std::string_view field, const std::string& where) {
  double value = 0;
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
  bool valid = end == field.data() + field.size() && error != std::errc::invalid_argument;
  if (valid && error == std::errc::result_out_of_range) {  // too large or too small; the stream knows which
    std::istringstream text{std::string(field)};
    text.imbue(std::locale::classic());
    valid = static_cast<bool>(text >> value);
  }
  if (!valid || !std::isfinite(value)) {
    std::string quoted;
    for (const char c : field.substr(0, kMaxQuoted)) quoted += c >= ' ' && c <= '~' ? c : '?';
    throw Error(where + ": expected a finite number, found '" + quoted +
                "'; mend the table (columns are separated by tabs)");
  }
  return value;
}

/// Tab-separated numbers without a header, every row equally long.
HeadTable read_head_table(const fs::path& file) {
  const std::string content = read_small_file(file);
  std::string_view text = content;
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.remove_suffix(1);
  if (text.empty())
    throw Error(file.string() +
                ": an empty table; expected a row per layer and a column per KV head; use another file");
  HeadTable table;
  while (!text.empty()) {
    std::string_view line = next_piece(text, '\n');
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    ++table.rows;
    const std::string where = file.string() + ":" + std::to_string(table.rows);
    if (line.empty()) throw Error(where + ": expected numbers, found an empty row; mend the table");
    int64_t columns = 1;
    for (const char c : line) columns += c == '\t';
    for (int64_t column = 0; column < columns; ++column) {
      table.values.push_back(read_value(next_piece(line, '\t'), where));
    }
    if (table.rows == 1) table.columns = columns;
    if (columns != table.columns) {
      throw Error(where + ": " + std::to_string(columns) + " columns, but the rows before have " +
                  std::to_string(table.columns) + "; mend the table");
    }
  }
  return table;
}

}  // namespace

Pattern import_head_table(const fs::path& path, const ModelShape& model, std::optional<int64_t> sink,
                          std::optional<int64_t> window) {
  std::error_code ignored;
  const bool folder = fs::is_directory(path, ignored);
  const fs::path file = folder ? path / "full_attention_heads.tsv" : path;
  HeadTable table = read_head_table(file);
  if (table.rows != model.layers || table.columns != model.kv_heads) {
    throw Error(file.string() + ": the table does not fit the model: " + std::to_string(table.rows) + " rows of " +
                std::to_string(table.columns) + ", but the model has " + std::to_string(model.layers) + " layers of " +
                std::to_string(model.kv_heads) + " KV heads; use the table made for this model");
  }
  if (folder && !(sink && window)) {
    const fs::path config = path / "config.json";
    const std::string text = read_small_file(config);
    if (!sink) sink = integer_of_json(config, text, "sink_size", 0);
    if (!window) window = integer_of_json(config, text, "recent_size", 1);
  }
  if (!sink || !window) {
    throw Error(file.string() + ": a table says nothing about " + (sink ? "" : "the sink") +
                (sink || window ? "" : " and ") + (window ? "" : "the window") + ": give the values it was made with");
  }
  Pattern pattern = Pattern::from_scores(model, std::move(table.values), 0.0, *sink, *window);
  if (pattern.scores_are_a_mask()) {
    for (size_t i = 0; i < pattern.mask.size(); ++i) pattern.mask[i] = pattern.scores[i] == 1.0 ? 1 : 0;
    pattern.sparsity = pattern.local_fraction();
  }
  const fs::path name = fs::absolute(path, ignored).lexically_normal();  // "." names no folder
  pattern.provenance["source"] = (folder ? "DuoAttention folder " : "head table ") +
                                 (name.has_filename() ? name : name.parent_path()).filename().string();
  return pattern;
}

}  // namespace prulong
