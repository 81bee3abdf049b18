// SPDX-License-Identifier: MIT
#include "tests/fuzz/mutate.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace prulong::fuzz {
namespace {

// Where sizes and offsets go wrong.
constexpr std::array<uint32_t, 12> kWords = {0,      1,       2,          0x7f,       0xff,       0x7fff,
                                             0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
constexpr std::array<std::string_view, 14> kNumbers = {
    "0",    "-1",  "1",     "2",   "65536", "4294967295", "4294967296", "9223372036854775807", "18446744073709551616",
    "1e99", "0.5", "1e-99", "NaN", "null"};
constexpr std::array<std::string_view, 10> kTexts = {"\"", "[", "]", "{", "}", ",", ":", "\n", "\\u0000", "\xff"};

struct Segment {
  size_t begin, size;
};

Segment draw_segment(const std::string& bytes, Random& random) {
  const size_t begin = random.below(bytes.size());
  // Mostly short ones.
  const size_t most = random.below(4) == 0 ? bytes.size() - begin : std::min<size_t>(16, bytes.size() - begin);
  return {begin, 1 + random.below(most)};
}

/// Replaces a whole number of the text, if there is one from some place on.
bool change_number(std::string& bytes, Random& random) {
  const auto digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
  const auto from = bytes.begin() + static_cast<std::ptrdiff_t>(random.below(bytes.size()));
  const auto begin = std::find_if(from, bytes.end(), digit);
  if (begin == bytes.end()) return false;
  const auto end = std::find_if_not(begin, bytes.end(), digit);
  bytes.replace(begin, end, kNumbers[random.below(kNumbers.size())]);
  return true;
}

template <typename Word>
void change_word(std::string& bytes, Random& random) {
  if (bytes.size() < sizeof(Word)) return;
  const size_t at = random.below(bytes.size() - sizeof(Word) + 1);
  Word word = 0;
  std::memcpy(&word, bytes.data() + at, sizeof(Word));
  switch (random.below(3)) {
    case 0:
      word = static_cast<Word>(kWords[random.below(kWords.size())]);
      break;
    case 1:
      word = static_cast<Word>(word + 1);
      break;
    default:
      word = static_cast<Word>(word - 1);
  }
  std::memcpy(bytes.data() + at, &word, sizeof(Word));
}

void change_once(std::string& bytes, Random& random) {
  if (bytes.empty()) {
    bytes = kTexts[random.below(kTexts.size())];
    return;
  }
  const Segment segment = draw_segment(bytes, random);
  switch (random.below(10)) {
    case 0:
      bytes[segment.begin] = static_cast<char>(bytes[segment.begin] ^ (1 << random.below(8)));
      break;
    case 1:
      bytes[segment.begin] = static_cast<char>(random.below(256));
      break;
    case 2:
      change_word<uint16_t>(bytes, random);
      break;
    case 3:
      change_word<uint32_t>(bytes, random);
      break;
    case 4:
      bytes.erase(segment.begin, segment.size);
      break;
    case 5:
      bytes.insert(segment.begin, bytes.substr(segment.begin, segment.size));
      break;
    case 6: {
      const std::string piece = bytes.substr(segment.begin, segment.size);
      const size_t to = random.below(bytes.size());
      bytes.replace(to, std::min(piece.size(), bytes.size() - to), piece);
      break;
    }
    case 7:
      bytes.resize(segment.begin);
      break;
    case 8:
      bytes.insert(segment.begin, kTexts[random.below(kTexts.size())]);
      break;
    default:
      if (!change_number(bytes, random)) std::fill_n(bytes.begin() + segment.begin, segment.size, '\0');
  }
}

}  // namespace

std::string mutate(std::string bytes, Random& random) {
  const std::string original = bytes;
  do {
    for (uint64_t changes = 1 + random.below(4); changes > 0; --changes) change_once(bytes, random);
  } while (bytes == original);
  return bytes;
}

}  // namespace prulong::fuzz
