// SPDX-License-Identifier: MIT
#include "common/json_text.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "common/error.h"

namespace prulong {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 32;
constexpr size_t kShownBytes = 80;

std::string in_ascii(const json& value) { return value.dump(-1, ' ', true, json::error_handler_t::replace); }

std::string beginning(const std::string& text) {
  return text.size() > kShownBytes ? text.substr(0, kShownBytes) + "..." : text;
}

/// Builds the value of a text and throws at the first thing that is refused.
class Builder : public nlohmann::json_sax<json> {
 public:
  Builder(const std::string& where, const std::string& remedy) : where_(where), remedy_(remedy) {}

  json take() { return std::move(root_); }
  [[noreturn]] void fail(const std::string& what) const { throw Error(where_ + ": " + what + remedy_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t&) override { return put(value); }
  bool string(string_t& value) override { return put(std::move(value)); }
  bool binary(binary_t& value) override { return put(std::move(value)); }
  bool start_object(size_t) override { return enter(json::object()); }
  bool end_object() override { return leave(); }
  bool start_array(size_t) override { return enter(json::array()); }
  bool end_array() override { return leave(); }
  bool key(string_t& name) override {
    const auto [member, added] = open_.back()->emplace(name, nullptr);
    if (!added) fail("key " + shown(name) + " stands there twice");
    place_ = &*member;
    return true;
  }
  bool parse_error(size_t byte, const std::string&, const json::exception& error) override {
    if (dynamic_cast<const json::out_of_range*>(&error) != nullptr) fail("not valid JSON: a number out of range");
    fail("not valid JSON at byte " + std::to_string(byte));
  }

 private:
  bool put(json value) {
    if (!open_.empty() && open_.back()->is_array()) place_ = &open_.back()->emplace_back();
    *place_ = std::move(value);
    return true;
  }
  bool enter(json container) {
    if (open_.size() == kMaxDepth) fail("nested deeper than " + std::to_string(kMaxDepth) + " levels");
    put(std::move(container));
    open_.push_back(place_);
    return true;
  }
  bool leave() {
    open_.pop_back();
    return true;
  }

  const std::string &where_, &remedy_;
  json root_;
  std::vector<json*> open_;  // the objects and lists around the current place
  json* place_ = &root_;     // of the next value outside a list
};

}  // namespace

json parse_json_object(std::string_view text, const std::string& where, const std::string& remedy) {
  Builder builder(where, remedy);
  json::sax_parse(text, &builder);
  json root = builder.take();
  if (!root.is_object()) builder.fail("expected a JSON object, found " + shown(root));
  return root;
}

std::string shown(const json& value) {
  if (value.is_string()) return in_ascii(beginning(value.get_ref<const std::string&>()));
  return beginning(in_ascii(value));
}

}  // namespace prulong
