// SPDX-License-Identifier: MIT
#include "common/config/config_visitor.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <sstream>
#include <utility>

namespace prulong {
namespace {

constexpr std::string_view kAnyText = "text";

// A YAML double-quoted scalar.
std::string quoted(std::string_view text) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string result = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      result += "\\x";
      result += kHex[byte >> 4];
      result += kHex[byte & 15];
    } else {
      result += c;
    }
  }
  return result + '"';
}

class Writer : public ConfigVisitor {
 public:
  std::string result;

  void boolean(bool& value, const Key& key) override { line(key, value ? "true" : "false"); }
  void integer(int64_t& value, const Key& key, int64_t, int64_t) override { line(key, std::to_string(value)); }
  void integer_or(int64_t& value, const Key& key, int64_t, int64_t, std::string_view zero) override {
    line(key, value == 0 ? quoted(zero) : std::to_string(value));
  }
  void number(double& value, const Key& key, const Interval&) override {
    std::string text = show_number(value);
    // 1e-08 is a text to YAML 1.1 readers, 1.0e-08 a number to all.
    const size_t exponent = text.find('e');
    if (exponent != std::string::npos && text.find('.') == std::string::npos) text.insert(exponent, ".0");
    line(key, text);
  }
  void text(std::string& value, const Key& key, TextRule) override { line(key, quoted(value)); }

 protected:
  // Names are quoted because other YAML readers take a plain `on` for a boolean.
  size_t choose(size_t value, const Key& key, std::span<const std::string_view> names) override {
    line(key, quoted(names[value]));
    return value;
  }
  void choose_several(std::vector<size_t>& values, const Key& key, std::span<const std::string_view> names) override {
    std::string list;
    for (const size_t value : values) list += (list.empty() ? "" : ", ") + quoted(names[value]);
    line(key, "[" + list + "]");
  }
  void begin_section(const Key& key) override {
    line(key, "");
    ++depth_;
  }
  void end_section() override { --depth_; }
  size_t begin_list(const Key& key, size_t size) override {
    line(key, size == 0 ? "[]" : "");
    depth_ += 2;
    return size;
  }
  void begin_item(size_t) override { first_of_item_ = true; }
  void end_item() override {}
  void end_list() override { depth_ -= 2; }

 private:
  void line(const Key& key, const std::string& value) {
    std::string indent(2 * depth_, ' ');
    if (first_of_item_) indent.replace(indent.size() - 2, 1, "-");
    first_of_item_ = false;
    result += indent + std::string(key.name) + ":" + (value.empty() ? "" : " " + value) + "\n";
  }

  size_t depth_ = 0;
  bool first_of_item_ = false;
};

class Lister : public ConfigVisitor {
 public:
  std::vector<KeyRow> rows;

  void boolean(bool& value, const Key& key) override { add(key, value ? "true" : "false", "true or false"); }
  void integer(int64_t& value, const Key& key, int64_t min, int64_t max) override {
    add(key, std::to_string(value), std::to_string(min) + " to " + std::to_string(max));
  }
  void integer_or(int64_t& value, const Key& key, int64_t min, int64_t max, std::string_view zero) override {
    add(key, value == 0 ? std::string(zero) : std::to_string(value),
        std::to_string(min) + " to " + std::to_string(max) + " or " + std::string(zero));
  }
  void number(double& value, const Key& key, const Interval& allowed) override {
    add(key, show_number(value), allowed.text());
  }
  void text(std::string& value, const Key& key, TextRule rule) override {
    if (rule == TextRule::kRequired) {
      add(key, "", std::string(kAnyText) + ", required");
    } else {
      add(key, quoted(value), std::string(kAnyText));
    }
  }

 protected:
  bool begin_when(bool, std::string_view condition) override {
    condition_ = condition;
    return true;
  }
  void end_when() override { condition_.clear(); }
  size_t choose(size_t value, const Key& key, std::span<const std::string_view> names) override {
    add(key, std::string(names[value]), show_names(names));
    return value;
  }
  void choose_several(std::vector<size_t>& values, const Key& key, std::span<const std::string_view> names) override {
    std::string list;
    for (const size_t value : values) list += (list.empty() ? "" : ", ") + std::string(names[value]);
    add(key, "[" + list + "]", "list of " + show_names(names));
  }
  void begin_section(const Key& key) override { open(key, "", "section"); }
  void end_section() override { prefixes_.pop_back(); }
  size_t begin_list(const Key& key, size_t) override {
    open(key, "[]", "list of sections");
    return 1;
  }
  void begin_item(size_t) override {}
  void end_item() override {}
  void end_list() override { prefixes_.pop_back(); }

