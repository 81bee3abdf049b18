# SPDX-License-Identifier: MIT
"""The attention function and the mask function that transformers calls for a model with a pattern (transformers.py)."""

from __future__ import annotations

import functools
from typing import Any

import torch

from .ops import masked_attention

# Plain attributes of an attention layer of a model with a pattern.
PATTERN = "prulong_pattern"
HEADS = "prulong_is_global"  # [kv_heads] bool, on the device last used

# Arguments of attention functions that change what is computed. None means that the model does not use it.
_UNSUPPORTED = {
    "sliding_window": "sliding windows",
    "softcap": "soft-capped scores",
    "s_aux": "learned sink logits",
    "position_bias": "position biases",
    "cache": "paged caches (continuous batching)",
    "cu_seq_lens_q": "several packed sequences in one row",
}


class Pass:
    """One forward pass, which the mask function hands to the attention layers in place of a mask.

    A batch of rows; queries stand in the columns [start, end), the first `pads[row]` columns of a row are padding. A
    row is a sequence of its own: without its padding, the token of column c stands at position c - pads[row].
    """

    def __init__(self, batch: int, start: int, end: int, pads: tuple[int, ...] | None) -> None:
        self.batch, self.start, self.end = batch, start, end
        self.pads = pads if pads is not None and any(pads) else (0,) * batch
        """Columns of padding at the left of each row, at most `end`."""
        self.counts = [end - max(start, pad) for pad in self.pads]
        """Each row's queries that are no padding."""
        self.columns = end - start
        self.has_padding = sum(self.counts) != batch * self.columns
        """Whether there is padding among the queries."""
        self.positions_are_checked = False

    @functools.cached_property
    def _rows(self) -> torch.Tensor:
        """Queries that are no padding, as numbers of rows of the flat batch."""
        return torch.cat(
            [
                torch.arange((row + 1) * self.columns - count, (row + 1) * self.columns)
                for row, count in enumerate(self.counts)
            ]
        )

    def packed(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, S, D] -> [T, H, D] without the padding, and without a copy for one sequence."""
        if self.batch == 1 and not self.has_padding:
            return x[0].transpose(0, 1)
        flat = x.transpose(1, 2).flatten(0, 1)
        return flat[self._rows_on(x.device)] if self.has_padding else flat

    def unpacked(self, x: torch.Tensor) -> torch.Tensor:
        """[T, H, D] -> [B, S, H, D], zeros for the padding."""
        if self.has_padding:
            flat = x.new_zeros(self.batch * self.columns, *x.shape[1:])
            x = flat.index_copy_(0, self._rows_on(x.device), x)
        return x.reshape(self.batch, self.columns, *x.shape[1:])

    def cu_seqlens(self, device: torch.device) -> torch.Tensor:
        """[B + 1]: where each row's queries begin in the packed ones."""
        if not self.has_padding:
            return torch.arange(self.batch + 1, dtype=torch.int32, device=device) * self.columns
        return torch.tensor([0, *self.counts], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)

    def positions(self, device: torch.device) -> torch.Tensor:
        """[B, S], or [1, S] where all rows have the same; negative for padding."""
        columns = torch.arange(self.start, self.end, device=device)[None]
        return columns - torch.tensor(self.pads, device=device)[:, None] if any(self.pads) else columns

    def _rows_on(self, device: torch.device) -> torch.Tensor:
        if self._rows.device != device:
            self._rows = self._rows.to(device)
        return self._rows


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
) -> Pass:
    """Called once per forward pass; causality is `attention`'s own.

    transformers before 5.3 says where the queries are with `cache_position`, later ones with `q_offset` and `q_length`.
    """
    from transformers.masking_utils import causal_mask_function

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
            f"the cache offers {kv_length} keys from position {kv_offset}, expected {end} from 0: static and sliding "
            "caches are not supported by the prulong attention; pass an empty DynamicCache, a prulong.Cache, or none"
        )
    if attention_mask is not None and attention_mask.shape[-1] != end:
        raise ValueError(
            f"attention_mask covers {attention_mask.shape[-1]} tokens, the cache and the input hold {end}: the prulong "
            "attention reads keys by position, so none may be missing; pass a mask of all tokens, or none"
        )
    warn_beyond = getattr(config, "warn_beyond", None)  # none: the model has our attention, but no pattern
    if warn_beyond is not None:
        warn_beyond(end)
    return Pass(batch_size, start, end, _left_padding(attention_mask))


