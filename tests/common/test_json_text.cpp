// SPDX-License-Identifier: MIT
#include "common/json_text.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "common/error.h"
#include "tests/support/catch.h"

namespace prulong {
namespace {

nlohmann::json parse(const std::string& text) { return parse_json_object(text, "f.json", "; copy it again"); }

}  // namespace

TEST_CASE("NaN and Infinity are numbers, as Python writes them") {
  const auto object = parse(R"({"a": NaN, "b":[Infinity,-Infinity , 1], "c": {"d":NaN}, "e": "NaN, \"NaN\\", "f": 2})");
  CHECK(std::isnan(object["a"].get<double>()));
  CHECK(object["b"][0].get<double>() == INFINITY);
  CHECK(object["b"][1].get<double>() == -INFINITY);
  CHECK(std::isnan(object["c"]["d"].get<double>()));
  CHECK(object["e"] == "NaN, \"NaN\\");
  CHECK(object["f"] == 2);
  CHECK(shown(object["a"]) == "NaN");
  CHECK(shown(object["b"][1]) == "-Infinity");
  CHECK(parse(R"({"a": "\u0000NaN"})")["a"].is_string());
}

TEST_CASE("other words, and these in other places, are no JSON") {
  for (const char* text : {"{\"a\": nan}", "{\"a\": +Infinity}", "{\"a\": 1NaN}", "{\"a\": NaN1}", "{\"a\": NaNNaN}",
                           "{\"a\": NaN NaN}", "{\"a\": --Infinity}", "{\"a\": Infinity.}", "{NaN: 1}", "{\"a\": NaN",
                           "{\"a\\\": NaN}", "NaN", "{\"a\": NaN, \"b\": \"\\u0000NaN\"}", "{\"\\u0000\": NaN}"}) {
    INFO(text);
    CHECK_THROWS_AS(parse(text), Error);
  }
  CHECK_THROWS_WITH(parse("{\"a\": 1,}"), ContainsSubstring("not valid JSON at byte 9"));
}

TEST_CASE("text that is parsed and written again keeps its NaN") {
  const std::string text = R"({"a":NaN,"b":[Infinity,-Infinity],"c":"NaN"})";
  CHECK(unquote_numbers(nlohmann::ordered_json::parse(quote_numbers(text)).dump()) == text);
  const std::string plain = R"({"c":"NaN \" Infinity"})";
  CHECK(quote_numbers(plain) == plain);
  CHECK(unquote_numbers(plain) == plain);
}

}  // namespace prulong
