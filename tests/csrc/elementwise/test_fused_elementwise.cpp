// SPDX-License-Identifier: MIT
#include "csrc/elementwise/fused_elementwise.h"

#include <ATen/Context.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sigmoid.h>

#include "tests/support/catch.h"

namespace {

// Of rounding once: half a unit in the last place of each element, and a little for float32's own error.
void check_rounded(const at::Tensor& found, const at::Tensor& exact) {
  const double half_unit = found.scalar_type() == at::kBFloat16 ? 0x1p-8 : 0x1p-11;
  const at::Tensor allowed = exact.abs().mul(1.01 * half_unit).add(1e-5);
  CHECK(found.to(at::kDouble).sub(exact).abs().le(allowed).all().item<bool>());
}

}  // namespace

TEST_CASE("fused kernels serve dense half-precision tensors on a GPU alone") {
  CHECK_FALSE(prulong::fused::supports(at::randn({8}, at::TensorOptions().dtype(at::kHalf))));
  if (!at::globalContext().hasCUDA()) return;
  const at::Tensor t = at::randn({4, 16}, at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA));
  CHECK(prulong::fused::supports(t));
  CHECK_FALSE(prulong::fused::supports(t.t()));
  CHECK_FALSE(prulong::fused::supports(t.to(at::kFloat)));
  CHECK_FALSE(prulong::fused::supports(t.flatten().narrow(0, 1, 8)));
  CHECK_FALSE(prulong::fused::supports(t.flatten().narrow(0, 0, 12)));
}

TEST_CASE("on a GPU the fused kernels are the formulas, rounded once", "[cuda]") {
  if (!at::globalContext().hasCUDA()) return;
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    const auto options = at::TensorOptions().dtype(dtype).device(at::kCUDA);
    for (const int64_t rows : {1, 3, 5000}) {
      const at::Tensor gate = at::randn({rows, 1000}, options).mul_(3), up = at::randn({rows, 1000}, options);
      const at::Tensor grad = at::randn({rows, 1000}, options);
      const at::Tensor g = gate.to(at::kDouble), u = up.to(at::kDouble), d = grad.to(at::kDouble), s = g.sigmoid();
      check_rounded(prulong::fused::swiglu(gate, up), g.mul(s).mul(u));
      const auto [dgate, dup] = prulong::fused::swiglu_gradients(grad, gate, up);
      check_rounded(dgate, d.mul(u).mul(s).mul(g.mul(s.neg().add(1)).add(1)));
      check_rounded(dup, d.mul(g).mul(s));

      const at::Tensor x = at::randn({rows, 3, 64}, options), angles = at::rand({rows, 1, 32}, options).mul_(6);
      const at::Tensor cos = angles.cos(), sin = angles.sin();
      const at::Tensor x1 = x.narrow(2, 0, 32).to(at::kDouble), x2 = x.narrow(2, 32, 32).to(at::kDouble);
      const at::Tensor c = cos.to(at::kDouble), t = sin.to(at::kDouble);
      check_rounded(prulong::fused::rope(x, cos, sin, false),
                    at::cat({x1.mul(c).sub(x2.mul(t)), x2.mul(c).add(x1.mul(t))}, 2));
      check_rounded(prulong::fused::rope(x, cos, sin, true),
                    at::cat({x1.mul(c).add(x2.mul(t)), x2.mul(c).sub(x1.mul(t))}, 2));
    }
  }
}
