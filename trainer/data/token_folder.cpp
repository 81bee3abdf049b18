// SPDX-License-Identifier: MIT
#include "trainer/data/token_folder.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <utility>
#include <vector>

#include "model/error.h"
#include "trainer/data/json_file.h"
#include "trainer/data/npy.h"
#include "trainer/data/random.h"

namespace prulong {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();
constexpr size_t kCachedEpochs = 4;  // a reader is in one or two; readers ahead and evaluation may be in others

/// The order of one epoch's documents, and where each of them starts in the epoch.
struct Epoch {
  Epoch(int64_t epoch_index, Permutation epoch_order) : index(epoch_index), order(epoch_order) {}

  int64_t index;
  Permutation order;            ///< place in the epoch -> document
  std::vector<int64_t> starts;  ///< [documents + 1], in tokens of the epoch
};

class TokenFolder final : public Source {
 public:
  TokenFolder(const std::filesystem::path& folder, int64_t seq_len, uint64_t seed)
      : info_(folder / "data.json"),
        tokens_(folder / "tokens.npy"),
        documents_(folder / "documents.npy"),
        seq_len_(seq_len),
        seed_(seed) {
    info_.require_format("prulong-tokens", 1);
    vocab_size_ = info_.integer("/vocab_size", 1, kMaxInt32);
    check_tokens();
    check_documents();
  }

  Sequence sequence(int64_t n) const override {
    if (n < 0 || n >= kMaxInt64 / seq_len_) throw Error("sequence " + std::to_string(n) + " is out of range");
    Sequence result;
    result.tokens.reserve(static_cast<size_t>(seq_len_));
    result.cu_seqlens.push_back(0);
    int64_t position = n * seq_len_;
    while (std::ssize(result.tokens) < seq_len_) {
      const std::shared_ptr<const Epoch> epoch = find_epoch(position / tokens_.size());
      position += append(*epoch, position % tokens_.size(), result);
    }
    return result;
  }

  int64_t vocab_size() const override { return vocab_size_; }

  std::string fingerprint() const override {
    // data.json holds the hashes of the arrays.
    return "tokens:" + std::to_string(hash64(info_.content())) + ":seq_len=" + std::to_string(seq_len_) +
           ":seed=" + std::to_string(seed_);
  }

 private:
  void check_tokens() const {
    const int64_t expected = info_.integer("/tokens", 0, kMaxInt64);
    const bool unsigned_type = tokens_.type() == NpyArray::Type::kUint16 || tokens_.type() == NpyArray::Type::kUint32;
    if (!unsigned_type || tokens_.shape().size() != 1) {
      throw Error(tokens_.path().string() + ": 1-D array of uint16 or uint32 expected, " +
                  std::to_string(tokens_.shape().size()) + "-D array of " + type_name(tokens_.type()) + " found");
    }
    if (tokens_.size() != expected) {
      throw Error(tokens_.path().string() + ": " + std::to_string(expected) + " tokens expected by data.json, " +
                  std::to_string(tokens_.size()) + " found; prepare the data again");
    }
    if (expected == 0) throw Error(tokens_.path().string() + ": no tokens; prepare the data again from text");
  }

  void check_documents() const {
    const std::string name = documents_.path().string();
    const int64_t expected = info_.integer("/documents", 1, kMaxInt64 - 1);
    if (documents_.type() != NpyArray::Type::kInt64 || documents_.shape().size() != 1) {
      throw Error(name + ": 1-D array of int64 expected, " + std::to_string(documents_.shape().size()) +
                  "-D array of " + type_name(documents_.type()) + " found");
    }
    if (documents_.size() != expected + 1) {
      throw Error(name + ": " + std::to_string(expected + 1) + " offsets expected by data.json, " +
                  std::to_string(documents_.size()) + " found; prepare the data again");
    }
    if (documents_[0] != 0)
      throw Error(name + ": first offset 0 expected, " + std::to_string(documents_[0]) + " found");
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

  std::shared_ptr<const Epoch> find_epoch(int64_t index) const {
    const std::lock_guard lock(mutex_);
    const auto hit = std::find_if(epochs_.begin(), epochs_.end(), [&](const auto& e) { return e->index == index; });
    if (hit != epochs_.end()) {
      std::rotate(epochs_.begin(), hit, hit + 1);  // the least recently used one stays last
      return epochs_.front();
    }
    const int64_t documents = documents_.size() - 1;
    Random key({seed_, static_cast<uint64_t>(index)});
    auto epoch = std::make_shared<Epoch>(index, Permutation(static_cast<uint64_t>(documents), key.next()));
    epoch->starts.reserve(static_cast<size_t>(documents) + 1);
    epoch->starts.push_back(0);
    for (int64_t place = 0; place < documents; ++place) {
      const auto document = static_cast<int64_t>(epoch->order(static_cast<uint64_t>(place)));
      epoch->starts.push_back(epoch->starts.back() + documents_[document + 1] - documents_[document]);
    }
    if (epochs_.size() == kCachedEpochs) epochs_.pop_back();
    epochs_.insert(epochs_.begin(), epoch);
    return epoch;
  }

  /// Appends the document that lies at `position` of the epoch, from there to its end or to the sequence's.
  /// @return how many tokens that were, > 0.
  int64_t append(const Epoch& epoch, int64_t position, Sequence& result) const {
    const auto after = std::upper_bound(epoch.starts.begin(), epoch.starts.end(), position);
    const int64_t place = after - epoch.starts.begin() - 1;
    const auto document = static_cast<int64_t>(epoch.order(static_cast<uint64_t>(place)));
    const int64_t first = documents_[document] + position - *(after - 1);
    const int64_t count = std::min(*after - position, seq_len_ - std::ssize(result.tokens));
    for (int64_t i = first; i < first + count; ++i) {
      const int64_t token = tokens_[i];
      if (token >= vocab_size_) {
        throw Error(tokens_.path().string() + ": token " + std::to_string(token) + " at position " + std::to_string(i) +
                    " is beyond the vocabulary of " + std::to_string(vocab_size_) + " in data.json");
      }
      result.tokens.push_back(static_cast<int32_t>(token));
    }
    result.cu_seqlens.push_back(static_cast<int32_t>(result.tokens.size()));
    return count;
  }

  JsonFile info_;
  NpyArray tokens_;
  NpyArray documents_;
  int64_t vocab_size_ = 0;
  int64_t seq_len_;
  uint64_t seed_;
  mutable std::mutex mutex_;
  mutable std::vector<std::shared_ptr<const Epoch>> epochs_;  ///< most recently used first
};

}  // namespace

std::unique_ptr<Source> open_token_folder(const std::filesystem::path& folder, int64_t seq_len, uint64_t seed) {
  if (seq_len < 1 || seq_len > kMaxInt32) {
    throw ConfigError("seq_len: 1 to " + std::to_string(kMaxInt32) + " expected, " + std::to_string(seq_len) +
                      " found");
  }
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored)) {
    throw Error(folder.string() + ": no such folder; write it with scripts/prepare_data.py text");
  }
  return std::make_unique<TokenFolder>(folder, seq_len, seed);
}

}  // namespace prulong
