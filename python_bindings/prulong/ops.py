# SPDX-License-Identifier: MIT
"""Typed wrappers of the operators ``torch.ops.prulong.*``.

Importing the package loads the library; these functions then add default values and documentation, nothing else. All
work under ``torch.compile`` and ``torch.inference_mode``. Under ``torch.autocast`` gated_attention and masked_attention
cast q, k and v to its dtype and the gate to float32 (float64 stays float64), as PyTorch's own attention does; append_kv and
paged_attention keep to the dtype of the pages. Bad arguments raise ``RuntimeError`` with one line that names the
argument, what was expected and what was found. On Hopper GPUs our own kernels do not wait for the device: there, wrong
bounds of documents, page tables and lengths, and gates outside [0, 1] give NaN instead, and ``max_seqlen`` is not read,
unless the environment variable ``PRULONG_CHECK=1`` makes them errors there too. append_kv leaves out what does not fit
the pages on any GPU, under the same condition.
"""

from __future__ import annotations

import math

import torch

__all__ = ["append_kv", "gated_attention", "masked_attention", "paged_attention"]


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


def append_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
) -> None:
    """Writes new keys and values into the pages of a cache, in place.

    The rows of a sequence become the last entries of each of its key heads' lists.

    Args:
        k: ``[T, Hkv, D]`` float32, bfloat16 or float16 (float64 on the CPU), contiguous in its last dimension: new
            rows, those of a sequence behind those of the one before.
        v: as k.
        k_pages: ``[P, page, D]``, k's dtype and device, dense; written.
        v_pages: as k_pages.
        page_table: ``[sequences, Hkv, N]`` int32: entry ``e`` of a head lies in row ``e % page`` of page
            ``page_table[b, h, e // page]``.
        lengths: ``[sequences, Hkv]`` int32: entries of each head, the new rows included.
        cu_seqlens_q: ``[sequences + 1]`` int32, rising from 0 to T: which rows are whose.
    """
    torch.ops.prulong.append_kv(k, v, k_pages, v_pages, page_table, lengths, cu_seqlens_q)


def paged_attention(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    page_table: torch.Tensor,
    lengths: torch.Tensor,
    is_global: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    *,
    sink: int,
    window: int,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of new queries over a cache in pages, whose heads may have lists of different lengths.

    The queries of a sequence are the last entries of each of its heads' lists (append_kv comes first): query ``r`` of
    ``n`` stands at place ``length - n + r``. A global head sees every entry up to that place, a local one the entries
    ``j`` of the query at place ``i`` with ``j < sink`` or ``i - j < window``. On a CPU a row's result is the same to
    the bit however many rows, sequences and threads there are. Not differentiable.

    Args:
        q: ``[T, Hq, D]`` float32, bfloat16 or float16 (float64 on the CPU), contiguous in its last dimension.
        k_pages: ``[P, page, D]``, q's dtype and device, dense.
        v_pages: as k_pages.
        page_table: ``[sequences, Hkv, N]`` int32, as for append_kv; Hq is a multiple of Hkv.
        lengths: ``[sequences, Hkv]`` int32, as for append_kv.
        is_global: ``[Hkv]`` bool.
        cu_seqlens_q: ``[sequences + 1]`` int32, rising from 0 to T.
        max_seqlen_q: most queries of a sequence, or a bound.
        sink: first entries that every query sees, >= 0.
        window: last entries, its own included, that a query sees, >= 1.
        scale: factor on ``q . k``; default ``1 / sqrt(D)``.

    Returns:
        out ``[T, Hq, D]`` in q's dtype, and the log-sum-exp of the scaled scores ``[Hq, T]`` in float32 (float64 for
        float64 inputs), natural logarithm.
    """
    scale = _default_scale(q) if scale is None else scale
    return torch.ops.prulong.paged_attention(
        q, k_pages, v_pages, page_table, lengths, is_global, cu_seqlens_q, max_seqlen_q, sink, window, scale
    )
