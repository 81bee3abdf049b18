// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <vector>

#include "csrc/attention_spec.h"

namespace prulong {

/// What one packed sequence set looks like on the host: document d holds tokens [bounds[d], bounds[d + 1]).
using Bounds = std::vector<int>;

/// Refuses q, k, v whose shape, dtype, device or strides the operators do not take. Reads no data, so it serves fake
/// and symbolic tensors too. `same_tokens`: k and v must have as many tokens as q.
/// @throws c10::Error naming the operator, the argument, what was expected and what was found (all functions here).
void check_qkv(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool same_tokens);

/// Refuses tokens that are not [tokens, heads, head_dim] in a dtype that the operators take on their device, contiguous
/// in the last dimension.
void check_tokens(const char* op, const char* name, const at::Tensor& t);

/// Refuses a tensor that has not the dtype and the device of another one, `like`.
void check_same(const char* op, const char* name, const at::Tensor& t, const char* like_name, const at::Tensor& like);

/// Refuses a tensor of per-head values that is not [kv_heads] of `dtype` on q's device.
void check_per_head(const char* op, const char* name, const at::Tensor& values, at::ScalarType dtype,
                    const at::Tensor& q, const c10::SymInt& kv_heads);

/// Refuses document bounds that are not [docs + 1] int32 on the tokens' device. Reads no data.
void check_cu_seqlens(const char* op, const char* name, const at::Tensor& cu_seqlens, const at::Tensor& tokens,
                      const char* tokens_name = "q");

/// Refuses a negative sink, a window below 1, a scale that is not finite.
void check_locality(const char* op, int64_t sink, int64_t window, double scale);

/// Reads document bounds to the host (one copy on CUDA); refuses bounds that do not rise from 0 to `tokens`, and
/// documents longer than `max_seqlen`.
Bounds read_bounds(const char* op, const char* name, const at::Tensor& cu_seqlens, int64_t tokens, const char* max_name,
                   int64_t max_seqlen);

/// The documents between host bounds; k_bounds has as many entries as q_bounds.
std::vector<DocumentRows> make_documents(const Bounds& q_bounds, const Bounds& k_bounds);

/// Reads gates to the host (one copy on CUDA) and says what heads compute; refuses values outside [0, 1], NaN included.
std::vector<HeadKind> read_gate(const char* op, const at::Tensor& gate);

/// The type in which attention is computed and gates are given: float64 for float64 inputs, else float32.
at::ScalarType compute_type(at::ScalarType dtype);

}  // namespace prulong
