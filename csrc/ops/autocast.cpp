// SPDX-License-Identifier: MIT
// Under torch.autocast the operators do as PyTorch's own attention does: they compute in the autocast dtype. Gates stay
// float32; float64 inputs stay as they are. The casts lie above autograd, so gradients come back in the inputs' dtypes.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <tuple>

namespace prulong {
namespace {

using Gated = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         c10::SymInt, int64_t, int64_t, double);
using MaskedResult = std::tuple<at::Tensor, at::Tensor>;
using Masked = MaskedResult(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                            const at::Tensor&, const at::Tensor&, c10::SymInt, c10::SymInt, int64_t, int64_t, double);

/// Autocast is off below this point, and casts floating tensors of its device other than float64.
template <at::DeviceType kDevice>
class Cast {
 public:
  at::Tensor lower(const at::Tensor& x) const { return to(at::autocast::get_autocast_dtype(kDevice), x); }
  at::Tensor to(at::ScalarType type, const at::Tensor& x) const { return at::autocast::cached_cast(type, x, kDevice); }

 private:
  c10::impl::ExcludeDispatchKeyGuard off_{at::autocast::get_autocast_dispatch_key_from_device_type(kDevice)};
};

template <at::DeviceType kDevice>
at::Tensor gated_attention_autocast(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const at::Tensor& gate, const at::Tensor& cu_seqlens, c10::SymInt max_seqlen,
                                    int64_t sink, int64_t window, double scale) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("prulong::gated_attention", "").typed<Gated>();
  const Cast<kDevice> cast;
  return op.call(cast.lower(q), cast.lower(k), cast.lower(v), cast.to(at::kFloat, gate), cu_seqlens, max_seqlen, sink,
                 window, scale);
}

template <at::DeviceType kDevice>
MaskedResult masked_attention_autocast(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const at::Tensor& is_global, const at::Tensor& cu_seqlens_q,
                                       const at::Tensor& cu_seqlens_k, c10::SymInt max_seqlen_q,
                                       c10::SymInt max_seqlen_k, int64_t sink, int64_t window, double scale) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("prulong::masked_attention", "").typed<Masked>();
  const Cast<kDevice> cast;
  return op.call(cast.lower(q), cast.lower(k), cast.lower(v), is_global, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                 max_seqlen_k, sink, window, scale);
}

}  // namespace

TORCH_LIBRARY_IMPL(prulong, AutocastCPU, m) {
  m.impl("gated_attention", TORCH_FN(gated_attention_autocast<at::kCPU>));
  m.impl("masked_attention", TORCH_FN(masked_attention_autocast<at::kCPU>));
}
TORCH_LIBRARY_IMPL(prulong, AutocastCUDA, m) {
  m.impl("gated_attention", TORCH_FN(gated_attention_autocast<at::kCUDA>));
  m.impl("masked_attention", TORCH_FN(masked_attention_autocast<at::kCUDA>));
}

}  // namespace prulong
