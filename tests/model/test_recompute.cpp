// SPDX-License-Identifier: MIT
#include "model/recompute.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"

namespace prulong {
namespace {

TEST_CASE("recompute: the function runs again in the backward pass, and only then") {
  const at::Tensor x = at::randn({4, 3}).set_requires_grad(true), w = at::randn({3, 3}).set_requires_grad(true);
  const at::Tensor frozen = at::randn({3});
  int calls = 0;
  const TensorFunction function = [&calls](const std::vector<at::Tensor>& in, RecomputeState& state) {
    CHECK(state.again == (++calls == 2));
    return in[0].mm(in[1]).add(in[2]).tanh();
  };
  const at::Tensor found = recomputed(function, {x, w, frozen});
  CHECK(calls == 1);
  const at::Tensor expected = x.mm(w).add(frozen).tanh();
  CHECK(at::equal(found, expected));
  const at::Tensor weight = at::randn({4, 3});
  const auto found_grads = torch::autograd::grad({found}, {x, w}, {weight});
  const auto expected_grads = torch::autograd::grad({expected}, {x, w}, {weight});
  CHECK(calls == 2);
  CHECK(at::equal(found_grads[0], expected_grads[0]));
  CHECK(at::equal(found_grads[1], expected_grads[1]));

  const c10::NoGradGuard no_grad;
  CHECK_FALSE(recomputed(function, {x, w, frozen}).requires_grad());
}

TEST_CASE("recompute: an input that the function ignores has no gradient") {
  const at::Tensor x = at::randn({2}).set_requires_grad(true), unused = at::randn({2}).set_requires_grad(true);
  const auto function = [](const std::vector<at::Tensor>& in, RecomputeState&) { return in[0].sin(); };
  const at::Tensor out = recomputed(function, {x, unused});
  out.sum().backward();
  CHECK(at::equal(x.grad(), x.detach().cos()));
  CHECK_FALSE(unused.grad().defined());
}

TEST_CASE("recompute: what the first run keeps, the second finds") {
  const at::Tensor x = at::randn({3}).set_requires_grad(true);
  const TensorFunction function = [](const std::vector<at::Tensor>& in, RecomputeState& state) {
    if (!state.again) {
      state.kept = {in[0].exp(), at::Tensor()};
      return in[0].mul(state.kept[0]);
    }
    REQUIRE(state.kept.size() == 2);
    CHECK_FALSE(state.kept[1].defined());
    return in[0].mul(state.kept[0]);  // a constant now
  };
  const at::Tensor out = recomputed(function, {x});
  CHECK(at::equal(out, x.mul(x.exp())));
  out.sum().backward();
  CHECK(at::equal(x.grad(), x.detach().exp()));
}

}  // namespace
}  // namespace prulong
