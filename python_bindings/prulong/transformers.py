# SPDX-License-Identifier: MIT
"""Runs transformers models with a pattern, through the library's own hook for attention functions.

Memory: every head still stores all keys and values in the ordinary cache. A local head reads only its sink and window,
so what is computed is what the pattern says, but no memory is saved yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .ops import masked_attention
from .pattern import Pattern

if TYPE_CHECKING:
    import transformers

_NAME = "prulong"
_HEADS = "prulong_is_global"  # buffer of an attention module: [kv_heads] bool, moves with the model
_LOCALITY = "prulong_locality"  # attribute beside it: (sink, window)
_PREVIOUS = "_prulong_previous"  # of the model: the attention implementation to go back to

# Arguments of attention functions that change what is computed. None means that the model does not use it.
_UNSUPPORTED = {
    "sliding_window": "sliding windows",
    "softcap": "soft-capped scores",
    "s_aux": "learned sink logits",
    "position_bias": "position biases",
    "cache": "paged caches (continuous batching)",
    "cu_seq_lens_q": "several packed sequences in one row",
}


def apply(model: transformers.PreTrainedModel, pattern: Pattern) -> None:
    """Makes every attention layer of `model` follow `pattern`, until `remove` or another `apply`.

    Local heads see the first `sink` tokens and the last `window` tokens, the query included, by true position: in one
    prefill, in chunked prefill and token by token alike. Works with model(...) and model.generate(...), the ordinary
    DynamicCache, one sequence or several of equal length without padding, transformers 4.56 to 5.x. Not for training:
    call the model under torch.no_grad(), as generate does.

    All keys and values stay in the cache, also those that no head reads any more: no memory is saved yet.

    Raises:
        ValueError: the pattern is for another shape of model, the model shares its config with one that has a pattern,
            or it has no attention layers that can be replaced; the model is unchanged then. During the forward pass: padding, packed sequences, sliding windows,
            soft caps, dropout, other caches, gradients.
    """
    pattern.check_fits(model.config)
    layers = _attention_layers(model, pattern.model.layers)
    _register()
    previous = getattr(model, _PREVIOUS, None) or model.config._attn_implementation
    if previous == _NAME:
        raise ValueError(
            f"this {type(model).__name__} shares its config with a model that has a pattern: either would switch the "
            "other's attention; build each model from a copy of the config (copy.deepcopy)"
        )
    if model.config._attn_implementation != _NAME:
        model.set_attn_implementation(_NAME)
        if model.config._attn_implementation != _NAME:  # transformers only warns
            raise ValueError(f"{type(model).__name__} does not let its attention function be replaced")
    setattr(model, _PREVIOUS, previous)
    for layer, module in enumerate(layers):
        heads = torch.tensor(pattern.mask[layer], dtype=torch.bool, device=next(module.parameters()).device)
        module.register_buffer(_HEADS, heads, persistent=False)
        setattr(module, _LOCALITY, (pattern.sink, pattern.window))


def remove(model: transformers.PreTrainedModel) -> None:
    """Gives `model` its own attention back; does nothing to a model without a pattern."""
    previous = getattr(model, _PREVIOUS, None)
    if previous is None:
        return
    model.set_attn_implementation(previous)
    delattr(model, _PREVIOUS)
    for module in model.modules():
        if hasattr(module, _LOCALITY):
            delattr(module, _LOCALITY)
            delattr(module, _HEADS)


def _attention_layers(model: torch.nn.Module, layers: int) -> list[torch.nn.Module]:
    """The attention modules in layer order, found by what the attention function needs of them."""
    found = {
        module.layer_idx: module
        for module in model.modules()
        if hasattr(module, "layer_idx") and hasattr(module, "k_proj") and hasattr(module, "q_proj")
    }
    if sorted(found) != list(range(layers)):
        raise ValueError(
            f"{type(model).__name__}: expected attention modules of layers 0 to {layers - 1}, found "
            f"{sorted(found) or 'none'}"
        )
    return [found[layer] for layer in range(layers)]


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(_NAME, _attention)
    # Without a mask function of the same name transformers would drop a padding mask without a word.
    AttentionMaskInterface.register(_NAME, _mask)


def _mask(
    batch_size: int,
    kv_length: int,
    kv_offset: int = 0,
    cache_position: torch.Tensor | None = None,
    q_length: int | None = None,
    q_offset: int | torch.Tensor = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    **unused: Any,
) -> None:
    """Called once per forward pass; causality is the attention function's own, so there is nothing to return.

    transformers before 5.3 says where the queries are with `cache_position`, later ones with `q_offset` and `q_length`.
    """
    from transformers.masking_utils import causal_mask_function

    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError(
            "attention_mask marks padding, which the prulong attention does not support: pass one sequence, or several "
            "of equal length"
        )
    if cache_position is not None:
        end = int(cache_position[-1]) + 1
    else:
        # Earlier versions wrap the function for packed sequences even where there are none; _attention sees those.
        if mask_function is not causal_mask_function:
            raise ValueError(
                "only causal attention over whole sequences is supported by the prulong attention: no packed sequences "
                "in one row, no sliding windows, no bidirectional blocks"
            )
        end = int(q_offset) + int(q_length or 0)
    if kv_length != end or kv_offset != 0:
        raise ValueError(
            f"the cache offers {kv_length} keys from position {kv_offset}, expected {end} from 0: only the ordinary "
            "DynamicCache is supported by the prulong attention"
        )


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [B, Hq, Sq, D], key and value [B, Hkv, Sk, D] -> [B, Sq, Hq, D]; queries are the last of the keys."""
    heads = getattr(module, _HEADS, None)
    if heads is None:
        raise ValueError("this model has the prulong attention but no pattern: call prulong.apply(model, pattern)")
    _refuse_unsupported(module, query, key, value, attention_mask, dropout, is_causal, position_ids, kwargs)
    sink, window = getattr(module, _LOCALITY)
    batch, _, q_length, head_dim = query.shape
    k_length = key.shape[2]
    out, _ = masked_attention(
        _packed(query),
        _packed(key),
        _packed(value),
        heads,
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
    attention_mask: torch.Tensor | None,
    dropout: float,
    is_causal: bool | None,
    position_ids: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> None:
    for name, what in _UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"{what} ({name}) are not supported by the prulong attention")
    if attention_mask is not None:
        raise ValueError(
            f"an attention mask of shape {tuple(attention_mask.shape)} is not supported by the prulong attention: the "
            "pattern is the mask"
        )
    if dropout != 0.0:
        raise ValueError(f"attention dropout {dropout} is not supported by the prulong attention: call model.eval()")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise ValueError("bidirectional attention is not supported by the prulong attention")
    if kwargs.get("output_attentions"):
        raise ValueError("output_attentions is not supported by the prulong attention: it never has the weights")
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        raise ValueError("the prulong attention has no gradients: call the model under torch.no_grad()")
    # Once per forward pass: it waits for the device.
    if module.layer_idx == 0 and position_ids is not None and position_ids.shape[-1] > 1:
        if bool((position_ids.diff(dim=-1) != 1).any()):
            raise ValueError(
                "position_ids that do not count up by one (packed or padded sequences) are not supported by the "
                "prulong attention"
            )


def _packed(x: torch.Tensor) -> torch.Tensor:
    """[B, H, S, D] -> [B * S, H, D], without a copy for one sequence."""
    return x[0].transpose(0, 1) if x.shape[0] == 1 else x.transpose(1, 2).flatten(0, 1)


def _cu_seqlens(batch: int, length: int, device: torch.device) -> torch.Tensor:
    return torch.arange(batch + 1, dtype=torch.int32, device=device) * length
