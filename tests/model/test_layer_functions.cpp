// SPDX-License-Identifier: MIT
#include "model/layer_functions.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sigmoid.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "common/cpu.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"

namespace prulong {
namespace {

const auto kF64 = at::TensorOptions().dtype(at::kDouble);

/// Values and all gradients of `found` equal those of the plain formula `expected`.
void check_same(const at::Tensor& found, const at::Tensor& expected, const std::vector<at::Tensor>& inputs,
                double tolerance = 1e-12) {
  CHECK(at::allclose(found, expected, tolerance, tolerance));
  const at::Tensor weight = at::randn(expected.sizes(), expected.options());
  const auto found_grads = torch::autograd::grad({found}, inputs, {weight});
  const auto expected_grads = torch::autograd::grad({expected}, inputs, {weight});
  for (size_t i = 0; i < inputs.size(); ++i) {
    INFO("gradient " << i);
    CHECK(at::allclose(found_grads[i], expected_grads[i], tolerance, tolerance));
  }
}

at::Tensor leaf(at::IntArrayRef shape) { return at::randn(shape, kF64).set_requires_grad(true); }

at::Tensor plain_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return x.mul(x.pow(2).mean(-1, true).add(eps).rsqrt()).mul(weight);
}

TEST_CASE("layer functions: rms_norm against the formula") {
  const at::Tensor x = leaf({7, 10}), weight = leaf({10});
  check_same(rms_norm(x, weight, 0.1), plain_norm(x, weight, 0.1), {x, weight});
  const at::Tensor frozen = weight.detach();
  check_same(rms_norm(x, frozen, 0.1), plain_norm(x, frozen, 0.1), {x});
}

TEST_CASE("layer functions: swiglu against the formula, gradients not contiguous either") {
  const at::Tensor gate = leaf({7, 10}), up = leaf({7, 10});
  const auto plain = [&] { return gate.mul(at::sigmoid(gate)).mul(up); };
  check_same(swiglu(gate, up), plain(), {gate, up});
  check_same(swiglu(gate, up).t(), plain().t(), {gate, up});
}

TEST_CASE("layer functions: project multiplies narrow dtypes at least as well as torch rounds them") {
  at::manual_seed(3);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    const at::Tensor x = leaf({7, 10}), weight = leaf({5, 10});
    const at::Tensor narrow_x = x.detach().to(dtype).set_requires_grad(true);
    const at::Tensor narrow_w = weight.detach().to(dtype).set_requires_grad(true);
    const at::Tensor wide_x = narrow_x.detach().to(at::kDouble).set_requires_grad(true);
    const at::Tensor wide_w = narrow_w.detach().to(at::kDouble).set_requires_grad(true);
    const at::Tensor found = linear(narrow_x, narrow_w), expected = wide_x.mm(wide_w.t());
    const double tolerance = dtype == at::kHalf ? 2e-3 : 1e-2;  // two roundings of the result
    CHECK(found.scalar_type() == dtype);
    CHECK(at::allclose(found.to(at::kDouble), expected, tolerance, tolerance));
    const at::Tensor grad = at::randn({7, 5}, kF64).to(dtype);
    const auto found_grads = torch::autograd::grad({found}, {narrow_x, narrow_w}, {grad});
    const auto expected_grads = torch::autograd::grad({expected}, {wide_x, wide_w}, {grad.to(at::kDouble)});
    for (size_t i = 0; i < 2; ++i) {
      CHECK(found_grads[i].scalar_type() == dtype);
      CHECK(at::allclose(found_grads[i].to(at::kDouble), expected_grads[i], tolerance, tolerance));
    }
  }
  CHECK(matmul_dtype(at::randn({1}).to(at::kBFloat16)) == (cpu_has_fast_bf16() ? at::kBFloat16 : at::kFloat));
  CHECK(matmul_dtype(at::randn({1})) == at::kFloat);
  CHECK(matmul_dtype(at::randn({1}, kF64)) == at::kDouble);
}

TEST_CASE("layer functions: nothing is recorded when nothing needs a gradient") {
  const at::Tensor x = at::randn({3, 4}), w = at::randn({4}), matrix = at::randn({4, 4});
  CHECK_FALSE(rms_norm(x, w, 0.1).requires_grad());
  CHECK_FALSE(swiglu(x, x).requires_grad());
  CHECK_FALSE(linear(x, matrix).requires_grad());
  CHECK_FALSE(linear(x.to(at::kHalf), matrix.to(at::kHalf)).requires_grad());
}

}  // namespace
}  // namespace prulong
