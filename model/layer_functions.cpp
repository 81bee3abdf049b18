// SPDX-License-Identifier: MIT
#include "model/layer_functions.h"

#include <ATen/ops/_fused_rms_norm.h>
#include <ATen/ops/_fused_rms_norm_backward.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <tuple>
#include <utility>
#include <vector>

#include "common/cpu.h"
#include "csrc/elementwise/fused_elementwise.h"

namespace prulong {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::ScalarType statistics_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, double eps) {
    if (x.is_cuda()) {  // one pass instead of seven; rounded once, after the weight
      auto [out, rstd] = at::_fused_rms_norm(x, {x.size(-1)}, weight, eps);
      ctx->save_for_backward({x, weight, rstd});
      return out;
    }
    const at::Tensor wide = x.to(statistics_dtype(x));
    const at::Tensor rstd = at::linalg_vector_norm(wide, 2, at::IntArrayRef{-1}, /*keepdim=*/true)
                                .square_()
                                .div_(x.size(-1))
                                .add_(eps)
                                .rsqrt_();
    ctx->save_for_backward({x, weight, rstd});
    // Rounded to x's dtype before the weight, as transformers does.
    at::Tensor out = wide.mul(rstd).to(x.scalar_type());
    return out.mul_(weight);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &rstd = saved[2];
    if (x.is_cuda()) {
      const auto [dx, dweight] = at::_fused_rms_norm_backward(grads[0].contiguous(), x, {x.size(-1)}, rstd, weight,
                                                              {ctx->needs_input_grad(0), ctx->needs_input_grad(1)});
      return {dx, dweight, at::Tensor()};
    }
    const at::Tensor wide = x.to(rstd.scalar_type());
    const at::Tensor grad = grads[0].to(rstd.scalar_type());
    at::Tensor dx, dweight;
    if (ctx->needs_input_grad(0)) {
      at::Tensor dnormed = grad.mul(weight.to(rstd.scalar_type()));
      const at::Tensor share = dnormed.mul(wide).sum(-1, /*keepdim=*/true).mul_(rstd.pow(3)).div_(x.size(-1));
      dx = dnormed.mul_(rstd).addcmul_(wide, share, -1).to(x.scalar_type());
    }
    if (ctx->needs_input_grad(1)) dweight = grad.mul(wide).mul_(rstd).sum(0).to(weight.scalar_type());
    return {dx, dweight, at::Tensor()};
  }
};

at::Tensor swiglu_value(const at::Tensor& gate, const at::Tensor& up) {
  if (fused::supports(gate) && fused::supports(up)) return fused::swiglu(gate, up);
  return at::silu(gate).mul_(up);
}

/// Of gate and of up.
std::pair<at::Tensor, at::Tensor> swiglu_gradients(const at::Tensor& grad, const at::Tensor& gate,
                                                   const at::Tensor& up) {
  if (fused::supports(grad) && fused::supports(gate) && fused::supports(up)) {
    return fused::swiglu_gradients(grad, gate, up);
  }
  return {at::silu_backward(grad.mul(up), gate), at::silu(gate).mul_(grad)};
}

struct SwiGlu : torch::autograd::Function<SwiGlu> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate, const at::Tensor& up) {
    ctx->save_for_backward({gate, up});
    return swiglu_value(gate, up);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto [dgate, dup] = swiglu_gradients(grads[0], saved[0], saved[1]);
    return {dgate, dup};
  }
};

/// The gradients of `linear` without a bias, as autograd computes them for at::linear and WideLinear.
at::Tensor project_input_gradient(const at::Tensor& grad, const at::Tensor& weight) {
  if (matmul_dtype(grad) == grad.scalar_type()) return at::mm(grad, weight);
  return at::mm(grad.to(at::kFloat), weight.to(at::kFloat)).to(weight.scalar_type());
}

at::Tensor project_weight_gradient(const at::Tensor& grad, const at::Tensor& x) {
  if (matmul_dtype(grad) == grad.scalar_type()) return at::mm(grad.t(), x);
  return at::mm(grad.to(at::kFloat).t(), x.to(at::kFloat)).to(x.scalar_type());
}

/// linear in float32 for tensors of a narrower dtype.
struct WideLinear : torch::autograd::Function<WideLinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight) {
    ctx->save_for_backward({weight.requires_grad() ? x : at::Tensor(), weight});
    return at::mm(x.to(at::kFloat), weight.to(at::kFloat).t()).to(x.scalar_type());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    at::Tensor dx, dweight;
    if (ctx->needs_input_grad(0)) dx = project_input_gradient(grads[0], weight);
    if (ctx->needs_input_grad(1)) dweight = project_weight_gradient(grads[0], x);
    return {dx, dweight};
  }
};

struct FeedForwardGradients : torch::autograd::Function<FeedForwardGradients> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate, const at::Tensor& up, const at::Tensor& down,
                            const at::Tensor& residual) {
    ctx->save_for_backward({gate, up, down});
    return at::empty_strided(residual.sizes(), std::vector<int64_t>(residual.sizes().size(), 0), residual.options());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &gate = saved[0], &up = saved[1], &down = saved[2], &grad = grads[0];
    at::Tensor dgate, dup, ddown;
    if (ctx->needs_input_grad(0) || ctx->needs_input_grad(1)) {
      std::tie(dgate, dup) = swiglu_gradients(project_input_gradient(grad, down), gate, up);
    }
    if (ctx->needs_input_grad(2)) ddown = project_weight_gradient(grad, swiglu_value(gate, up));
    return {dgate, dup, ddown, grad};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return RmsNorm::apply(x, weight, eps);
}

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) { return SwiGlu::apply(gate, up); }

at::Tensor feed_forward_gradients(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& down,
                                  const at::Tensor& residual) {
  return FeedForwardGradients::apply(gate, up, down, residual);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (matmul_dtype(x) == x.scalar_type()) return at::linear(x, weight, bias);
  const at::Tensor product = WideLinear::apply(x, weight);
  return bias.defined() ? product.add(bias) : product;
}

at::ScalarType matmul_dtype(const at::Tensor& x) {
  const bool slow =
      x.is_cpu() && (x.scalar_type() == at::kHalf || (x.scalar_type() == at::kBFloat16 && !cpu_has_fast_bf16()));
  return slow ? at::kFloat : x.scalar_type();
}

}  // namespace prulong
