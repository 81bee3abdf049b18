// SPDX-License-Identifier: MIT
#include "trainer/data/packing.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <utility>
#include <vector>

#include "common/error.h"
#include "trainer/data/random.h"

namespace prulong {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxPosition = std::numeric_limits<int64_t>::max() / 2;  // ends of blocks beyond it still fit
constexpr size_t kCached = 4;  // a reader is in one or two; readers ahead and evaluation may be in others

/// The order of one epoch's blocks.
struct Epoch {
  int64_t index;
  Permutation order;            ///< place in the epoch -> block
  std::vector<int64_t> starts;  ///< [places known so far + 1], in tokens of the epoch
};

/// The turn of one block in one epoch.
struct Turn {
  int64_t begin, end;  ///< in tokens of the stream
  std::shared_ptr<const Block> block;
  Permutation order;            ///< place in the turn -> sample
  std::vector<int64_t> starts;  ///< [samples + 1], in tokens from begin
};

/// Moves an entry to the front: the least recently used one stays last.
template <typename Entry, typename Matches>
bool bring_forward(std::vector<Entry>& entries, const Matches& matches) {
  const auto hit = std::find_if(entries.begin(), entries.end(), matches);
  if (hit == entries.end()) return false;
  std::rotate(entries.begin(), hit, hit + 1);
  return true;
}

template <typename Entry>
Entry& add_in_front(std::vector<Entry>& entries, Entry entry) {
  if (entries.size() == kCached) entries.pop_back();
  return *entries.insert(entries.begin(), std::move(entry));
}

class Packer final : public Source {
 public:
  Packer(std::unique_ptr<const Corpus> corpus, int64_t seq_len, uint64_t seed)
      : corpus_(std::move(corpus)),
        seq_len_(seq_len),
        seed_(seed),
        block_tokens_(static_cast<size_t>(corpus_->blocks()), kUnknown) {}

  Sequence sequence(int64_t n) const override {
    if (n < 0 || n >= kMaxPosition / seq_len_) throw Error("sequence " + std::to_string(n) + " is out of range");
    Sequence result;
    result.tokens.reserve(static_cast<size_t>(seq_len_));
    result.cu_seqlens.push_back(0);
    int64_t position = n * seq_len_;
    while (std::ssize(result.tokens) < seq_len_) {
      const std::shared_ptr<const Turn> turn = find_turn(position);
      position += append(*turn, position - turn->begin, result);
    }
    return result;
  }

  int64_t vocab_size() const override { return corpus_->vocab_size(); }

  std::string fingerprint() const override {
    return corpus_->fingerprint() + ":seq_len=" + std::to_string(seq_len_) + ":seed=" + std::to_string(seed_);
  }

 private:
  static constexpr int64_t kUnknown = -1;

  /// Appends the sample that lies at `offset` of the turn, from there to its end or to the sequence's.
  /// @return how many tokens that were, > 0.
  int64_t append(const Turn& turn, int64_t offset, Sequence& result) const {
    const auto after = std::upper_bound(turn.starts.begin(), turn.starts.end(), offset);
    const auto place = static_cast<uint64_t>(after - turn.starts.begin() - 1);
    const int64_t count = std::min(*after - offset, seq_len_ - std::ssize(result.tokens));
    turn.block->append(static_cast<int64_t>(turn.order(place)), offset - *(after - 1), count, result);
    return count;
  }

  std::shared_ptr<const Turn> find_turn(int64_t position) const {
    const std::lock_guard lock(mutex_);
    if (bring_forward(turns_, [&](const auto& t) { return t->begin <= position && position < t->end; })) {
      return turns_.front();
    }
    int64_t index = 0;
    Epoch* epoch = nullptr;
    if (epoch_tokens_ == kUnknown) epoch = reach(0, position);
    if (epoch == nullptr) {  // not in the first epoch
      index = position / epoch_tokens_;
      epoch = reach(index, position % epoch_tokens_);
    }
    const int64_t offset = index == 0 ? position : position % epoch_tokens_;
    const auto after = std::upper_bound(epoch->starts.begin(), epoch->starts.end(), offset);
    const auto block = static_cast<int64_t>(epoch->order(static_cast<uint64_t>(after - epoch->starts.begin() - 1)));
    const int64_t begin = position - offset + *(after - 1), end = position - offset + *after;
    return add_in_front(turns_, take_turn(index, block, begin, end));
  }

