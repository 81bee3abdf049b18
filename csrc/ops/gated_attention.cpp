// SPDX-License-Identifier: MIT
// The public operator: autograd over its two halves (gated_halves.cpp), usable from C++ without Python.
#include "csrc/ops/gated_attention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <utility>

namespace prulong {
namespace {

// The schemas' flat lists (library.cpp).
template <class Result>
using Flat = Result(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                    c10::SymInt, int64_t, int64_t, double);
using Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Backward = Tensors(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         c10::SymInt, int64_t, int64_t, double, std::array<bool, 4>);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

template <class Result>
Result call(const c10::TypedOperatorHandle<Flat<Result>>& op, const GatedArguments& a) {
  return op.call(a.q, a.k, a.v, a.gate, a.cu_seqlens, a.max_seqlen, a.sink, a.window, a.scale);
}

GatedResults call_forward(const GatedArguments& arguments) {
  static const auto op = find_op<Flat<Tensors>>("prulong::gated_attention_forward");
  auto [out, delta, lse_global, lse_local] = call<Tensors>(op, arguments);
  return {out, delta, lse_global, lse_local};
}

class GatedAttention : public torch::autograd::Function<GatedAttention> {
 public:
  /// @param known  the results, or null: to be computed.
  static at::Tensor run(const GatedArguments& arguments, const GatedResults* known) {
    // Autograd looks for inputs among the arguments themselves.
    return apply(arguments.q, arguments.k, arguments.v, arguments.gate, arguments, known);
  }

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& gate, const GatedArguments& arguments,
                            const GatedResults* known) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    GatedResults results = known != nullptr ? *known : call_forward(arguments);
    if (known != nullptr) results.out = results.out.detach();  // an output of its own: this node becomes its history
    ctx->save_for_backward(
        {q, k, v, gate, arguments.cu_seqlens, results.out, results.delta, results.lse_global, results.lse_local});
    ctx->saved_data["max_seqlen"] = arguments.max_seqlen;
    ctx->saved_data["sink"] = arguments.sink;
    ctx->saved_data["window"] = arguments.window;
    ctx->saved_data["scale"] = arguments.scale;
    ctx->set_materialize_grads(false);
    return results.out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& gradients) {
    torch::autograd::variable_list result(6);  // one of each of forward's arguments
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

at::Tensor differentiable(const GatedArguments& arguments) { return GatedAttention::run(arguments, nullptr); }

// Where autograd is off altogether (inference mode).
at::Tensor forward_only(const GatedArguments& arguments) { return call_forward(arguments).out; }

template <at::Tensor (*kRun)(const GatedArguments&)>
at::Tensor gated_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
                    const at::Tensor& cu_seqlens, c10::SymInt max_seqlen, int64_t sink, int64_t window, double scale) {
  return kRun({q, k, v, gate, cu_seqlens, std::move(max_seqlen), sink, window, scale});
}

}  // namespace

at::Tensor gated_attention(const GatedArguments& arguments) {
  static const auto op = find_op<Flat<at::Tensor>>("prulong::gated_attention");
  return call<at::Tensor>(op, arguments);
}

GatedResults gated_attention_results(const GatedArguments& arguments) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call_forward(arguments);
}

at::Tensor gated_attention_from(const GatedResults& results, const GatedArguments& arguments) {
  return GatedAttention::run(arguments, &results);
}

TORCH_LIBRARY_IMPL(prulong, Autograd, m) {
  m.impl("gated_attention", TORCH_FN(gated_op<differentiable>));
  // Differentiating through these is refused instead of giving no gradient.
  m.impl("gated_attention_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("gated_attention_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("masked_attention", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(prulong, CompositeExplicitAutograd, m) {
  m.impl("gated_attention", TORCH_FN(gated_op<forward_only>));
}

}  // namespace prulong
