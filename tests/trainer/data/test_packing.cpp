// SPDX-License-Identifier: MIT
// Epochs, order and resumption, on corpora in memory; and of mixtures of them.
#include "trainer/data/packing.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <future>
#include <map>
#include <numeric>
#include <set>

#include "common/error.h"
#include "tests/support/catch.h"
#include "trainer/data/mixture.h"
#include "trainer/data/random.h"

namespace prulong {
namespace {

/// Blocks of samples whose tokens are the consecutive numbers from a first one on, through the whole corpus.
class Counting final : public Corpus {
 public:
  /// @param samples  [block][sample] their lengths.
  Counting(std::vector<std::vector<int64_t>> samples, int32_t first) : samples_(std::move(samples)) {
    for (const auto& block : samples_) {
      firsts_.push_back(first);
      first += static_cast<int32_t>(std::accumulate(block.begin(), block.end(), int64_t{0}));
    }
  }

  int64_t blocks() const override { return std::ssize(samples_); }
  std::shared_ptr<const Block> open_block(int64_t index) const override {
    ++opened;
    return std::make_shared<const Samples>(samples_[static_cast<size_t>(index)], firsts_[static_cast<size_t>(index)]);
  }
  std::string name() const override { return "counting"; }
  int64_t vocab_size() const override { return 1 << 30; }
  std::string fingerprint() const override { return "counting"; }

  mutable std::atomic<int> opened = 0;

 private:
  class Samples final : public Block {
   public:
    Samples(std::vector<int64_t> lengths, int32_t first) : lengths_(std::move(lengths)), first_(first) {}
    int64_t samples() const override { return std::ssize(lengths_); }
    int64_t tokens(int64_t sample) const override { return lengths_[static_cast<size_t>(sample)]; }
    void append(int64_t sample, int64_t first, int64_t count, Sequence& sequence) const override {
      REQUIRE((first >= 0 && count > 0 && first + count <= tokens(sample)));
      const int64_t before = std::accumulate(lengths_.begin(), lengths_.begin() + sample, int64_t{0});
      for (int64_t i = 0; i < count; ++i) {
        sequence.tokens.push_back(first_ + static_cast<int32_t>(before + first + i));
      }
      sequence.cu_seqlens.push_back(static_cast<int32_t>(sequence.tokens.size()));
    }

   private:
    std::vector<int64_t> lengths_;
    int32_t first_;
  };

  std::vector<std::vector<int64_t>> samples_;
  std::vector<int32_t> firsts_;
};

/// Random blocks, empty ones and empty samples among them.
std::vector<std::vector<int64_t>> random_samples(Random& random) {
  std::vector<std::vector<int64_t>> samples(1 + random.below(6));
  for (auto& block : samples) {
    block.resize(random.below(9));
    for (int64_t& length : block) length = static_cast<int64_t>(random.below(4) == 0 ? 0 : random.below(30));
  }
  samples.back().push_back(7);
  return samples;
}

int64_t count_tokens(const std::vector<std::vector<int64_t>>& samples) {
  int64_t total = 0;
  for (const auto& block : samples) total = std::accumulate(block.begin(), block.end(), total);
  return total;
}

std::vector<int32_t> stream(const Source& source, int64_t sequences) {
  std::vector<int32_t> tokens;
  for (int64_t n = 0; n < sequences; ++n) {
    const Sequence sequence = source.sequence(n);
    tokens.insert(tokens.end(), sequence.tokens.begin(), sequence.tokens.end());
  }
  return tokens;
}

TEST_CASE("each epoch of a corpus of many blocks holds every token once, block by block, in another order") {
  Random random({1});
  for (int trial = 0; trial < 200; ++trial) {
    const auto samples = random_samples(random);
    const int64_t total = count_tokens(samples), seq_len = 1 + static_cast<int64_t>(random.below(40));
    const auto source = pack_corpus(std::make_unique<Counting>(samples, 0), seq_len, random.next());
    const auto tokens = stream(*source, 3 * total / seq_len + 1);
    std::vector<int32_t> block_of;
    for (size_t b = 0; b < samples.size(); ++b) {
      block_of.insert(block_of.end(),
                      static_cast<size_t>(std::accumulate(samples[b].begin(), samples[b].end(), int64_t{0})),
                      static_cast<int32_t>(b));
    }
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<int32_t> found(tokens.begin() + epoch * total, tokens.begin() + (epoch + 1) * total);
      std::set<int32_t> blocks;
      for (size_t i = 0; i < found.size(); ++i) {
        const int32_t block = block_of[static_cast<size_t>(found[i])];
        if (i == 0 || block != block_of[static_cast<size_t>(found[i - 1])]) REQUIRE(blocks.insert(block).second);
      }
      std::sort(found.begin(), found.end());
      bool each_once = true;
      for (int64_t i = 0; i < total; ++i) each_once = each_once && found[static_cast<size_t>(i)] == i;
      REQUIRE(each_once);
    }
  }
}

TEST_CASE("blocks and the samples of each come in every order, another one in each epoch and block") {
  const std::vector<std::vector<int64_t>> samples(3, {1, 1, 1});
  std::map<std::array<int32_t, 3>, int> block_orders, sample_orders;
  int same_in_two_blocks = 0;
  const auto source = pack_corpus(std::make_unique<Counting>(samples, 0), 9, 5);
  for (int64_t epoch = 0; epoch < 600; ++epoch) {
    const auto tokens = source->sequence(epoch).tokens;
    ++block_orders[{tokens[0] / 3, tokens[3] / 3, tokens[6] / 3}];
    ++sample_orders[{tokens[0] % 3, tokens[1] % 3, tokens[2] % 3}];
    same_in_two_blocks += tokens[0] % 3 == tokens[3] % 3 && tokens[1] % 3 == tokens[4] % 3;
  }
  CHECK(block_orders.size() == 6);
  CHECK(sample_orders.size() == 6);
  for (const auto& [order, count] : block_orders) CHECK(count == Approx(100).margin(50));
  for (const auto& [order, count] : sample_orders) CHECK(count == Approx(100).margin(50));
  CHECK(same_in_two_blocks == Approx(100).margin(50));
}

/// A mixture of three corpora whose tokens tell them apart.
std::unique_ptr<Source> make_mixture(uint64_t seed) {
  Random random({seed});
  std::vector<WeightedSource> sources;
  for (const double weight : {0.5, 0.3, 0.2}) {
    auto corpus = std::make_unique<Counting>(random_samples(random), static_cast<int32_t>(sources.size()) * 1000000);
    sources.push_back({pack_corpus(std::move(corpus), 8, seed), weight});
  }
  return mix_sources(std::move(sources));
}

TEST_CASE("reading on from any integer gives what an uninterrupted reader gets") {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto whole = make_mixture(seed);
    std::vector<Sequence> expected;
    for (int64_t n = 0; n < 300; ++n) expected.push_back(whole->sequence(n));
    for (const int64_t start : {1, 7, 99, 250, 299}) {
      const auto resumed = make_mixture(seed);
      bool same = true;
      for (int64_t n = start; n < 300; ++n) {
        const Sequence sequence = resumed->sequence(n);
        same = same && sequence.tokens == expected[n].tokens && sequence.cu_seqlens == expected[n].cu_seqlens;
      }
      CHECK(same);
    }
  }
}

