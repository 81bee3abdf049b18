// SPDX-License-Identifier: MIT
#include "model/recompute.h"

#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace prulong {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Carries the function from forward to backward.
struct FunctionHolder : torch::CustomClassHolder {
  explicit FunctionHolder(TensorFunction held) : function(std::move(held)) {}
  TensorFunction function;
};
constexpr const char* kHolder = "function";
constexpr const char* kInputs = "inputs";  // how many of the saved tensors

struct Recomputed : torch::autograd::Function<Recomputed> {
  static at::Tensor forward(AutogradContext* ctx, at::TensorList inputs,
                            const c10::intrusive_ptr<FunctionHolder>& holder) {
    ctx->saved_data[kHolder] = c10::IValue::make_capsule(holder);
    RecomputeState state;
    at::Tensor out = holder->function(inputs.vec(), state);
    variable_list saved = inputs.vec();
    saved.insert(saved.end(), state.kept.begin(), state.kept.end());
    ctx->saved_data[kInputs] = static_cast<int64_t>(inputs.size());
    ctx->save_for_backward(std::move(saved));
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const c10::intrusive_ptr<torch::CustomClassHolder> held = ctx->saved_data[kHolder].toCapsule();
    const auto& function = static_cast<const FunctionHolder*>(held.get())->function;
    variable_list saved = ctx->get_saved_variables();
    const auto kept = saved.begin() + ctx->saved_data[kInputs].toInt();
    RecomputeState state{true, {kept, saved.end()}, {}};
    saved.erase(kept, saved.end());
    variable_list inputs, wanted;
    for (const at::Tensor& input : saved) {
      inputs.push_back(input.detach());
      if (!ctx->needs_input_grad(inputs.size() - 1)) continue;
      inputs.back().set_requires_grad(true);
      wanted.push_back(inputs.back());
    }
    const c10::AutoGradMode recording(true);
    const variable_list found = torch::autograd::grad({function(inputs, state)}, wanted, {grads[0]},
                                                      /*retain_graph=*/false, /*create_graph=*/false,
                                                      /*allow_unused=*/true);
    variable_list result;
    auto next = found.begin();
    for (const at::Tensor& input : inputs) result.push_back(input.requires_grad() ? *next++ : at::Tensor());
    result.emplace_back();  // the holder
    return result;
  }
};

}  // namespace

at::Tensor recomputed(TensorFunction function, const std::vector<at::Tensor>& inputs) {
  return Recomputed::apply(at::TensorList(inputs), c10::make_intrusive<FunctionHolder>(std::move(function)));
}

}  // namespace prulong
