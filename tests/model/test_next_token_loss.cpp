// SPDX-License-Identifier: MIT
#include <ATen/ops/allclose.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include "common/error.h"
#include "model/llama.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"

namespace prulong {
namespace {

constexpr int64_t kRows = 23, kHidden = 8, kVocab = 50;

at::Tensor leaf(at::IntArrayRef shape, at::ScalarType dtype) {
  return at::randn(shape, at::TensorOptions().dtype(at::kDouble)).to(dtype).set_requires_grad(true);
}

at::Tensor reference_loss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& labels) {
  return at::cross_entropy_loss(hidden.mm(head.t()), labels, {}, /*sum=*/2, -100);
}

TEST_CASE("next_token_loss: value and gradients of the full cross entropy, whatever the chunk") {
  at::manual_seed(5);
  const at::Tensor hidden = leaf({kRows, kHidden}, at::kDouble), head = leaf({kVocab, kHidden}, at::kDouble);
  at::Tensor some = test::random_tokens(kRows, kVocab), all = some.clone();
  some.narrow(0, 3, 9).fill_(-100);
  some.select(0, kRows - 1).fill_(-100);
  for (const at::Tensor& labels : {all, some}) {
    const at::Tensor expected = reference_loss(hidden, head, labels);
    const auto expected_grads = torch::autograd::grad({expected.mul(0.3)}, {hidden, head});
    for (const int64_t chunk : {1, 4, 13, 23, 1000}) {
      const at::Tensor found = next_token_loss(hidden, head, labels, chunk);
      CHECK(found.dim() == 0);
      CHECK(found.item<double>() == Approx(expected.item<double>()).epsilon(1e-12));
      const auto found_grads = torch::autograd::grad({found.mul(0.3)}, {hidden, head});
      CHECK(at::allclose(found_grads[0], expected_grads[0], 1e-11, 1e-12));
      CHECK(at::allclose(found_grads[1], expected_grads[1], 1e-11, 1e-12));
    }
    // A frozen head gives the same gradient of the hidden states, and without gradients the loss is the same.
    const at::Tensor found = next_token_loss(hidden, head.detach(), labels, 4);
    CHECK(at::equal(next_token_loss(hidden, head.detach(), labels, 4, labels.ne(-100).nonzero().flatten()), found));
    CHECK(at::allclose(torch::autograd::grad({found.mul(0.3)}, {hidden})[0], expected_grads[0], 1e-11, 1e-12));
    const c10::NoGradGuard no_grad;
    const at::Tensor plain = next_token_loss(hidden, head, labels, 4);
    CHECK_FALSE(plain.requires_grad());
    CHECK(at::equal(plain, found.detach()));
  }
}

TEST_CASE("next_token_loss: narrow dtypes keep float32 statistics") {
  at::manual_seed(6);
  const at::Tensor labels = test::random_tokens(kRows, kVocab);
  const at::Tensor hidden = leaf({kRows, kHidden}, at::kBFloat16), head = leaf({kVocab, kHidden}, at::kBFloat16);
  const at::Tensor wide_hidden = hidden.detach().to(at::kDouble).set_requires_grad(true);
  const at::Tensor expected = reference_loss(wide_hidden, head.detach().to(at::kDouble), labels);
  const at::Tensor found = next_token_loss(hidden, head, labels, 5);
  CHECK(found.scalar_type() == at::kFloat);
  // 0.01 a row: the logits themselves may be rounded to bfloat16, in steps of up to 2^-5 at their size.
  CHECK(found.item<double>() == Approx(expected.item<double>()).margin(0.01 * kRows));
  const at::Tensor found_grad = torch::autograd::grad({found}, {hidden})[0];
  CHECK(found_grad.scalar_type() == at::kBFloat16);
  CHECK(at::allclose(found_grad.to(at::kDouble), torch::autograd::grad({expected}, {wide_hidden})[0], 3e-2, 3e-2));
}

TEST_CASE("next_token_loss: very unlikely labels give their exact loss") {
  at::Tensor head = at::full({3, 1}, 0.0F);
  head[0].fill_(200.0F);
  const at::Tensor labels = at::full({1}, 2, at::TensorOptions().dtype(at::kLong));
  CHECK(next_token_loss(at::full({1, 1}, 1.0F), head, labels, 8).item<double>() == Approx(200.0));
}

TEST_CASE("next_token_loss: no labels at all") {
  const at::Tensor hidden = leaf({kRows, kHidden}, at::kFloat), head = leaf({kVocab, kHidden}, at::kFloat);
  const at::Tensor labels = at::full({kRows}, -100, at::TensorOptions().dtype(at::kLong));
  const at::Tensor loss = next_token_loss(hidden, head, labels, 4);
  CHECK(loss.item<double>() == 0.0);
  CHECK(at::equal(torch::autograd::grad({loss}, {hidden})[0], at::zeros_like(hidden)));
}

TEST_CASE("next_token_loss: bad input is refused") {
  const at::Tensor hidden = at::randn({kRows, kHidden}), head = at::randn({kVocab, kHidden});
  at::Tensor labels = test::random_tokens(kRows, kVocab);
  const auto refused = [](const at::Tensor& h, const at::Tensor& w, const at::Tensor& l, int64_t chunk,
                          const char* message) {
    CHECK_THROWS_WITH(next_token_loss(h, w, l, chunk), ContainsSubstring(message));
    CHECK_THROWS_AS(next_token_loss(h, w, l, chunk), Error);
  };
  refused(hidden, head.narrow(1, 0, 7), labels, 4, "next_token_loss: expected hidden [T, hidden_size]");
  refused(hidden.to(at::kHalf), head, labels, 4, "found [23, 8] Half and [50, 8] Float");
  refused(hidden, head, labels.narrow(0, 0, 5), 4, "expected labels [23] Long, found [5] Long");
  refused(hidden, head, labels.to(at::kInt), 4, "found [23] Int");
  refused(hidden, head, labels, 0, "chunk must be at least 1, found 0");
  labels.select(0, 17).fill_(kVocab);
  refused(hidden, head, labels, 4, "label 50 at position 17");
  labels.select(0, 11).fill_(-1);
  refused(hidden, head, labels, 4, "label -1 at position 11");
}

TEST_CASE("greedy_tokens: the argmax of the logits") {
  const at::Tensor hidden = leaf({kRows, kHidden}, at::kFloat), head = at::randn({kVocab, kHidden});
  const at::Tensor expected = hidden.mm(head.t()).argmax(1);
  for (const int64_t chunk : {1, 7, 100}) CHECK(at::equal(greedy_tokens(hidden, head, chunk), expected));
  CHECK_THROWS_WITH(greedy_tokens(hidden, head, 0), ContainsSubstring("greedy_tokens: chunk"));
}

}  // namespace
}  // namespace prulong
