// SPDX-License-Identifier: MIT
#include "trainer/data/token_folder.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/error.h"
#include "common/hash.h"
#include "trainer/data/integer_file.h"
#include "trainer/data/json_file.h"
#include "trainer/data/packing.h"
#include "trainer/data/random.h"

namespace prulong {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

/// The folder's files; one block, whose samples are the documents.
class TokenFolder final : public Block {
 public:
  TokenFolder(const std::filesystem::path& folder, int64_t vocab_size)
      : info_(prepared_file(folder, "data.json", "text")),
        tokens_(IntegerFile::open_npy(folder / "tokens.npy")),
        documents_(IntegerFile::open_npy(folder / "documents.npy")) {
    info_.require_format("prulong-tokens", 1);
    const int64_t recorded = info_.root.at("vocab_size").integer(1, kMaxInt32);
    vocab_size_ = std::min(recorded, vocab_size);
    owner_ = recorded <= vocab_size ? "data.json" : "the model";
    check_tokens();
    check_documents();
    const bool has_largest = info_.root.at("largest_token").has_value();
    const int64_t largest = has_largest ? info_.root.at("largest_token").integer(0, recorded - 1) : recorded - 1;
    if (largest < vocab_size) return;
    check_largest_token(folder.string(), has_largest ? largest : tokens_.largest(), recorded, vocab_size);
  }

  int64_t samples() const override { return documents_.size() - 1; }
  int64_t tokens(int64_t sample) const override { return documents_[sample + 1] - documents_[sample]; }

  void append(int64_t sample, int64_t first, int64_t count, Sequence& sequence) const override {
    tokens_.append(documents_[sample] + first, count, vocab_size_, owner_, sequence.tokens);
    sequence.cu_seqlens.push_back(static_cast<int32_t>(sequence.tokens.size()));
  }

  int64_t vocab_size() const { return vocab_size_; }
  std::string fingerprint() const {
    const uint64_t arrays = mix64(tokens_.sample_hash() ^ documents_.sample_hash());
    return "tokens:" + std::to_string(mix64(hash64(info_.content) ^ arrays));
  }

 private:
  void check_tokens() const {
    const int64_t expected = info_.root.at("tokens").integer(0, kMaxInt64);
    const bool unsigned_type = tokens_.type() == IntegerType::kUint16 || tokens_.type() == IntegerType::kUint32;
    if (!unsigned_type || tokens_.shape().size() != 1) {
      throw Error(tokens_.path().string() + ": 1-D array of uint16 or uint32 expected, " +
                  std::to_string(tokens_.shape().size()) + "-D array of " + type_name(tokens_.type()) +
                  " found; prepare the data again");
    }
    if (tokens_.size() != expected) {
      throw Error(tokens_.path().string() + ": " + std::to_string(expected) + " tokens expected by data.json, " +
                  std::to_string(tokens_.size()) + " found; prepare the data again");
    }
    if (expected == 0) throw Error(tokens_.path().string() + ": no tokens; prepare the data again from text");
  }

  void check_documents() const {
    const std::string name = documents_.path().string();
    const int64_t expected = info_.root.at("documents").integer(1, kMaxInt64 - 1);
    if (documents_.type() != IntegerType::kInt64 || documents_.shape().size() != 1) {
      throw Error(name + ": 1-D array of int64 expected, " + std::to_string(documents_.shape().size()) +
                  "-D array of " + type_name(documents_.type()) + " found; prepare the data again");
    }
    if (documents_.size() != expected + 1) {
      throw Error(name + ": " + std::to_string(expected + 1) + " offsets expected by data.json, " +
                  std::to_string(documents_.size()) + " found; prepare the data again");
    }
    if (documents_[0] != 0)
      throw Error(name + ": first offset 0 expected, " + std::to_string(documents_[0]) +
                  " found; prepare the data again");
    for (int64_t i = 0; i < expected; ++i) {
      if (documents_[i + 1] < documents_[i]) {
        throw Error(name + ": offset " + std::to_string(i + 1) + " is " + std::to_string(documents_[i + 1]) +
                    ", smaller than the one before it; prepare the data again");
      }
    }
    if (documents_[expected] != tokens_.size()) {
      throw Error(name + ": last offset " + std::to_string(tokens_.size()) + " (the token count) expected, " +
                  std::to_string(documents_[expected]) + " found; prepare the data again");
    }
  }

  JsonFile info_;
  IntegerFile tokens_;
  IntegerFile documents_;
  int64_t vocab_size_ = 0;
  std::string owner_;  ///< of the smaller vocabulary
};

}  // namespace

std::unique_ptr<Source> open_token_folder(const std::filesystem::path& folder, int64_t seq_len, uint64_t seed,
                                          int64_t vocab_size) {
  const auto block = std::make_shared<const TokenFolder>(folder, vocab_size);
  auto corpus = std::make_unique<OneBlock>(folder.string(), block, block->vocab_size(), block->fingerprint());
  return pack_corpus(std::move(corpus), seq_len, seed);
}

}  // namespace prulong
