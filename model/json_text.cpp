// SPDX-License-Identifier: MIT
#include "model/json_text.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "model/error.h"

namespace prulong {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 32;
constexpr size_t kShownBytes = 80;

std::string in_ascii(const json& value) { return value.dump(-1, ' ', true, json::error_handler_t::replace); }

std::string beginning(const std::string& text) {
  return text.size() > kShownBytes ? text.substr(0, kShownBytes) + "..." : text;
}

/// Sees a text's values go by and throws at the first that is refused. (The library's parser that asks a callback while
/// it builds the values takes four times as long as this and the plain one together.)
class Check : public nlohmann::json_sax<json> {
 public:
  Check(const std::string& where, const std::string& remedy) : where_(where), remedy_(remedy) {}

  [[noreturn]] void fail(const std::string& what) const { throw Error(where_ + ": " + what + remedy_); }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return enter(); }
  bool end_object() override { return leave(); }
  bool start_array(size_t) override { return enter(); }
  bool end_array() override { return leave(); }
  bool key(string_t& name) override {
    if (!names_.back().insert(name).second) fail("key " + shown(name) + " stands there twice");
    return true;
  }
  bool parse_error(size_t byte, const std::string&, const json::exception& error) override {
    if (dynamic_cast<const json::out_of_range*>(&error) != nullptr) fail("not valid JSON: a number out of range");
    fail("not valid JSON at byte " + std::to_string(byte));
  }

 private:
  bool enter() {
    if (names_.size() == kMaxDepth) fail("nested deeper than " + std::to_string(kMaxDepth) + " levels");
    names_.emplace_back();
    return true;
  }
  bool leave() {
    names_.pop_back();
    return true;
  }

  const std::string &where_, &remedy_;
  std::vector<std::set<std::string>> names_;  // of the objects around the current place; none in a list
};

}  // namespace

json parse_json_object(std::string_view text, const std::string& where, const std::string& remedy) {
  Check check(where, remedy);
  json::sax_parse(text, &check);
  json root = json::parse(text);
  if (!root.is_object()) check.fail("expected a JSON object, found " + shown(root));
  return root;
}

std::string shown(const json& value) {
  if (value.is_string()) return in_ascii(beginning(value.get_ref<const std::string&>()));
  return beginning(in_ascii(value));
}

}  // namespace prulong
