# SPDX-License-Identifier: MIT
"""The attention function and the mask function that transformers calls for a model with a pattern (transformers.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .ops import masked_attention

# Plain attributes of an attention layer of a model with a pattern.
HEADS = "prulong_is_global"  # [kv_heads] bool, on the device last used
LOCALITY = "prulong_locality"  # (sink, window)
LAST_KEY = "prulong_last_key"  # of the first layer: (tokens, [B, Hkv, 1, D]), what the last call ended with

# Arguments of attention functions that change what is computed. None means that the model does not use it.
_UNSUPPORTED = {
    "sliding_window": "sliding windows",
    "softcap": "soft-capped scores",
    "s_aux": "learned sink logits",
    "position_bias": "position biases",
    "cache": "paged caches (continuous batching)",
    "cu_seq_lens_q": "several packed sequences in one row",
}


@dataclass(frozen=True)
class Span:
    """What the mask function hands to the attention layers: queries stand at [start, end), keys at [0, end)."""

    start: int
    end: int


def mask(
    batch_size: int,
    kv_length: int,
    kv_offset: int = 0,
    cache_position: torch.Tensor | None = None,
    q_length: int | None = None,
    q_offset: int | torch.Tensor = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    config: Any = None,
    **unused: Any,
) -> Span:
    """Called once per forward pass; causality is `attention`'s own.

    transformers before 5.3 says where the queries are with `cache_position`, later ones with `q_offset` and `q_length`.
    """
    from transformers.masking_utils import causal_mask_function

    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError(
            "attention_mask marks padding, which the prulong attention does not support: pass one sequence, or several "
            "of equal length"
        )
    if cache_position is not None:
        start, end = int(cache_position[0]), int(cache_position[-1]) + 1
    else:
        # Earlier versions wrap the function for packed sequences even where there are none; attention() sees those.
        if mask_function is not causal_mask_function:
            raise ValueError(
                "only causal attention over whole sequences is supported by the prulong attention: no packed sequences "
                "in one row, no sliding windows, no bidirectional blocks"
            )
        start = int(q_offset)
        end = start + int(q_length or 0)
    if kv_length != end or kv_offset != 0:
        raise ValueError(
            f"the cache offers {kv_length} keys from position {kv_offset}, expected {end} from 0: only the ordinary "
            "DynamicCache is supported by the prulong attention"
        )
    if attention_mask is not None and attention_mask.shape[-1] != end:
        raise ValueError(
            f"attention_mask covers {attention_mask.shape[-1]} tokens, the cache and the input hold {end}: the prulong "
            "attention reads keys by position, so none may be missing; pass a mask of all tokens, or none"
        )
    warn_beyond = getattr(config, "warn_beyond", None)  # none: the model has our attention, but no pattern
    if warn_beyond is not None:
        warn_beyond(end)
    return Span(start, end)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Span | torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Called by every layer: query [B, Hq, Sq, D], key and value [B, Hkv, Sk, D] -> [B, Sq, Hq, D].

    Queries are the last of the keys.
    """
    if getattr(module, HEADS, None) is None:
        raise ValueError("this model has the prulong attention but no pattern: call prulong.apply(model, pattern)")
    _refuse_unsupported(module, query, key, value, dropout, is_causal, kwargs)
    _refuse_other_positions(module, query, key, attention_mask, position_ids)
    sink, window = getattr(module, LOCALITY)
    batch, _, q_length, head_dim = query.shape
    k_length = key.shape[2]
    out, _ = masked_attention(
        _packed(query),
        _packed(key),
        _packed(value),
        _heads_on(module, query.device),
        _cu_seqlens(batch, q_length, query.device),
        _cu_seqlens(batch, k_length, query.device),
        q_length,
        k_length,
        sink=sink,
        window=window,
        scale=scaling,
    )
    return out.reshape(batch, q_length, query.shape[1], head_dim), None


