// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>

#include "csrc/ops/export.h"

namespace prulong {

/// Arguments of gated_attention, in the order of its schema.
struct GatedArguments {
  at::Tensor q;            ///< [T, Hq, D] float64 (CPU only), float32, bfloat16 or float16; last dimension contiguous.
  at::Tensor k, v;         ///< [T, Hkv, D], same dtype and device; Hq is a multiple of Hkv, query heads of a group are
                           ///< adjacent.
  at::Tensor gate;         ///< [Hkv] float32 (float64 when q is), in [0, 1], same device.
  at::Tensor cu_seqlens;   ///< [docs + 1] int32, from 0 to T, not decreasing, same device: document d holds tokens
                           ///< [cu_seqlens[d], cu_seqlens[d + 1]). Empty documents are allowed.
  c10::SymInt max_seqlen;  ///< Length of the longest document (a bound is enough).
  int64_t sink;            ///< Number of first tokens of a document that every query sees, >= 0.
  int64_t window;          ///< Number of last tokens, the query included, that it sees, >= 1.
  double scale;            ///< Factor on q . k, usually 1 / sqrt(D).
};

/// Training attention over packed documents: out = z * O_global + (1 - z) * O_local per KV head, where O_global is
/// causal attention inside the document and O_local the same softmax over the keys j of query i with j - document_start
/// < sink or i - j < window. Where z is exactly 0 or 1 the other branch is not computed; its gate gradient is 0, which
/// is exact for clamped (hard-concrete) gates. Differentiable in q, k, v and gate.
/// @returns           [T, Hq, D], q's dtype.
/// @throws c10::Error naming the argument, what was expected and what was found. Our kernels for Hopper GPUs do not
/// wait for the device: what only data on it show (bounds, gates) gives NaN there, and max_seqlen is not read, unless
/// the environment variable PRULONG_CHECK=1 makes them errors there too; calls then wait, and no CUDA graph captures
/// them. Source: PruLong, arXiv 2506.17121, section 3; token-exact window.
PRULONG_API at::Tensor gated_attention(const GatedArguments& arguments);

/// What gated_attention computes and its backward pass reads: out and delta = O_global - O_local [T, Hq, D], and both
/// branches' log-sum-exp [Hq, T]. delta is read where the gate is neither 0 nor 1, a log-sum-exp where its branch has a
/// weight.
struct GatedResults {
  at::Tensor out, delta, lse_global, lse_local;
};

/// gated_attention's results, without a graph.
PRULONG_API GatedResults gated_attention_results(const GatedArguments& arguments);

/// gated_attention of tensors whose results are known: its output and its graph, without computing them again.
PRULONG_API at::Tensor gated_attention_from(const GatedResults& results, const GatedArguments& arguments);

/// Gradients of gated_attention's arguments, in their dtype; undefined where not needed.
struct GatedGradients {
  at::Tensor dq, dk, dv, dgate;
};

}  // namespace prulong
