// SPDX-License-Identifier: MIT
#include "model/rope.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/rsub.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>

#include <numbers>

#include "csrc/elementwise/fused_elementwise.h"

namespace prulong {
namespace {

/// [x1 cos - x2 sin, x2 cos + x1 sin], or the inverse turn.
at::Tensor turn(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool inverse) {
  const int64_t half = x.size(-1) / 2;
  if (half % 8 == 0 && fused::supports(x) && fused::supports(cos) && fused::supports(sin)) {
    return fused::rope(x, cos, sin, inverse);
  }
  const at::Tensor x1 = x.narrow(-1, 0, half);
  const at::Tensor x2 = x.narrow(-1, half, half);
  at::Tensor out = at::empty(x.sizes(), x.options());
  at::Tensor out1 = out.narrow(-1, 0, half);
  at::Tensor out2 = out.narrow(-1, half, half);
  const double sign = inverse ? -1.0 : 1.0;
  at::mul_out(out1, x1, cos).addcmul_(x2, sin, -sign);
  at::mul_out(out2, x2, cos).addcmul_(x1, sin, sign);
  return out;
}

struct Rope : torch::autograd::Function<Rope> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return turn(x, cos, sin, false);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    return {turn(grads[0], saved[0], saved[1], true), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor rope_frequencies(const RopeConfig& rope, int64_t head_dim) {
  const at::Tensor exponents = at::arange(0, head_dim, 2, at::TensorOptions().dtype(at::kFloat)).div_(head_dim);
  const at::Tensor plain = at::pow(rope.theta, exponents).reciprocal();
  if (rope.kind == RopeConfig::Kind::kDefault) return plain;
  const at::Tensor slow = plain.div(rope.factor);
  if (rope.kind == RopeConfig::Kind::kLinear) return slow;
  // llama3: long waves (more than context / low_freq_factor positions a turn) slow down by factor, short ones stay,
  // between them the two are mixed.
  const auto context = static_cast<double>(rope.original_max_positions);
  const at::Tensor wavelength = plain.reciprocal().mul_(2.0 * std::numbers::pi);
  const at::Tensor is_long = wavelength.gt(context / rope.low_freq_factor);
  const at::Tensor is_short = wavelength.lt(context / rope.high_freq_factor);
  const at::Tensor share = wavelength.reciprocal()
                               .mul_(context)
                               .sub_(rope.low_freq_factor)
                               .div_(rope.high_freq_factor - rope.low_freq_factor);
  const at::Tensor mixed = at::rsub(share, 1).mul_(plain).div_(rope.factor).add_(share.mul(plain));
  return at::where(is_long, slow, at::where(is_short, plain, mixed));
}

RopeTable rope_table(const at::Tensor& frequencies, const at::Tensor& positions, at::ScalarType dtype) {
  const at::Tensor angles = positions.view({-1, 1, 1}).mul(frequencies);
  return {angles.cos().to(dtype), angles.sin().to(dtype)};
}

at::Tensor rotate(const at::Tensor& x, const RopeTable& table) { return Rope::apply(x, table.cos, table.sin); }

}  // namespace prulong
