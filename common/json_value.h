// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prulong {

/// A value of a JSON file that knows its place there, or the absence of one. Values are taken by type; what does not
/// fit is refused in one line that names file, place, what was found, what was expected and what to do: FILE:
/// "model.layers" is 0; expected an integer of at least 1; copy the file again.
class JsonValue {
 public:
  /// The object that a text holds.
  /// @param file    what messages call the text.
  /// @param remedy  what to do, for messages: "; copy the file again".
  /// @throws Error as parse_json_object.
  static JsonValue parse(std::string_view text, const std::string& file, const std::string& remedy);

  /// A member; absent where there is none, or where this is no object.
  JsonValue at(const std::string& key) const;

  bool present() const { return value_ != nullptr; }
  /// Present and not null.
  bool has_value() const;
  bool is_object() const;

  /// An integer in [least, most]; 4.0 is none.
  int64_t integer(int64_t least, int64_t most = std::numeric_limits<int64_t>::max()) const;
  /// A number in [least, most].
  double number(double least, double most) const;
  /// A finite number above 0.
  double positive() const;
  bool boolean() const;
  /// Text without control characters.
  std::string text() const;
  /// A list's values.
  std::vector<JsonValue> list() const;
  /// An object's values, sorted by key.
  std::vector<std::pair<std::string, JsonValue>> members() const;
  /// Refuses an object with other members than these.
  void refuse_others(const std::vector<std::string>& keys) const;

  /// The value itself, to compare with; null where it is absent.
  const nlohmann::json& raw() const;

  /// @param remark  follows what was found: "expected ...", or why that is not supported.
  [[noreturn]] void refuse(const std::string& remark) const;

 private:
  struct Document;
  JsonValue(std::shared_ptr<const Document> document, const nlohmann::json* value, std::string place)
      : document_(std::move(document)), value_(value), place_(std::move(place)) {}

  std::shared_ptr<const Document> document_;
  const nlohmann::json* value_;
  std::string place_;
};

}  // namespace prulong
