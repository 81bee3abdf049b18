// SPDX-License-Identifier: MIT
#include "trainer/data/recall_kit.h"

#include <algorithm>
#include <limits>

#include "common/error.h"
#include "common/hash.h"
#include "trainer/data/integer_file.h"
#include "trainer/data/json_file.h"
#include "trainer/data/random.h"

namespace prulong {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

void check_array(const IntegerFile& array, bool right_type, const char* types, int64_t expected) {
  const std::string name = array.path().string();
  if (!right_type || array.shape().size() != 1) {
    throw Error(name + ": 1-D array of " + types + " expected, " + std::to_string(array.shape().size()) +
                "-D array of " + type_name(array.type()) + " found; prepare the kit again");
  }
  if (array.size() != expected) {
    throw Error(name + ": " + std::to_string(expected) + " elements expected by kit.json, " +
                std::to_string(array.size()) + " found; prepare the kit again");
  }
}

/// @param largest  raised to the largest of these tokens.
std::vector<int32_t> read_tokens(const JsonValue& list, int64_t vocab_size, int64_t& largest) {
  std::vector<int32_t> tokens;
  for (const JsonValue& token : list.list()) {
    const int64_t value = token.integer(0, vocab_size - 1);
    tokens.push_back(static_cast<int32_t>(value));
    largest = std::max(largest, value);
  }
  return tokens;
}

RecallKit::Template read_template(const JsonValue& parts, int64_t vocab_size, int64_t& largest) {
  const auto part = [&](const char* name) { return read_tokens(parts.at(name), vocab_size, largest); };
  return {part("intro"), part("before"),          part("middle"),          part("after"),     part("outro"),
          part("ask"),   part("question_before"), part("question_middle"), part("separator"), part("question_after")};
}

}  // namespace

int64_t RecallKit::List::longest() const {
  size_t result = 0;
  for (const Tokens piece : pieces) result = std::max(result, piece.size());
  return static_cast<int64_t>(result);
}

RecallKit::RecallKit(const std::filesystem::path& folder, bool held_out) {
  const JsonFile info(prepared_file(folder, "kit.json", "recall"));
  info.require_format("prulong-recall-kit", 2);
  vocab_size_ = info.root.at("vocab_size").integer(1, kMaxInt32);

  const IntegerFile tokens = IntegerFile::open_npy(folder / "tokens.npy");
  const bool unsigned_type = tokens.type() == IntegerType::kUint16 || tokens.type() == IntegerType::kUint32;
  check_array(tokens, unsigned_type, "uint16 or uint32", info.root.at("tokens").integer(1, kMaxInt32));
  const IntegerFile offsets = IntegerFile::open_npy(folder / "offsets.npy");
  const int64_t pieces = info.root.at("pieces").integer(1, kMaxInt32);
  check_array(offsets, offsets.type() == IntegerType::kInt64, "int64", pieces + 1);
  hash_ = mix64(hash64(info.content) ^ mix64(tokens.sample_hash() ^ offsets.sample_hash()));

  tokens.append(0, tokens.size(), vocab_size_, "kit.json", tokens_);
  const auto piece = [&](int64_t index) {
    const int64_t begin = offsets[index], end = offsets[index + 1];
    if (begin < 0 || end <= begin || end > tokens.size()) {
      throw Error(offsets.path().string() + ": piece " + std::to_string(index) + " goes from token " +
                  std::to_string(begin) + " to " + std::to_string(end) + " of " + std::to_string(tokens.size()) +
                  "; prepare the kit again");
    }
    return Tokens(tokens_).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  };
  const auto list = [&](const char* name) {
    const JsonValue range = info.root.at("lists").at(held_out ? "eval" : "train").at(name);
    const auto ends = range.list();
    const int64_t first = ends.size() == 2 ? ends[0].integer(0, pieces) : 0;
    const int64_t count = ends.size() == 2 ? ends[1].integer(0, pieces) : 0;
    if (count < 1 || count > pieces - first) {
      range.refuse("expected [first, count] within " + std::to_string(pieces) + " pieces");
    }
    List result{name, {}};
    for (int64_t i = first; i < first + count; ++i) result.pieces.push_back(piece(i));
    return result;
  };
  prose_ = list("prose");
  adjectives_ = list("adjectives");
  nouns_ = list("nouns");
  codes_ = list("codes");
  passkeys_ = list("passkeys");
  labels_ = list("labels");
  for (const int32_t id : tokens_) largest_token_ = std::max<int64_t>(largest_token_, id);
  prefix_ = read_tokens(info.root.at("prefix"), vocab_size_, largest_token_);
  for (const char* const task : {"codes", "passkey", "key_values", "multi_values", "labels"}) {
    templates_[task] = read_template(info.root.at("templates").at(task), vocab_size_, largest_token_);
  }
}

}  // namespace prulong
