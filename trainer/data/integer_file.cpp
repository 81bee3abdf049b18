// SPDX-License-Identifier: MIT
#include "trainer/data/integer_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include "common/error.h"
#include "common/hash.h"
#include "trainer/data/random.h"

namespace prulong {
namespace {

static_assert(std::endian::native == std::endian::little, "integers are read as they lie in the file");

/// Calls `body` with a value of the C++ type.
template <typename Body>
auto with_type(IntegerType type, const Body& body) {
  switch (type) {
    case IntegerType::kUint16:
      return body(uint16_t{});
    case IntegerType::kUint32:
      return body(uint32_t{});
    case IntegerType::kInt32:
      return body(int32_t{});
    case IntegerType::kInt64:
      break;
  }
  return body(int64_t{});
}

template <typename T>
T load(const std::byte* address) {
  T value;  // copied: integers may lie unaligned
  std::memcpy(&value, address, sizeof(T));
  return value;
}

}  // namespace

const char* type_name(IntegerType type) {
  switch (type) {
    case IntegerType::kUint16:
      return "uint16";
    case IntegerType::kUint32:
      return "uint32";
    case IntegerType::kInt32:
      return "int32";
    case IntegerType::kInt64:
      break;
  }
  return "int64";
}

int64_t bytes_of(IntegerType type) {
  return with_type(type, [](auto value) { return static_cast<int64_t>(sizeof(value)); });
}

int64_t load_integer(IntegerType type, const std::byte* address) {
  return with_type(type, [&](auto value) { return static_cast<int64_t>(load<decltype(value)>(address)); });
}

int64_t append_tokens(IntegerType type, const std::byte* data, int64_t count, int64_t vocab_size,
                      std::vector<int32_t>& tokens) {
  const size_t start = tokens.size();
  tokens.resize(start + static_cast<size_t>(count));
  int32_t* const out = tokens.data() + start;
  return with_type(type, [&](auto sample) -> int64_t {
    using Value = decltype(sample);
    using Wide = std::conditional_t<sizeof(Value) == 2, uint32_t, uint64_t>;
    constexpr Wide kSign = Wide{1} << (8 * sizeof(Wide) - 1);
    const auto last = static_cast<Wide>(vocab_size - 1);
    // The sign of a value, or of its distance to the last allowed one: arithmetic that becomes vector code.
    const auto outside = [&](int64_t i) {
      const auto wide = static_cast<Wide>(load<Value>(data + i * static_cast<int64_t>(sizeof(Value))));
      return wide | (last - wide);
    };
    Wide signs = 0;
    for (int64_t i = 0; i < count; ++i) {
      out[i] = static_cast<int32_t>(load<Value>(data + i * static_cast<int64_t>(sizeof(Value))));
      signs |= outside(i);
    }
    if ((signs & kSign) == 0) return -1;
    int64_t bad = 0;
    while ((outside(bad) & kSign) == 0) ++bad;
    return bad;
  });
}

void check_largest_token(const std::string& name, int64_t largest, int64_t made_for, int64_t vocab_size) {
  if (largest < vocab_size) return;
  throw Error(name + ": token " + std::to_string(largest) + " occurs, made for a vocabulary of " +
              std::to_string(made_for) + " tokens, the model has " + std::to_string(vocab_size) +
              "; prepare the data with the model's own tokenizer");
}

IntegerFile::IntegerFile(const std::filesystem::path& path, IntegerType type)
    : path_(path), file_(std::make_unique<MappedFile>(path)), data_(file_->bytes().data()), type_(type) {}

IntegerFile IntegerFile::open_raw(const std::filesystem::path& path, IntegerType type) {
  IntegerFile file(path, type);
  const auto found = static_cast<int64_t>(file.bytes().size());
  if (found == 0) throw Error(path.string() + ": the file is empty, tokens expected; write it again");
  if (found % bytes_of(type) != 0) {
    throw Error(path.string() + ": whole " + type_name(type) + " integers of " + std::to_string(bytes_of(type)) +
                " bytes expected, " + std::to_string(found) +
                " bytes found: the file is incomplete, or of another dtype; write it again, or change dtype");
  }
  file.size_ = found / bytes_of(type);
  file.shape_ = {file.size_};
  return file;
}

void IntegerFile::append(int64_t first, int64_t count, int64_t vocab_size, const std::string& owner,
                         std::vector<int32_t>& tokens) const {
  const int64_t bad = append_tokens(type_, data_ + first * bytes_of(type_), count, vocab_size, tokens);
  if (bad < 0) return;
  throw Error(path_.string() + ": token " + std::to_string((*this)[first + bad]) + " at position " +
              std::to_string(first + bad) + " is beyond the vocabulary of " + std::to_string(vocab_size) + " in " +
              owner + "; prepare the data with the model's own tokenizer");
}

int64_t IntegerFile::largest() const {
  return with_type(type_, [&](auto sample) {
    using Value = decltype(sample);
    Value most = 0;
    for (int64_t i = 0; i < size_; ++i) {
      most = std::max(most, load<Value>(data_ + i * static_cast<int64_t>(sizeof(Value))));
    }
    return size_ == 0 ? int64_t{-1} : static_cast<int64_t>(most);
  });
}

uint64_t IntegerFile::sample_hash() const {
  constexpr size_t kSegments = 16, kLength = 4096;
  const std::string_view text(reinterpret_cast<const char*>(bytes().data()), bytes().size());
  uint64_t hash = hash64(std::to_string(text.size()));
  if (text.size() <= kSegments * kLength) return hash ^ hash64(text);
  for (size_t i = 0; i < kSegments; ++i) {
    const size_t start = (text.size() - kLength) / (kSegments - 1) * i;
    hash = mix64(hash ^ hash64(text.substr(start, kLength)));
  }
  return hash;
}

}  // namespace prulong