  /// The epoch, with the starts of its blocks known up to beyond `offset`; null if it ends before that.
  Epoch* reach(int64_t index, int64_t offset) const {
    if (!bring_forward(epochs_, [&](const Epoch& e) { return e.index == index; })) {
      Random key({seed_, static_cast<uint64_t>(index)});
      key.next();  // the samples' key
      add_in_front(epochs_, Epoch{index, Permutation(static_cast<uint64_t>(corpus_->blocks()), key.next()), {0}});
    }
    Epoch& epoch = epochs_.front();
    while (epoch.starts.back() <= offset) {
      const int64_t place = std::ssize(epoch.starts) - 1;
      if (place == corpus_->blocks()) {
        epoch_tokens_ = epoch.starts.back();
        if (epoch_tokens_ == 0) throw Error(corpus_->name() + ": tokens expected, none found; give data that has some");
        return nullptr;
      }
      epoch.starts.push_back(epoch.starts.back() + tokens_of(static_cast<int64_t>(epoch.order(place))));
    }
    return &epoch;
  }

  int64_t tokens_of(int64_t block) const {
    int64_t& tokens = block_tokens_[static_cast<size_t>(block)];
    if (tokens == kUnknown) {
      const auto opened = open(block);
      int64_t sum = 0;
      for (int64_t sample = 0; sample < opened->samples(); ++sample) sum += opened->tokens(sample);
      tokens = sum;
    }
    return tokens;
  }

  std::shared_ptr<const Turn> take_turn(int64_t epoch, int64_t block, int64_t begin, int64_t end) const {
    auto opened = open(block);
    const int64_t samples = opened->samples();
    const uint64_t key = Random({seed_, static_cast<uint64_t>(epoch)}).next() ^ mix64(static_cast<uint64_t>(block));
    Turn turn{begin, end, std::move(opened), Permutation(static_cast<uint64_t>(samples), key), {}};
    turn.starts.reserve(static_cast<size_t>(samples) + 1);
    turn.starts.push_back(0);
    for (int64_t place = 0; place < samples; ++place) {
      const auto sample = static_cast<int64_t>(turn.order(static_cast<uint64_t>(place)));
      turn.starts.push_back(turn.starts.back() + turn.block->tokens(sample));
    }
    return std::make_shared<const Turn>(std::move(turn));
  }

  /// Opens a block, or takes the one opened last: a block is counted just before its turn.
  std::shared_ptr<const Block> open(int64_t block) const {
    if (last_opened_ == nullptr || last_index_ != block) {
      last_opened_.reset();  // frees its memory first
      last_opened_ = corpus_->open_block(block);
      last_index_ = block;
    }
    return last_opened_;
  }

  std::unique_ptr<const Corpus> corpus_;
  int64_t seq_len_;
  uint64_t seed_;
  mutable std::mutex mutex_;  ///< of everything below
  mutable std::vector<int64_t> block_tokens_;
  mutable int64_t epoch_tokens_ = kUnknown;
  mutable std::vector<Epoch> epochs_;                       ///< most recently used first
  mutable std::vector<std::shared_ptr<const Turn>> turns_;  ///< likewise
  mutable std::shared_ptr<const Block> last_opened_;
  mutable int64_t last_index_ = 0;
};

}  // namespace

void check_seq_len(int64_t seq_len) {
  if (seq_len < 1 || seq_len > kMaxInt32) {
    throw ConfigError("seq_len: 1 to " + std::to_string(kMaxInt32) + " expected, " + std::to_string(seq_len) +
                      " found");
  }
}

std::unique_ptr<Source> pack_corpus(std::unique_ptr<const Corpus> corpus, int64_t seq_len, uint64_t seed) {
  check_seq_len(seq_len);
  return std::make_unique<Packer>(std::move(corpus), seq_len, seed);
}

}  // namespace prulong
