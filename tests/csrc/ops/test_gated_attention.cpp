// SPDX-License-Identifier: MIT
// The operators as the C++ trainer calls them: no Python in the process. The wider comparison is
// tests/python/test_ops.py.
#include "csrc/ops/gated_attention.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include <cmath>
#include <limits>
#include <vector>

#include "csrc/ops/masked_attention.h"
#include "tests/support/catch.h"

namespace {

const at::TensorOptions kDouble = at::TensorOptions().dtype(at::kDouble);

at::Tensor bounds_of(const std::vector<int32_t>& bounds) {
  return at::tensor(bounds, at::TensorOptions().dtype(at::kInt));
}

// One branch of one document by definition.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& hidden) {
  const int64_t group = q.size(1) / k.size(1);
  const at::Tensor keys = k.repeat_interleave(group, 1), values = v.repeat_interleave(group, 1);
  const at::Tensor scores = at::einsum("qhd,khd->hqk", {q, keys}).div(std::sqrt(static_cast<double>(q.size(2))));
  return at::einsum("hqk,khd->qhd",
                    {scores.masked_fill(hidden, -std::numeric_limits<double>::infinity()).softmax(-1), values});
}

at::Tensor reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
                     const std::vector<int32_t>& bounds, int64_t sink, int64_t window) {
  const at::Tensor z = gate.repeat_interleave(q.size(1) / k.size(1)).view({1, -1, 1});
  std::vector<at::Tensor> rows;
  for (size_t d = 0; d + 1 < bounds.size(); ++d) {
    const int64_t n = bounds[d + 1] - bounds[d];
    const auto part = [&](const at::Tensor& t) { return t.narrow(0, bounds[d], n); };
    const at::Tensor i = at::arange(n, at::TensorOptions().device(q.device())).unsqueeze(1);
    const at::Tensor j = i.t();
    const at::Tensor future = j.gt(i);
    const at::Tensor far = j.ge(sink).logical_and(i.sub(j).ge(window));
    const at::Tensor global = attend(part(q), part(k), part(v), future);
    const at::Tensor local = attend(part(q), part(k), part(v), future.logical_or(far));
    rows.push_back(local.add(z.mul(global.sub(local))));
  }
  return at::cat(rows);
}

double difference(const at::Tensor& a, const at::Tensor& b) { return a.sub(b).abs().max().item<double>(); }

}  // namespace

TEST_CASE("gated attention and its gradients match the definition from C++") {
  const std::vector<int32_t> bounds = {0, 70, 71, 231};
  for (const double z : {0.0, 1.0, 0.3, 1e-6}) {
    std::vector<at::Tensor> inputs = {at::randn({231, 6, 16}, kDouble), at::randn({231, 2, 16}, kDouble),
                                      at::randn({231, 2, 16}, kDouble), at::tensor({z, 0.6}, kDouble)};
    for (at::Tensor& input : inputs) input.requires_grad_();
    const at::Tensor out =
        prulong::gated_attention({inputs[0], inputs[1], inputs[2], inputs[3], bounds_of(bounds), 160, 3, 20, 0.25});
    const at::Tensor expected = reference(inputs[0], inputs[1], inputs[2], inputs[3], bounds, 3, 20);
    CHECK(difference(out, expected) < 1e-12);
    const at::Tensor dout = at::randn({231, 6, 16}, kDouble);
    const auto ours = torch::autograd::grad({out}, inputs, {dout});
    const auto theirs = torch::autograd::grad({expected}, inputs, {dout});
    for (size_t i = 0; i < 3; ++i) CHECK(difference(ours[i], theirs[i]) < 1e-11);
    CHECK(ours[3][1].item<double>() == Approx(theirs[3][1].item<double>()));
    if (z == 0.0 || z == 1.0) {
      CHECK(ours[3][0].item<double>() == 0);
    } else {
      CHECK(ours[3][0].item<double>() == Approx(theirs[3][0].item<double>()));
    }
  }
}

TEST_CASE("float32 takes the fast row kernels and stays close to double") {
  const std::vector<int32_t> bounds = {0, 300};
  const at::Tensor q = at::randn({300, 3, 64}), k = at::randn({300, 1, 64}), v = at::randn({300, 1, 64});
  const at::Tensor gate = at::tensor({0.4F});
  const at::Tensor out = prulong::gated_attention({q, k, v, gate, bounds_of(bounds), 300, 16, 32, 0.125});
  const at::Tensor expected =
      reference(q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble), gate.to(at::kDouble), bounds, 16, 32);
  CHECK(difference(out.to(at::kDouble), expected) < 5e-6);
}

TEST_CASE("masked attention agrees with gated attention at 0 and 1") {
  const at::NoGradGuard guard;
  const at::Tensor cu = bounds_of({0, 129});
  const at::Tensor q = at::randn({129, 4, 8}), k = at::randn({129, 2, 8}), v = at::randn({129, 2, 8});
  const at::Tensor is_global = at::tensor({1, 0}).to(at::kBool);
  const at::Tensor gated = prulong::gated_attention({q, k, v, at::tensor({1.0F, 0.0F}), cu, 129, 2, 10, 0.3});
  const auto [out, lse] = prulong::masked_attention({q, k, v, is_global, cu, cu, 129, 129, 2, 10, 0.3});
  CHECK(difference(out, gated) == 0);
  CHECK(lse.sizes() == at::IntArrayRef({4, 129}));
  // The last 5 queries alone.
  const auto [tail, tail_lse] =
      prulong::masked_attention({q.narrow(0, 124, 5), k, v, is_global, bounds_of({0, 5}), cu, 5, 129, 2, 10, 0.3});
  CHECK(difference(tail, out.narrow(0, 124, 5)) < 1e-6);
  CHECK(difference(tail_lse, lse.narrow(1, 124, 5)) < 1e-6);
}

