// SPDX-License-Identifier: MIT
#include "common/json_text.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "common/error.h"

namespace prulong {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 32;
constexpr size_t kShownBytes = 80;

/// A number that Python writes and JSON has not.
struct Word {
  std::string_view python;
  double value;
};
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr Word kWords[] = {
    {"NaN", std::numeric_limits<double>::quiet_NaN()}, {"Infinity", kInfinity}, {"-Infinity", -kInfinity}};
constexpr std::string_view kQuotedStart = "\"\\u0000";  // of the text that stands for such a number: a NUL

std::string in_ascii(const json& value) { return value.dump(-1, ' ', true, json::error_handler_t::replace); }

std::string beginning(const std::string& text) {
  return text.size() > kShownBytes ? text.substr(0, kShownBytes) + "..." : text;
}

/// Builds the value of a text and throws at the first thing that is refused.
class Builder : public nlohmann::json_sax<json> {
 public:
  /// @param quoted  whether the text went through quote_numbers, which moved its bytes
  Builder(const std::string& where, const std::string& remedy, bool quoted)
      : where_(where), remedy_(remedy), quoted_(quoted) {}

  json take() { return std::move(root_); }
  [[noreturn]] void fail(const std::string& what) const { throw Error(where_ + ": " + what + remedy_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t&) override { return put(value); }
  bool string(string_t& value) override {
    for (const Word& word : kWords) {
      if (quoted_ && value.starts_with('\0') && value.substr(1) == word.python) return put(word.value);
    }
    return put(std::move(value));
  }
  bool binary(binary_t& value) override { return put(std::move(value)); }
  bool start_object(size_t) override { return enter(json::object()); }
  bool end_object() override { return leave(); }
  bool start_array(size_t) override { return enter(json::array()); }
  bool end_array() override { return leave(); }
  bool key(string_t& name) override {
    if (quoted_ && name.starts_with('\0')) fail("not valid JSON");
    const auto [member, added] = open_.back()->emplace(name, nullptr);
    if (!added) fail("key " + shown(name) + " stands there twice");
    place_ = &*member;
    return true;
  }
  bool parse_error(size_t byte, const std::string&, const json::exception& error) override {
    if (dynamic_cast<const json::out_of_range*>(&error) != nullptr) fail("not valid JSON: a number out of range");
    fail(quoted_ ? "not valid JSON" : "not valid JSON at byte " + std::to_string(byte));
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
  bool quoted_;
  json root_;
  std::vector<json*> open_;  // the objects and lists around the current place
  json* place_ = &root_;     // of the next value outside a list
};

}  // namespace

json parse_json_object(std::string_view text, const std::string& where, const std::string& remedy) {
  const std::string quoted = quote_numbers(text);
  Builder builder(where, remedy, quoted != text);
  json::sax_parse(quoted, &builder);
  json root = builder.take();
  if (!root.is_object()) builder.fail("expected a JSON object, found " + shown(root));
  return root;
}

std::string quote_numbers(std::string_view text) {
  const auto holds = [&](std::string_view part) { return text.find(part) != std::string_view::npos; };
  // With a text that begins with a NUL none can stand for a number: then the parser will refuse the words.
  if (!(holds("NaN") || holds("Infinity")) || holds(kQuotedStart)) return std::string(text);
  const auto is_in_token = [&](size_t at) {
    return at < text.size() && (std::isalnum(static_cast<unsigned char>(text[at])) || std::strchr("+-._", text[at]));
  };
  std::string result;
  bool in_text = false;
  for (size_t i = 0; i < text.size();) {
    const auto stands_here = [&](const Word& word) {
      return text.substr(i).starts_with(word.python) && !is_in_token(i - 1) && !is_in_token(i + word.python.size());
    };
    const Word* const word =
        in_text ? std::end(kWords) : std::find_if(std::begin(kWords), std::end(kWords), stands_here);
    if (word != std::end(kWords)) {
      result += std::string(kQuotedStart) + std::string(word->python) + '"';
      i += word->python.size();
      continue;
    }
    const size_t taken = in_text && text[i] == '\\' ? 2 : 1;  // an escaped quotation mark ends no text
    if (taken == 1 && text[i] == '"') in_text = !in_text;
    result += text.substr(i, taken);
    i += taken;
  }
  return result;
}

std::string unquote_numbers(std::string_view text) {
  std::string result;
  for (size_t at; (at = text.find(kQuotedStart)) != std::string_view::npos;) {
    result += text.substr(0, at);
    text.remove_prefix(at + kQuotedStart.size());
    const size_t end = text.find('"');
    result += text.substr(0, end);
    text.remove_prefix(std::min(text.size(), end + 1));
  }
  return result + std::string(text);
}

std::string shown(const json& value) {
  if (value.is_string()) return in_ascii(beginning(value.get_ref<const std::string&>()));
  if (value.is_number_float() && !std::isfinite(value.get<double>())) {
    const double number = value.get<double>();
    return std::isnan(number) ? "NaN" : number > 0 ? "Infinity" : "-Infinity";
  }
  return beginning(in_ascii(value));
}

}  // namespace prulong
