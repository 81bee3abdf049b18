// SPDX-License-Identifier: MIT
#include "common/quote.h"

#include <cstddef>
#include <cstdint>
#include <cstdio>

namespace prulong {
namespace {

/// A character of UTF-8: how many bytes it takes, and its number. A byte that starts none takes one and has none.
struct Character {
  size_t bytes = 1;
  int64_t number = -1;
};

Character first_of(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (byte(0) < 0x80) return {1, byte(0)};
  const size_t bytes = byte(0) >= 0xF0 ? 4 : byte(0) >= 0xE0 ? 3 : 2;
  constexpr int64_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};  // of that many bytes: others have a shorter form
  if (byte(0) < 0xC2 || byte(0) > 0xF4 || text.size() < bytes) return {};
  int64_t number = byte(0) & (0x7F >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    number = number << 6 | (byte(i) & 0x3F);
  }
  const bool surrogate = number >= 0xD800 && number <= 0xDFFF;
  if (number < kSmallest[bytes] || number > 0x10FFFF || surrogate) return {};
  return {bytes, number};
}

bool prints(int64_t number) {
  const bool control = number < 0x20 || (number >= 0x7F && number < 0xA0);
  const bool line_end_or_direction = number >= 0x2028 && number <= 0x202E;
  const bool isolate = number >= 0x2066 && number <= 0x2069;
  return !control && !line_end_or_direction && !isolate;  // no character: a control by its number -1
}

}  // namespace

std::string printable(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const auto [bytes, number] = first_of(text);
    if (prints(number)) {
      result += text.substr(0, bytes);
    } else if (text[0] == '\n' || text[0] == '\r' || text[0] == '\t') {
      result += text[0] == '\n' ? "\\n" : text[0] == '\r' ? "\\r" : "\\t";
    } else {
      char code[16];
      const auto value = static_cast<unsigned>(number < 0 ? static_cast<unsigned char>(text[0]) : number);
      std::snprintf(code, sizeof code, number > 0x7F ? "\\u%04x" : "\\x%02x", value);
      result += code;
    }
    text.remove_prefix(bytes);
  }
  return result;
}

}  // namespace prulong
