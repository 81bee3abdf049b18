// SPDX-License-Identifier: MIT
// Schemas of torch.ops.prulong.*; the implementations register themselves beside their code.
#include <torch/library.h>

TORCH_LIBRARY(prulong, m) {
  m.def(
      "gated_attention(Tensor q, Tensor k, Tensor v, Tensor gate, Tensor cu_seqlens, SymInt max_seqlen, int sink, "
      "int window, float scale) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "masked_attention(Tensor q, Tensor k, Tensor v, Tensor is_global, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
      "SymInt max_seqlen_q, SymInt max_seqlen_k, int sink, int window, float scale) -> (Tensor out, Tensor lse)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "append_kv(Tensor k, Tensor v, Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor page_table, Tensor lengths, "
      "Tensor cu_seqlens_q) -> ()",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "paged_attention(Tensor q, Tensor k_pages, Tensor v_pages, Tensor page_table, Tensor lengths, Tensor is_global, "
      "Tensor cu_seqlens_q, SymInt max_seqlen_q, int sink, int window, float scale) -> (Tensor out, Tensor lse)",
      {at::Tag::pt2_compliant_tag});
  // The halves of gated_attention that its autograd is made of. delta = O_global - O_local. delta and the log-sum-exp
  // of a branch that a head does not compute are unspecified. A gradient that is not needed (order q, k, v, gate) comes
  // back with shape [0].
  m.def(
      "gated_attention_forward(Tensor q, Tensor k, Tensor v, Tensor gate, Tensor cu_seqlens, SymInt max_seqlen, "
      "int sink, int window, float scale) -> (Tensor out, Tensor delta, Tensor lse_global, Tensor lse_local)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "gated_attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor gate, Tensor out, Tensor delta, "
      "Tensor lse_global, Tensor lse_local, Tensor cu_seqlens, SymInt max_seqlen, int sink, int window, float scale, "
      "bool[4] needs) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dgate)",
      {at::Tag::pt2_compliant_tag});
}
