// SPDX-License-Identifier: MIT
#include "common/json_value.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/error.h"
#include "common/json_text.h"

namespace prulong {

using nlohmann::json;

struct JsonValue::Document {
  json root;
  std::string file, remedy;
};

JsonValue JsonValue::parse(std::string_view text, const std::string& file, const std::string& remedy) {
  auto document = std::make_shared<const Document>(Document{parse_json_object(text, file, remedy), file, remedy});
  const json* const root = &document->root;
  return JsonValue(std::move(document), root, "");
}

JsonValue JsonValue::at(const std::string& key) const {
  const json* found = nullptr;
  if (is_object()) {
    if (const auto member = value_->find(key); member != value_->end()) found = &*member;
  }
  return JsonValue(document_, found, place_.empty() ? key : place_ + "." + key);
}

bool JsonValue::has_value() const { return present() && !value_->is_null(); }

bool JsonValue::is_object() const { return present() && value_->is_object(); }

const json& JsonValue::raw() const {
  static const json kNull;
  return present() ? *value_ : kNull;
}

void JsonValue::refuse(const std::string& remark) const {
  throw Error(document_->file + ": " + shown(place_) + " is " + (present() ? shown(*value_) : "missing") + "; " +
              remark + document_->remedy);
}

int64_t JsonValue::integer(int64_t least, int64_t most) const {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const json& value = raw();
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || value.get<uint64_t>() <= static_cast<uint64_t>(kMost));
  if (!fits || value.get<int64_t>() < least || value.get<int64_t>() > most) {
    refuse("expected an integer " + (most == kMost ? "of at least " + std::to_string(least)
                                                   : "from " + std::to_string(least) + " to " + std::to_string(most)));
  }
  return value.get<int64_t>();
}

double JsonValue::number(double least, double most) const {
  const json& value = raw();
  if (!value.is_number() || !(value.get<double>() >= least && value.get<double>() <= most)) {
    std::ostringstream range;
    range << "expected a number from " << least << " to " << most;
    refuse(range.str());
  }
  return value.get<double>();
}

double JsonValue::positive() const {
  const double number = raw().is_number() ? raw().get<double>() : 0.0;
  if (!std::isfinite(number) || number <= 0.0) refuse("expected a positive number");
  return number;
}

bool JsonValue::boolean() const {
  if (!raw().is_boolean()) refuse("expected true or false");
  return raw().get<bool>();
}

std::string JsonValue::text() const {
  const bool good = raw().is_string() && std::ranges::all_of(raw().get_ref<const std::string&>(), [](char c) {
                      return static_cast<unsigned char>(c) >= ' ' && c != '\x7f';
                    });
  if (!good) refuse("expected a text");
  return raw().get<std::string>();
}

std::vector<JsonValue> JsonValue::list() const {
  if (!raw().is_array()) refuse("expected a list");
  std::vector<JsonValue> values;
  values.reserve(value_->size());
  for (size_t i = 0; i < value_->size(); ++i) {
    values.push_back(JsonValue(document_, &(*value_)[i], place_ + "[" + std::to_string(i) + "]"));
  }
  return values;
}

std::vector<std::pair<std::string, JsonValue>> JsonValue::members() const {
  if (!is_object()) refuse("expected an object");
  std::vector<std::pair<std::string, JsonValue>> values;
  for (const auto& [key, value] : value_->items()) values.emplace_back(key, at(key));
  return values;
}

void JsonValue::refuse_others(const std::vector<std::string>& keys) const {
  for (const auto& [key, value] : members()) {
    if (std::ranges::find(keys, key) == keys.end()) {
      throw Error(document_->file + ": unknown key " + shown(value.place_) + document_->remedy);
    }
  }
}

}  // namespace prulong