def _refuse_unsupported(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    is_causal: bool | None,
    kwargs: dict[str, Any],
) -> None:
    for name, what in _UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"{what} ({name}) are not supported by the prulong attention")
    if dropout != 0.0:
        raise ValueError(f"attention dropout {dropout} is not supported by the prulong attention: call model.eval()")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise ValueError("bidirectional attention is not supported by the prulong attention")
    if kwargs.get("output_attentions"):
        raise ValueError("output_attentions is not supported by the prulong attention: it never has the weights")
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        raise ValueError("the prulong attention has no gradients: call the model under torch.no_grad()")


def _refuse_other_positions(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    span: Span | torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> None:
    """Refuses a call in which key j may stand elsewhere than at position j."""
    if isinstance(span, torch.Tensor):
        raise ValueError(
            f"an attention mask of shape {tuple(span.shape)} is not supported by the prulong attention: the pattern is "
            "the mask (static caches bring such a mask too: use the ordinary DynamicCache)"
        )
    if not isinstance(span, Span):
        raise ValueError(
            "the prulong attention is called without its own mask function: call the whole language model, with the "
            "ordinary DynamicCache or none"
        )
    if key.shape[2] != span.end or query.shape[2] != span.end - span.start:
        raise ValueError(
            f"layer {module.layer_idx} gets {key.shape[2]} keys and {query.shape[2]} queries, expected {span.end} and "
            f"{span.end - span.start}: the prulong attention reads keys by position, so none may be missing from the "
            "cache; use the ordinary DynamicCache and shorten it at its end only"
        )
    if module.layer_idx != 0:
        return
    # Once per forward pass: it waits for the device.
    if position_ids is None:
        raise ValueError(f"{type(module).__name__} does not tell the prulong attention its position_ids")
    if bool((position_ids != torch.arange(span.start, span.end, device=position_ids.device)).any()):
        raise ValueError(
            f"position_ids that do not count up by one from {span.start} to {span.end - 1} (packed or padded "
            "sequences, keys missing from the cache) are not supported by the prulong attention"
        )
    if not torch.compiler.is_compiling():
        _refuse_moved_keys(module, key, span)


def _refuse_moved_keys(module: torch.nn.Module, key: torch.Tensor, span: Span) -> None:
    """Refuses a cache that lost keys between two calls without a word in the arguments.

    A key of the first layer depends on its token and, rotated, on its position: where the last key of the last call
    is the last one again at another position, keys before it are gone.
    """
    tokens, last = getattr(module, LAST_KEY, (0, None))
    if span.start not in (0, tokens) and _holds_row(key[:, :, span.start - 1 : span.start], last):
        raise ValueError(
            f"the cached key of position {tokens - 1} stands at {span.start - 1}: keys were removed from the cache, "
            "but the prulong attention reads keys by position; keep the cache whole, or shorten it at its end only"
        )
    setattr(module, LAST_KEY, (span.end, key[:, :, -1:].clone()))


def _holds_row(rows: torch.Tensor, others: torch.Tensor | None) -> bool:
    """Whether one of `rows`, [B, ...], is one of `others` and is not zero."""
    if others is None or (rows.shape[1:], rows.dtype, rows.device) != (others.shape[1:], others.dtype, others.device):
        return False
    same = (rows[:, None] == others[None]).flatten(2).all(-1) & rows.flatten(1).any(-1, keepdim=True)
    return bool(same.any())


def _heads_on(module: torch.nn.Module, device: torch.device) -> torch.Tensor:
    heads = getattr(module, HEADS)
    if heads.device != device:
        heads = heads.to(device)
        if device.type != "meta" and type(heads) is torch.Tensor:  # not a fake tensor: it has values to keep
            setattr(module, HEADS, heads)
    return heads


def _packed(x: torch.Tensor) -> torch.Tensor:
    """[B, H, S, D] -> [B * S, H, D], without a copy for one sequence."""
    return x[0].transpose(0, 1) if x.shape[0] == 1 else x.transpose(1, 2).flatten(0, 1)


def _cu_seqlens(batch: int, length: int, device: torch.device) -> torch.Tensor:
    return torch.arange(batch + 1, dtype=torch.int32, device=device) * length