TEST_CASE("any number of readers, each with its own source or all with one, get one reader's stream between them") {
  const auto whole = make_mixture(3);
  std::vector<Sequence> expected;
  for (int64_t n = 0; n < 240; ++n) expected.push_back(whole->sequence(n));
  for (const int64_t readers : {1, 2, 3, 8}) {
    for (const bool shared : {false, true}) {
      const std::shared_ptr<Source> common = make_mixture(3);
      std::vector<std::future<int64_t>> results;
      for (int64_t rank = 0; rank < readers; ++rank) {
        results.push_back(std::async(std::launch::async, [&, rank] {
          const std::shared_ptr<Source> source = shared ? common : std::shared_ptr<Source>(make_mixture(3));
          int64_t wrong = 0;
          for (int64_t n = rank; n < 240; n += readers) {
            const Sequence sequence = source->sequence(n);
            wrong += sequence.tokens != expected[n].tokens || sequence.cu_seqlens != expected[n].cu_seqlens;
          }
          return wrong;
        }));
      }
      for (auto& result : results) CHECK(result.get() == 0);
    }
  }
}

TEST_CASE("a mixture goes through each of its sources' epochs at the source's own pace") {
  Random random({9});
  const auto small = random_samples(random), large = random_samples(random);
  const int64_t small_total = count_tokens(small), large_total = count_tokens(large);
  std::vector<WeightedSource> sources;
  sources.push_back({pack_corpus(std::make_unique<Counting>(small, 0), 1, 1), 3});
  sources.push_back({pack_corpus(std::make_unique<Counting>(large, 1000000), 1, 1), 1});
  const auto mixture = mix_sources(std::move(sources));
  std::map<int32_t, int64_t> seen;
  const int64_t draws = 4 * small_total * large_total;  // whole epochs of both: 3 large_total and small_total
  for (int64_t n = 0; n < draws; ++n) ++seen[mixture->sequence(n).tokens[0]];
  CHECK(std::ssize(seen) == small_total + large_total);
  for (const auto& [token, count] : seen) {
    const int64_t expected = token < 1000000 ? 3 * large_total : small_total;
    CHECK((count >= expected - 1 && count <= expected + 1));  // shares are exact within one draw
  }
}

TEST_CASE("blocks are opened when their turn comes, once each") {
  auto corpus = std::make_unique<Counting>(std::vector<std::vector<int64_t>>(1000, {8, 8}), 0);
  const Counting& counting = *corpus;
  const auto source = pack_corpus(std::move(corpus), 8, 1);
  CHECK(counting.opened == 0);
  source->sequence(0);
  CHECK(counting.opened == 1);
  for (int64_t n = 0; n < 20; ++n) source->sequence(n);
  CHECK(counting.opened == 10);
  source->sequence(200);  // what lies before is counted
  CHECK(counting.opened == 101);
  source->sequence(201);
  CHECK(counting.opened == 101);
}

TEST_CASE("a corpus without tokens is refused, as are sequences and lengths out of range") {
  const auto pack = [](std::vector<std::vector<int64_t>> samples, int64_t seq_len) {
    return pack_corpus(std::make_unique<Counting>(std::move(samples), 0), seq_len, 1);
  };
  CHECK_THROWS_WITH(pack({{}, {0, 0}}, 4)->sequence(0), ContainsSubstring("counting: tokens expected, none found"));
  CHECK_THROWS_WITH(pack({{5}}, 4)->sequence(-1), ContainsSubstring("out of range"));
  const int64_t last = std::numeric_limits<int64_t>::max() / 2 / 4 - 1;
  CHECK_THROWS_WITH(pack({{5}}, 4)->sequence(last + 1), ContainsSubstring("out of range"));
  CHECK(pack({{5}}, 4)->sequence(last).tokens.size() == 4);
  CHECK_THROWS_AS(pack({{5}}, 0), ConfigError);
}

}  // namespace
}  // namespace prulong
