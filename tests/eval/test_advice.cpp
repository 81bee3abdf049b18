// SPDX-License-Identifier: MIT
#include "eval/advice.h"

#include "tests/support/catch.h"

namespace prulong {
namespace {

/// Sequence n is cut into documents of n + 1 tokens.
class Growing final : public Source {
 public:
  explicit Growing(int64_t seq_len) : seq_len_(seq_len) {}
  Sequence sequence(int64_t n) const override {
    Sequence result{std::vector<int32_t>(static_cast<size_t>(seq_len_)), {0}, {}};
    while (result.cu_seqlens.back() < seq_len_) {
      result.cu_seqlens.push_back(static_cast<int32_t>(std::min(seq_len_, result.cu_seqlens.back() + n + 1)));
    }
    return result;
  }
  int64_t vocab_size() const override { return 1; }
  std::string fingerprint() const override { return ""; }

 private:
  int64_t seq_len_;
};

TEST_CASE("advice: the first documents of a stream") {
  const Growing source(1000);
  CHECK(first_documents(source, 1000, 5).sequences == 5);
  CHECK(first_documents(source, 1000, 5).longest == 5);
  CHECK(first_documents(source, 1000, 1'000'000).longest == 64);
  CHECK(first_documents(Growing(3'000'000), 3'000'000, 9).sequences == 1);  // not more than a million tokens, but one
}

TEST_CASE("advice: what lengths cannot mean is said, with numbers") {
  ModelConfig model;
  model.max_positions = 32;
  CHECK(length_advice({8, 32}, model, 4, 16).empty());
  const auto beyond = length_advice({8, 33}, model, 4, 16);
  REQUIRE(beyond.size() == 1);
  CHECK_THAT(beyond[0], ContainsSubstring("documents of 33 tokens go beyond the 32 positions"));
  const auto brief = length_advice({8, 20}, model, 4, 16);
  REQUIRE(brief.size() == 1);
  CHECK_THAT(brief[0],
             ContainsSubstring("no document of the first 8 sequences is longer than sink + window = 20 tokens "
                               "(the longest has 20)"));
  CHECK(length_advice({8, 21}, model, 4, 16).empty());
  CHECK(length_advice({8, 40}, model, 30, 16).size() == 2);
  model.rope.kind = RopeConfig::Kind::kLinear;
  CHECK_THAT(position_advice("sequences", 40, model),
             ContainsSubstring("sequences of 40") && ContainsSubstring("linear"));
}

}  // namespace
}  // namespace prulong
