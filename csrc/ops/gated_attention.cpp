// SPDX-License-Identifier: MIT
// The public operator: autograd over its two halves (gated_kernels.cpp), usable from C++ without Python.
#include "csrc/ops/gated_attention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <tuple>

namespace prulong {
namespace {

using Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Whole = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         c10::SymInt, int64_t, int64_t, double);
using Forward = Tensors(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                        c10::SymInt, int64_t, int64_t, double);
using Backward = Tensors(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         c10::SymInt, int64_t, int64_t, double, std::array<bool, 4>);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

Tensors call_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
                     const at::Tensor& cu_seqlens, const c10::SymInt& max_seqlen, int64_t sink, int64_t window,
                     double scale) {
  static const auto op = find_op<Forward>("prulong::gated_attention_forward");
  return op.call(q, k, v, gate, cu_seqlens, max_seqlen, sink, window, scale);
}

class GatedAttention : public torch::autograd::Function<GatedAttention> {
 public:
  /// @param known  the results, or null: to be computed.
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& gate, const at::Tensor& cu_seqlens,
                            const c10::SymInt& max_seqlen, int64_t sink, int64_t window, double scale,
                            const GatedResults* known) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    // An output of its own: this node becomes its history.
    auto [out, delta, lse_global, lse_local] =
        known != nullptr ? Tensors(known->out.detach(), known->delta, known->lse_global, known->lse_local)
                         : call_forward(q, k, v, gate, cu_seqlens, max_seqlen, sink, window, scale);
    ctx->save_for_backward({q, k, v, gate, cu_seqlens, out, delta, lse_global, lse_local});
    ctx->saved_data["max_seqlen"] = max_seqlen;
    ctx->saved_data["sink"] = sink;
    ctx->saved_data["window"] = window;
    ctx->saved_data["scale"] = scale;
    ctx->set_materialize_grads(false);
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& gradients) {
    constexpr size_t kInputs = 10;
    torch::autograd::variable_list result(kInputs);
    if (!gradients[0].defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &gate = saved[3], &cu_seqlens = saved[4];
    const std::array<bool, 4> needs = {ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2),
                                       ctx->needs_input_grad(3)};
    static const auto op = find_op<Backward>("prulong::gated_attention_backward");
    auto [dq, dk, dv, dgate] = op.call(gradients[0], q, k, v, gate, saved[5], saved[6], saved[7], saved[8], cu_seqlens,
                                       ctx->saved_data["max_seqlen"].toSymInt(), ctx->saved_data["sink"].toInt(),
                                       ctx->saved_data["window"].toInt(), ctx->saved_data["scale"].toDouble(), needs);
    if (needs[0]) result[0] = dq;
    if (needs[1]) result[1] = dk;
    if (needs[2]) result[2] = dv;
    if (needs[3]) result[3] = dgate;
    return result;
  }
};

at::Tensor gated_attention_autograd(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const at::Tensor& gate, const at::Tensor& cu_seqlens, c10::SymInt max_seqlen,
                                    int64_t sink, int64_t window, double scale) {
  const GatedResults* unknown = nullptr;
  return GatedAttention::apply(q, k, v, gate, cu_seqlens, max_seqlen, sink, window, scale, unknown);
}

// Where autograd is off altogether (inference mode).
at::Tensor gated_attention_forward_only(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                        const at::Tensor& gate, const at::Tensor& cu_seqlens, c10::SymInt max_seqlen,
                                        int64_t sink, int64_t window, double scale) {
  return std::get<0>(call_forward(q, k, v, gate, cu_seqlens, max_seqlen, sink, window, scale));
}

}  // namespace

at::Tensor gated_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
                           const at::Tensor& cu_seqlens, int64_t max_seqlen, int64_t sink, int64_t window,
                           double scale) {
  static const auto op = find_op<Whole>("prulong::gated_attention");
  return op.call(q, k, v, gate, cu_seqlens, max_seqlen, sink, window, scale);
}

GatedResults gated_attention_results(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const at::Tensor& gate, const at::Tensor& cu_seqlens, int64_t max_seqlen,
                                     int64_t sink, int64_t window, double scale) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  auto [out, delta, lse_global, lse_local] = call_forward(q, k, v, gate, cu_seqlens, max_seqlen, sink, window, scale);
  return {out, delta, lse_global, lse_local};
}

at::Tensor gated_attention_from(const GatedResults& results, const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& v, const at::Tensor& gate, const at::Tensor& cu_seqlens,
                                int64_t max_seqlen, int64_t sink, int64_t window, double scale) {
  return GatedAttention::apply(q, k, v, gate, cu_seqlens, c10::SymInt(max_seqlen), sink, window, scale, &results);
}

TORCH_LIBRARY_IMPL(prulong, Autograd, m) {
  m.impl("gated_attention", TORCH_FN(gated_attention_autograd));
  // Differentiating through these is refused instead of giving no gradient.
  m.impl("gated_attention_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("gated_attention_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("masked_attention", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(prulong, CompositeExplicitAutograd, m) {
  m.impl("gated_attention", TORCH_FN(gated_attention_forward_only));
}

}  // namespace prulong
