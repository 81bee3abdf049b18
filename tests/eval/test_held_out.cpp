// SPDX-License-Identifier: MIT
#include "eval/held_out.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "common/error.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"

using namespace prulong;
using test::tiny_llama;

namespace {

/// Sequences given by hand.
class Given : public Source {
 public:
  explicit Given(std::vector<Sequence> sequences) : sequences_(std::move(sequences)) {}
  Sequence sequence(int64_t n) const override { return sequences_.at(static_cast<size_t>(n)); }
  int64_t vocab_size() const override { return 37; }
  std::string fingerprint() const override { return "given"; }

 private:
  std::vector<Sequence> sequences_;
};

/// One document, and of its tokens' labels the wanted ones as the model itself guesses them, the others not.
/// The model's guesses depend on the tokens before only, so tokens are chosen from left to right.
std::vector<int32_t> tokens_guessed_where(const Llama& model, const std::vector<uint8_t>& right) {
  std::vector<int32_t> tokens = {3};
  for (size_t t = 1; t < right.size(); ++t) {
    at::Tensor so_far = at::zeros({static_cast<int64_t>(t)}, at::kLong);
    for (size_t i = 0; i < t; ++i) so_far[static_cast<int64_t>(i)].fill_(tokens[i]);
    const auto hidden = model.forward(PackedTokens::single(so_far), {});
    const auto guess = static_cast<int32_t>(model.logits(hidden)[-1].argmax().item<int64_t>());
    tokens.push_back(right[t] ? guess : (guess + 5) % 37);
  }
  return tokens;
}

/// Sum of cross entropies of the labels that `wanted` marks (the tokens it stands at), in double precision.
double loss_of(const Llama& model, const Sequence& sequence, const std::vector<uint8_t>& wanted) {
  double loss = 0;
  for (size_t d = 0; d + 1 < sequence.cu_seqlens.size(); ++d) {
    const int32_t begin = sequence.cu_seqlens[d], end = sequence.cu_seqlens[d + 1];
    at::Tensor tokens = at::zeros({end - begin}, at::kLong);
    for (int32_t t = begin; t < end; ++t) tokens[t - begin].fill_(sequence.tokens[static_cast<size_t>(t)]);
    const auto logs = model.logits(model.forward(PackedTokens::single(tokens), {})).to(at::kDouble).log_softmax(1);
    for (int32_t t = begin + 1; t < end; ++t) {
      const auto at_token = static_cast<size_t>(t);
      if (wanted[at_token]) loss -= logs[t - begin - 1][sequence.tokens[at_token]].item<double>();
    }
  }
  return loss;
}

}  // namespace

TEST_CASE("Answers are counted by token and whole") {
  const Llama model = tiny_llama(at::kFloat);
  //                                     answers:   2 of 2   1 of 2         0 of 1   and one at the end, right
  const std::vector<uint8_t> first_answers = {0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1};
  const std::vector<uint8_t> first_right = {0, 0, 1, 1, 1, 1, 0, 0, 1, 0, 1, 1, 1};
  const std::vector<uint8_t> second_answers = {0, 1, 1, 1, 0};
  const std::vector<uint8_t> second_right = {0, 1, 1, 1, 0};
  const Sequence first{tokens_guessed_where(model, first_right), {0, 13}, first_answers};
  const Sequence second{tokens_guessed_where(model, second_right), {0, 5}, second_answers};
  const Given source({{{1, 2}, {0, 2}, {0, 1}}, first, second});

  const EvalResult found = evaluate(model, source, 1, 2, {}, false, 3);
  CHECK(found.sequences == 2);
  CHECK(found.labels == 12 + 4);
  CHECK(found.answer_tokens == 6 + 3);
  CHECK(found.answers == 4 + 1);
  CHECK(found.answer_accuracy == Approx(7.0 / 9));
  CHECK(found.answer_exact == Approx(3.0 / 5));
  const std::vector<uint8_t> all(13, 1);
  CHECK(found.loss_nats == Approx((loss_of(model, first, all) + loss_of(model, second, all)) / 16).epsilon(1e-5));

  const EvalResult answers = evaluate(model, source, 1, 2, {}, true, 100);
  CHECK(answers.labels == 9);
  CHECK(answers.answer_accuracy == found.answer_accuracy);
  CHECK(answers.answer_exact == found.answer_exact);
  const double loss = loss_of(model, first, first_answers) + loss_of(model, second, second_answers);
  CHECK(answers.loss_nats == Approx(loss / 9).epsilon(1e-5));
}

TEST_CASE("A source without answers has a loss, by document") {
  const Llama model = tiny_llama(at::kFloat);
  const Sequence sequence{{1, 2, 3, 4, 5, 6, 7}, {0, 3, 4, 7}, {}};
  const EvalResult found = evaluate(model, Given({sequence}), 0, 1, {}, false, 2);
  CHECK(found.labels == 4);
  CHECK(found.answers == 0);
  CHECK(found.answer_tokens == 0);
  CHECK(found.loss_nats == Approx(loss_of(model, sequence, std::vector<uint8_t>(7, 1)) / 4).epsilon(1e-5));
}

TEST_CASE("Head mask make the difference they should") {
  const Llama model = tiny_llama(at::kFloat);
  Sequence sequence{{}, {0, 24}, {}};
  for (int32_t t = 0; t < 24; ++t) sequence.tokens.push_back((t * 7 + t * t) % 37);
  const Given source({sequence});
  const auto loss = [&](const HeadMask& mask) { return evaluate(model, source, 0, 1, mask, false, 64).loss_nats; };
  const std::vector<int64_t> shape = {2, 2};
  const double full = loss({});
  CHECK(loss({at::ones(shape, at::kBool), 1, 2}) == Approx(full).epsilon(1e-6));
  CHECK(loss({at::zeros(shape, at::kBool), 0, 24}) == Approx(full).epsilon(1e-6));
  CHECK(std::abs(loss({at::zeros(shape, at::kBool), 1, 2}) - full) > 1e-3);
}
