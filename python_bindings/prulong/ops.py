# SPDX-License-Identifier: MIT
"""Typed wrappers of the operators ``torch.ops.prulong.*``.

Importing the package loads the library; these functions then add default values and documentation, nothing else. Both
work under ``torch.compile``, ``torch.inference_mode`` and ``torch.autocast``, which casts q, k and v to its dtype and
the gate to float32 (float64 stays float64), as it does for PyTorch's own attention. Bad arguments raise
``RuntimeError`` with one line that names the argument, what was expected and what was found. On Hopper GPUs our own
kernels do not wait for the device: there, wrong bounds of documents and gates outside [0, 1] give NaN instead, and
``max_seqlen`` is not read, unless the environment variable ``PRULONG_CHECK=1`` makes them errors there too.
"""

from __future__ import annotations

import math

import torch

__all__ = ["gated_attention", "masked_attention"]


def _default_scale(q: torch.Tensor) -> float:
    # A shape without head_dim is the operator's to refuse.
    return 1 / math.sqrt(q.shape[-1]) if q.dim() > 0 and q.shape[-1] > 0 else 1.0


def gated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    *,
    sink: int,
    window: int,
    scale: float | None = None,
) -> torch.Tensor:
    """Training attention over packed documents: ``gate * O_global + (1 - gate) * O_local`` per key head.

    ``O_global`` is causal attention inside the document; ``O_local`` is the same softmax over the keys ``j`` of query
    ``i`` with ``j - document_start < sink`` or ``i - j < window``. Where a gate is exactly 0 or 1, the other branch is
    not computed and the gate's gradient is 0. Differentiable once in q, k, v and gate.

    Args:
        q: ``[T, Hq, D]`` float32, bfloat16 or float16 (float64 on the CPU), contiguous in its last dimension.
        k: ``[T, Hkv, D]``, q's dtype and device; Hq is a multiple of Hkv, query heads of a group are adjacent.
        v: as k.
        gate: ``[Hkv]`` float32 (float64 when q is), in [0, 1].
        cu_seqlens: ``[documents + 1]`` int32 on q's device, rising from 0 to T.
        max_seqlen: length of the longest document, or a bound on it.
        sink: first tokens of a document that every query sees, >= 0.
        window: last tokens, the query included, that it sees, >= 1.
        scale: factor on ``q . k``; default ``1 / sqrt(D)``.

    Returns:
        ``[T, Hq, D]`` in q's dtype.
    """
    scale = _default_scale(q) if scale is None else scale
    return torch.ops.prulong.gated_attention(q, k, v, gate, cu_seqlens, max_seqlen, sink, window, scale)


def masked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    is_global: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    sink: int,
    window: int,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inference attention with 0/1 heads: a global key head sees every earlier key, a local one sink and window.

    A document may have fewer queries than keys (chunked prefill, decode): its queries are then the last ones, query
    ``r`` stands at position ``k_len - q_len + r``. Not differentiable.

    Args:
        q: ``[Tq, Hq, D]`` float32, bfloat16 or float16 (float64 on the CPU), contiguous in its last dimension.
        k: ``[Tk, Hkv, D]``, q's dtype and device; Hq is a multiple of Hkv.
        v: as k.
        is_global: ``[Hkv]`` bool.
        cu_seqlens_q: ``[documents + 1]`` int32, rising from 0 to Tq.
        cu_seqlens_k: ``[documents + 1]`` int32, rising from 0 to Tk; a document has at least as many keys as queries.
        max_seqlen_q: longest document's queries, or a bound.
        max_seqlen_k: longest document's keys, or a bound.
        sink: first tokens of a document that every query sees, >= 0.
        window: last tokens, the query included, that it sees, >= 1.
        scale: factor on ``q . k``; default ``1 / sqrt(D)``.

    Returns:
        out ``[Tq, Hq, D]`` in q's dtype, and the log-sum-exp of the scaled scores ``[Hq, Tq]`` in float32 (float64 for
        float64 inputs), natural logarithm.
    """
    scale = _default_scale(q) if scale is None else scale
    return torch.ops.prulong.masked_attention(
        q, k, v, is_global, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, sink, window, scale
    )
