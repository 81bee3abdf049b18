// SPDX-License-Identifier: MIT
// How a configuration struct describes itself: one function per struct visits its members, one line per key. Reading
// YAML, writing YAML and the table of keys are visitors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace prulong {

/// What a key is called and means. A key of a list item has the list's name without an index.
struct Key {
  std::string_view name;
  std::string_view help;
  std::string_view unit = "";
};

/// Where a number may lie. Infinities and NaN never do.
struct Interval {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool open_min = false;
  bool open_max = false;

  static constexpr Interval closed(double min, double max) { return {min, max}; }
  static constexpr Interval at_least(double min) { return {.min = min}; }
  static constexpr Interval above(double min) { return {.min = min, .open_min = true}; }
  static constexpr Interval half_open(double min, double max) { return {.min = min, .max = max, .open_max = true}; }

  bool contains(double value) const;
  std::string text() const;  ///< "a number in [0, 1)", "a number above 0"
};

/// What a text may be.
enum class TextRule { kOptional, kRequired };

/// Sees every key of a configuration once, in order.
class ConfigVisitor {
 public:
  virtual ~ConfigVisitor() = default;

  virtual void boolean(bool& value, const Key& key) = 0;
  virtual void integer(int64_t& value, const Key& key, int64_t min, int64_t max) = 0;
  /// @param zero  a name for 0, which lies below `min`: "auto".
  virtual void integer_or(int64_t& value, const Key& key, int64_t min, int64_t max, std::string_view zero) = 0;
  virtual void number(double& value, const Key& key, const Interval& allowed) = 0;
  virtual void text(std::string& value, const Key& key, TextRule rule) = 0;

  /// One of `names`, in the order of the enumerators (0, 1, ...).
  template <class Enum>
  void choice(Enum& value, const Key& key, std::span<const std::string_view> names) {
    value = static_cast<Enum>(choose(static_cast<size_t>(value), key, names));
  }

  /// A list of distinct names; never empty.
  template <class Enum>
  void choices(std::vector<Enum>& values, const Key& key, std::span<const std::string_view> names) {
    std::vector<size_t> indices;
    for (const Enum value : values) indices.push_back(static_cast<size_t>(value));
    choose_several(indices, key, names);
    values.clear();
    for (const size_t index : indices) values.push_back(static_cast<Enum>(index));
  }

  /// Keys of their own under one name.
  template <class Body>
  void section(const Key& key, Body body) {
    begin_section(key);
    body();
    end_section();
  }

  /// A list of sections. @param visit_item  (ConfigVisitor&, Item&).
  template <class Item, class VisitItem>
  void list(std::vector<Item>& items, const Key& key, VisitItem visit_item) {
    items.resize(begin_list(key, items.size()));
    for (size_t i = 0; i < items.size(); ++i) {
      begin_item(i);
      visit_item(*this, items[i]);
      end_item();
    }
    end_list();
  }

  /// Keys that exist only under a condition. @param condition  in words: "type: recall".
  template <class Body>
  void when(bool holds, std::string_view condition, Body body) {
    if (begin_when(holds, condition)) body();
    end_when();
  }

 protected:
  virtual size_t choose(size_t value, const Key& key, std::span<const std::string_view> names) = 0;
  virtual void choose_several(std::vector<size_t>& values, const Key& key, std::span<const std::string_view> names) = 0;
  virtual void begin_section(const Key& key) = 0;
  virtual void end_section() = 0;
  virtual bool begin_when(bool holds, [[maybe_unused]] std::string_view condition) { return holds; }
  virtual void end_when() {}
  virtual size_t begin_list(const Key& key, size_t size) = 0;  ///< returns how many items there shall be
  virtual void begin_item(size_t index) = 0;
  virtual void end_item() = 0;
  virtual void end_list() = 0;
};

/// Visits a whole configuration.
using VisitConfig = std::function<void(ConfigVisitor&)>;

/// One key, as documentation and error messages need it.
struct KeyRow {
  std::string path;     ///< "sparsity.end"; "data.train[].type" in a list
  std::string value;    ///< as written in YAML; "" when required or a list
  std::string allowed;  ///< "0 to 1048576", "linear or logarithmic"
  std::string unit;
  std::string help;
  std::string condition;  ///< "" or when the key applies: "type: recall"
  bool section = false;   ///< a section or list rather than a value
};

/// Every key, in order, with the value that it has. Lists are shown by one item: `visit`'s lists are resized to one.
std::vector<KeyRow> list_keys(const VisitConfig& visit);

/// Markdown: every key of a program with its default, what is allowed, unit and meaning.
/// @param source  the file that the table is made from.
/// @param variant, variant_rows  a column for the keys whose value differs there; rows empty: no such column.
std::string config_table(const std::string& program, const std::string& source, const std::vector<KeyRow>& rows,
                         const std::string& variant = "", const std::vector<KeyRow>& variant_rows = {});

/// Why a key that the configuration does not have is refused, with the nearest known one.
/// @param path  with indices: "data.train.0.typ".
std::string explain_unknown_key(const std::string& path, const VisitConfig& visit);

/// The configuration as YAML that reads back to the same values, every key written out.
std::string to_yaml(const VisitConfig& visit);

/// Numbers and names as messages, tables and YAML show them: shortest text that reads back exactly; "a, b or c"; quoted
/// and cut to a readable length, on one line.
std::string show_number(double value);
std::string show_names(std::span<const std::string_view> names);
std::string show_text(std::string_view text);

/// A rule between keys that a configuration breaks.
struct ConfigProblem {
  std::string key;   ///< the key to point at
  std::string what;  ///< what was found, what is allowed
};

}  // namespace prulong