def _left_padding(attention_mask: torch.Tensor | None) -> tuple[int, ...] | None:
    """Columns of padding at the left of each row; None if there are none."""
    if attention_mask is None or bool(attention_mask.all()):
        return None
    seen = attention_mask.bool()
    pads = (~seen).sum(-1)
    columns = torch.arange(seen.shape[-1], device=seen.device)
    if bool((seen != (columns >= pads[:, None])).any()):
        raise ValueError(
            "attention_mask marks padding at the right of a row or within it, which the prulong attention does not "
            "support: put it at the left (tokenizer.padding_side = 'left')"
        )
    return tuple(pads.tolist())


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Pass | torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_ids: torch.Tensor | None = None,
    prulong_cache: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Called by every layer: query [B, Hq, S, D], key and value [B, Hkv, S, D] of the new tokens -> [B, S, Hq, D].

    Earlier ones are in the cache, if there is one (a prulong.Cache, transformers.py hands it over).
    """
    pattern = getattr(module, PATTERN, None)
    if pattern is None:
        raise ValueError("this model has the prulong attention but no pattern: call prulong.apply(model, pattern)")
    _refuse_unsupported(module, query, key, value, dropout, is_causal, kwargs)
    new = attention_mask
    _refuse_other_positions(module, query, key, new, position_ids)
    q, k, v = new.packed(query), new.packed(key), new.packed(value)
    if prulong_cache is not None:
        return new.unpacked(prulong_cache.attend(module.layer_idx, new, q, k, v, scaling)), None
    bounds, longest = new.cu_seqlens(q.device), max(new.counts)
    out, _ = masked_attention(
        q,
        k,
        v,
        _heads_on(module, q.device),
        bounds,
        bounds,
        longest,
        longest,
        sink=pattern.sink,
        window=pattern.window,
        scale=scaling,
    )
    return new.unpacked(out), None


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
    new: Pass | torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> None:
    """Refuses a call in which a token may stand elsewhere than at its position."""
    if isinstance(new, torch.Tensor):
        raise ValueError(
            f"an attention mask of shape {tuple(new.shape)} is not supported by the prulong attention: the pattern is "
            "the mask (static caches bring such a mask too: use an empty DynamicCache)"
        )
    if not isinstance(new, Pass):
        raise ValueError(
            "the prulong attention is called without its own mask function: call the whole language model, with an "
            "empty DynamicCache, a prulong.Cache or none"
        )
    if not query.shape[2] == key.shape[2] == new.columns or query.shape[0] != new.batch:
        raise ValueError(
            f"layer {module.layer_idx} gets {key.shape[2]} keys and {query.shape[2]} queries in {query.shape[0]} rows, "
            f"expected {new.columns} new ones in {new.batch}: the prulong attention keeps earlier keys itself; pass an "
            "empty DynamicCache, a prulong.Cache or none"
        )
    if new.positions_are_checked:
        return
    # Once per forward pass: it waits for the device.
    if position_ids is None:
        raise ValueError(f"{type(module).__name__} does not tell the prulong attention its position_ids")
    expected = new.positions(position_ids.device)
    if bool(((position_ids != expected) & (expected >= 0)).any()):
        if any(new.pads):
            raise ValueError(
                "position_ids of a padded batch must count up by one from each row's first token: pass position_ids = "
                "attention_mask.cumsum(-1) - 1, as generate does (not with prefill_chunk_size in transformers 4.56 to "
                "5.2: a padded batch in chunks goes wrong there with any attention)"
            )
        raise ValueError(
            f"position_ids that do not count up by one from {new.start} to {new.end - 1} (packed or padded "
            "sequences, keys missing from the cache, prefill_chunk_size in transformers 5.2) are not supported by the "
            "prulong attention"
        )
    new.positions_are_checked = True


def _heads_on(module: torch.nn.Module, device: torch.device) -> torch.Tensor:
    heads = getattr(module, HEADS)
    if heads.device != device:
        heads = heads.to(device)
        if device.type != "meta" and type(heads) is torch.Tensor:  # not a fake tensor: it has values to keep
            setattr(module, HEADS, heads)
    return heads
