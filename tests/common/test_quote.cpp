// SPDX-License-Identifier: MIT
#include "common/quote.h"

#include <string>

#include "common/error.h"
#include "tests/support/catch.h"

namespace prulong {
namespace {

TEST_CASE("text that prints stays as it is") {
  for (const std::string text :
       {"", "plain 'text' \"of\" a\\b", "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", "\xc2\xa0"}) {
    CHECK(printable(text) == text);
  }
}

TEST_CASE("what does not print is escaped, once") {
  const std::pair<std::string, std::string> cases[] = {
      {"a\nb\r\tc", "a\\nb\\r\\tc"},
      {std::string("\0\x1b[2J\x7f", 6), "\\x00\\x1b[2J\\x7f"},
      {"\xc2\x85\xc2\x9b|\xe2\x80\xa8\xe2\x80\xa9\xe2\x80\xae\xe2\x81\xa6",
       "\\u0085\\u009b|\\u2028\\u2029\\u202e\\u2066"},
      {"\xff|\xc3|\xc3(|\x80", "\\xff|\\xc3|\\xc3(|\\x80"},
      {"\xc0\xaf|\xe0\x80\xaf|\xf0\x80\x80\xaf", "\\xc0\\xaf|\\xe0\\x80\\xaf|\\xf0\\x80\\x80\\xaf"},  // too long a form
      {"\xed\xa0\x80|\xf4\x90\x80\x80|\xf8\x88", "\\xed\\xa0\\x80|\\xf4\\x90\\x80\\x80|\\xf8\\x88"},
      {"\xe2\x82", "\\xe2\\x82"},
  };
  for (const auto& [text, expected] : cases) {
    CHECK(printable(text) == expected);
    CHECK(printable(expected) == expected);
    CHECK(std::string(Error(text).what()) == expected);
    CHECK(std::string(ConfigError(text).what()) == expected);
  }
}

}  // namespace
}  // namespace prulong