 private:
  std::string path(const Key& key) const { return (prefixes_.empty() ? "" : prefixes_.back()) + std::string(key.name); }
  KeyRow& add(const Key& key, std::string value, std::string allowed) {
    return rows.emplace_back(KeyRow{path(key), std::move(value), std::move(allowed), std::string(key.unit),
                                    std::string(key.help), condition_});
  }
  void open(const Key& key, const std::string& suffix, const std::string& allowed) {
    add(key, "", allowed).section = true;
    prefixes_.push_back(path(key) + suffix + ".");
  }

  std::vector<std::string> prefixes_;
  std::string condition_;
};

// "data.train.0.type" and "data.train[].type" are the same key.
std::string without_indices(const std::string& path) {
  std::string result;
  std::istringstream parts(path);
  for (std::string part; std::getline(parts, part, '.');) {
    if (!part.empty() && std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; })) {
      result += "[]";
    } else {
      result += (result.empty() ? "" : ".") + part;
    }
  }
  return result;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t above = row[j + 1];
      row[j + 1] = std::min({above + 1, row[j] + 1, diagonal + (a[i] == b[j] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row.back();
}

}  // namespace

bool Interval::contains(double value) const {
  return std::isfinite(value) && (open_min ? value > min : value >= min) && (open_max ? value < max : value <= max);
}

std::string Interval::text() const {
  if (std::isfinite(min) && std::isfinite(max)) {
    return std::string("a number in ") + (open_min ? "(" : "[") + show_number(min) + ", " + show_number(max) +
           (open_max ? ")" : "]");
  }
  if (std::isfinite(min)) return (open_min ? "a number above " : "a number of at least ") + show_number(min);
  return "a number";
}

std::vector<KeyRow> list_keys(const VisitConfig& visit) {
  Lister lister;
  visit(lister);
  return std::move(lister.rows);
}

std::string config_table(const std::string& program, const std::string& source, const std::vector<KeyRow>& rows,
                         const std::string& variant, const std::vector<KeyRow>& variant_rows) {
  const bool two = !variant_rows.empty();
  std::string text = "# Configuration of " + program + "\n\nGenerated from " + source + ". `" + program +
                     " CONFIG.yaml [key.path=value ...]`: a file gives the keys that differ\n"
                     "from the defaults, the command line has the last word (`LIST.0.KEY=...` reaches into a "
                     "list). Anything\nunknown, doubtful or out of range is refused. Relative paths count from the "
                     "working folder.\n";
  const std::string head = "\n| key | default |" + (two ? " " + variant + " |" : std::string()) +
                           " allowed | unit | meaning |\n| --- | --- |" + (two ? " --- |" : "") +
                           " --- | --- | --- |\n";
  const auto code = [](const std::string& value) { return value.empty() ? "" : "`" + value + "`"; };
  bool table_open = false;
  for (size_t i = 0; i < rows.size(); ++i) {
    const KeyRow& row = rows[i];
    const bool top = row.path.find('.') == std::string::npos;
    if (row.section && top) {
      text += "\n## " + row.path + "\n" + row.help + ".\n" + head;
      table_open = true;
      continue;
    }
    if (top && (!table_open || (i > 0 && rows[i - 1].path.find('.') != std::string::npos))) text += head;
    table_open = true;
    const bool differs = two && i > 0 && row.value != variant_rows[i].value;
    text += "| `" + row.path + "` | " + code(row.value) + " | " +
            (two ? (differs ? code(variant_rows[i].value) : "") + " | " : "") + row.allowed + " | " + row.unit + " | " +
            row.help + (row.condition.empty() ? "" : " (" + row.condition + ")") + " |\n";
  }
  return text;
}

std::string explain_unknown_key(const std::string& path, const VisitConfig& visit) {
  const std::string plain = without_indices(path);
  const auto leaf = [](const std::string& text) { return text.substr(text.rfind('.') + 1); };
  std::string nearest;
  size_t best = std::numeric_limits<size_t>::max();
  for (const KeyRow& row : list_keys(visit)) {
    if (row.path == plain) return "key " + show_text(path) + " applies only with " + row.condition;
    // A right name in the wrong section is one mistake.
    const size_t distance = std::min(edit_distance(plain, row.path), edit_distance(leaf(plain), leaf(row.path)) + 1);
    if (distance < best) {
      best = distance;
      nearest = row.path;
    }
  }
  return "unknown key " + show_text(path) + "; the nearest known key is " + nearest;
}

std::string to_yaml(const VisitConfig& visit) {
  Writer writer;
  visit(writer);
  return std::move(writer.result);
}

std::string show_number(double value) {
  std::array<char, 32> buffer{};
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
  return {buffer.data(), end};
}

std::string show_names(std::span<const std::string_view> names) {
  std::string result;
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0) result += i + 1 == names.size() ? " or " : ", ";
    result += names[i];
  }
  return result;
}

std::string show_text(std::string_view text) {
  constexpr size_t kLongest = 60;
  return quoted(text.substr(0, kLongest)) + (text.size() > kLongest ? "..." : "");
}

}  // namespace prulong