TEST_CASE("bad arguments are refused by name") {
  const at::Tensor q = at::randn({10, 4, 8}), k = at::randn({10, 2, 8}), gate = at::tensor({0.5F, 0.5F});
  CHECK_THROWS_WITH(prulong::gated_attention({q, k, k, gate, bounds_of({0, 11}), 11, 1, 2, 1.0}),
                    ContainsSubstring("gated_attention: cu_seqlens must end at the number of tokens, 10, got 11"));
  CHECK_THROWS_WITH(prulong::gated_attention({q, k, k, gate, bounds_of({0, 10}), 10, 1, 0, 1.0}),
                    ContainsSubstring("window must be >= 1"));
  CHECK_THROWS_WITH(prulong::gated_attention({q, k, k, at::tensor({0.5F, 2.0F}), bounds_of({0, 10}), 10, 1, 2, 1.0}),
                    ContainsSubstring("gate must lie in [0, 1], got 2 for key head 1"));
  CHECK_THROWS_WITH(
      prulong::masked_attention({q, k, k, gate, bounds_of({0, 10}), bounds_of({0, 10}), 10, 10, 1, 2, 1.0}),
      ContainsSubstring("masked_attention: is_global must be Bool"));
}

TEST_CASE("on a GPU both branches and their gradients stay close to double", "[cuda]") {
  if (!at::globalContext().hasCUDA()) return;
  const std::vector<std::vector<int32_t>> packs = {{0, 300}, {0, 1, 1, 90, 310}, {0, 2100}};
  const int64_t dim = GENERATE(64, 96);  // the second is nothing for the Hopper kernels
  for (const auto& bounds : packs) {
    for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
      const int64_t tokens = bounds.back();
      std::vector<at::Tensor> inputs = {at::randn({tokens, 8, dim}, kDouble), at::randn({tokens, 4, dim}, kDouble),
                                        at::randn({tokens, 4, dim}, kDouble),
                                        at::tensor({0.4, 0.0, 1.0, 0.9}, kDouble)};
      const at::Tensor dout = at::randn({tokens, 8, dim}, kDouble);
      std::vector<at::Tensor> on_gpu, exact_inputs;
      for (size_t i = 0; i < inputs.size(); ++i) {
        const at::ScalarType type = i == 3 ? at::kFloat : dtype;
        on_gpu.push_back(inputs[i].to(at::kCUDA, type).set_requires_grad(true));
        exact_inputs.push_back(on_gpu.back().detach().to(at::kCUDA, at::kDouble).set_requires_grad(true));
      }
      const at::Tensor cu = bounds_of(bounds).to(at::kCUDA);
      const at::Tensor out = prulong::gated_attention(
          {on_gpu[0], on_gpu[1], on_gpu[2], on_gpu[3], cu, tokens, 20, 50, 1 / std::sqrt(static_cast<double>(dim))});
      const at::Tensor exact =
          reference(exact_inputs[0], exact_inputs[1], exact_inputs[2], exact_inputs[3], bounds, 20, 50);
      const at::Tensor gpu_dout = dout.to(at::kCUDA, dtype);
      const auto ours = torch::autograd::grad({out}, on_gpu, {gpu_dout});
      const auto theirs = torch::autograd::grad({exact}, exact_inputs, {gpu_dout.to(at::kDouble)});
      const double allowed = dtype == at::kBFloat16 ? 1e-2 : dtype == at::kHalf ? 2e-3 : 1e-4;  // of the norm
      const auto error = [](const at::Tensor& a, const at::Tensor& b) {
        return a.to(at::kDouble).sub(b).norm().div(b.norm()).item<double>();
      };
      INFO("head_dim " << dim << ", " << tokens << " tokens, " << c10::toString(dtype));
      CHECK(error(out, exact) < allowed);
      for (size_t i = 0; i < 3; ++i) CHECK(error(ours[i], theirs[i]) < allowed);
      const at::Tensor fractional = exact_inputs[3].gt(0).logical_and(exact_inputs[3].lt(1));
      // A sum in which the branches' outputs nearly cancel, each with the rounding of its own size.
      const auto scale_of_noise = [&](double end) {
        const at::NoGradGuard guard;
        const at::Tensor gate = at::full_like(exact_inputs[3], end);
        return reference(exact_inputs[0], exact_inputs[1], exact_inputs[2], gate, bounds, 20, 50)
            .mul(gpu_dout.to(at::kDouble))
            .norm()
            .item<double>();
      };
      const double noise = 3 *
                           (dtype == at::kBFloat16 ? 0x1p-7
                            : dtype == at::kHalf   ? 0x1p-10
                                                   : 0x1p-23) *
                           std::hypot(scale_of_noise(0), scale_of_noise(1));
      const at::Tensor expected_dgate = theirs[3].mul(fractional);
      CHECK(ours[3].to(at::kDouble).sub(expected_dgate).norm().item<double>() <
            2 * allowed * expected_dgate.norm().item<double>() + noise);
    }
  }
}
