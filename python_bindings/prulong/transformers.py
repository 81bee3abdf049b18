# SPDX-License-Identifier: MIT
"""Runs transformers models with a pattern, through the library's own hook for attention functions.

Mechanism, four parts:

- transformers looks up the function of an attention layer, and the one that makes its mask, under the name that the
  config gives. `apply` puts a `_PatternConfig` in the place of the config of the language model and of its attention
  layers, and of nothing else: a view of the same config in which that name is ours. Vision towers, wrappers and other
  models built from the config keep what they had; `remove` puts the config back.
- Beside it each attention layer gets its heads and the pattern as plain attributes. They are no part of the state, so
  nothing that moves, converts, empties or loads weights reaches them; they follow the layer through copy and pickle.
- Once per forward pass the mask function checks what the call says about keys and padding, and hands the layers what
  it found instead of a mask. A layer that gets anything else, or other keys than that, refuses (_attention.py): the
  pattern reads keys by position, so missing or moved ones would be read wrongly without a word.
- Before each attention layer runs, a hook hands its cache on to the attention function: a prulong.Cache (cache.py),
  which an empty DynamicCache becomes there. What local heads do not see any more is freed.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import torch

from ._attention import HEADS, PATTERN
from ._attention import attention as _attention
from ._attention import mask as _mask
from .pattern import Pattern

if TYPE_CHECKING:
    import transformers

_NAME = "prulong"
_HOOK = "prulong_hook"  # an attribute of an attention layer, as those of _attention.py
_CACHE_NAMES = ("cache", "past_key_values")  # of the argument, from 5.2x on and before


def apply(model: torch.nn.Module, pattern: Pattern) -> None:
    """Makes every attention layer of the language model in `model` follow `pattern`, until `remove` or another `apply`.

    Local heads see the first `sink` tokens and the last `window` tokens, the query included, by true position: in one
    prefill, in chunked prefill and token by token alike. Works with model(...) and model.generate(...), batches with
    padding at the left, prefill_chunk_size, beams, prompt lookup and assistant models, transformers 4.56 to 5.x, under
    autocast and torch.compile. Not for training: call the model under torch.no_grad(), as generate does.

    The cache frees what no head sees any more: the one that the model makes, and every empty DynamicCache that it is
    called with, becomes a prulong.Cache (`out.past_key_values.bytes()` tells, `out.cache.bytes()` in newer versions).
    Drafts of up to 64 tokens can be taken back; pass a prulong.Cache(pattern, slack=...) for longer ones. A long prompt
    takes least memory with prefill_chunk_size. Any other cache is refused.

    `model` may be a language model, one with towers beside it (LLaVA) or a wrapper (PEFT); weights may be quantised,
    offloaded or on the meta device. The pattern follows the model through copy.deepcopy and pickle (torch.save of the
    whole model), is no part of state_dict or save_pretrained, and is not taken over from the model's config.
    model.set_attn_implementation does not end it; it chooses what `remove` gives back. Beyond max_position_embeddings
    the model warns once.

    Raises:
        TypeError: not a module, not a Pattern.
        ValueError: the pattern is for another shape of model, or there are no attention layers that can be replaced;
            the model is unchanged then. During the forward pass: padding at the right, packed sequences, positions that
            do not count up from 0, static, sliding, quantised and offloaded caches, those of encoder-decoders and of
            continuous batching, a DynamicCache filled without the pattern, sliding windows, soft caps, dropout,
            gradients.
    """
    _require_module(model)
    if not isinstance(pattern, Pattern):
        raise TypeError(
            f"pattern: expected a prulong.Pattern, found {type(pattern).__name__}: read one with prulong.Pattern.load"
        )
    host, layers = _language_model(model, pattern)
    views: dict[int, _PatternConfig] = {}
    for module in (host, *layers):
        own = _own_config(module)
        module.config = views.setdefault(id(own), _PatternConfig(own))
    for row, module in zip(pattern.mask, layers):
        setattr(module, HEADS, torch.tensor(row, dtype=torch.bool, device="cpu"))
        setattr(module, PATTERN, pattern)
        if _HOOK not in module.__dict__:
            setattr(module, _HOOK, module.register_forward_pre_hook(_hand_over, with_kwargs=True))


def remove(model: torch.nn.Module) -> None:
    """Gives `model`, and every model in it, its own attention back; does nothing to a model without a pattern.

    Raises:
        TypeError: not a module.
        ValueError: `model` holds attention layers of a model with a pattern, but not that model.
    """
    _require_module(model)
    held = [module for module in model.modules() if type(module.__dict__.get("config")) is _PatternConfig]
    if held and all(_is_attention(module) for module in held):
        raise ValueError(
            f"{type(model).__name__} holds attention layers of a model with a pattern, not the model: call "
            "prulong.remove with the whole model"
        )
    for module in held:
        module.config = _own_config(module)
        for name in (HEADS, PATTERN):
            module.__dict__.pop(name, None)
        hook = module.__dict__.pop(_HOOK, None)
        if hook is not None:
            hook.remove()


def _hand_over(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Runs before an attention layer, whose attention function gets the arguments that the layer does not know."""
    cache = next((kwargs[name] for name in _CACHE_NAMES if kwargs.get(name) is not None), None)
    if cache is not None and getattr(module, PATTERN, None) is not None:
        from .cache import Cache  # here, because the package works without transformers

        kwargs = {**kwargs, "prulong_cache": Cache.of(cache, getattr(module, PATTERN), module.layer_idx)}
    return args, kwargs


class _PatternConfig:
    """The config of a model with a pattern, as its layers see it: reads and writes go to the model's own config, save
    that the attention function is ours."""

    def __init__(self, config: transformers.PretrainedConfig) -> None:
        _register()  # here, because a model with a pattern may come out of a file or from another process
        object.__setattr__(self, "_prulong_config", config)
        object.__setattr__(self, "_prulong_warned", False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prulong_config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_attn_implementation", "_attn_implementation_internal"):
            if value == _NAME:
                return
            warnings.warn(
                f"the pattern of this model stays in force, attention {value!r} comes after prulong.remove(model)",
                stacklevel=2,
            )
        setattr(self._prulong_config, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._prulong_config, name)

    @property
    def __class__(self) -> type:  # isinstance(config, PretrainedConfig) holds
        return type(self._prulong_config)

    @property
    def _attn_implementation(self) -> str:
        return _NAME

    @property
    def _attn_implementation_internal(self) -> str:
        return _NAME

    def __reduce__(self) -> tuple[Any, ...]:
        return _PatternConfig, (self._prulong_config,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """In a model's copy it is again the config of a model with a pattern; copied by itself, an ordinary config."""
        alone = not memo
        config = copy.deepcopy(self._prulong_config, memo)
        return config if alone else _PatternConfig(config)

    def __repr__(self) -> str:
        return repr(self._prulong_config)

    def warn_beyond(self, tokens: int) -> None:
        """Says once that a sequence is longer than the model was made for."""
        limit = getattr(self, "max_position_embeddings", None)
        if limit is None or tokens <= limit or self._prulong_warned:
            return
        object.__setattr__(self, "_prulong_warned", True)
        warnings.warn(
            f"a sequence of {tokens} tokens goes beyond the model's {limit} positions (max_position_embeddings): what "
            "it computes there is not what it was trained for, with a pattern or without",
            stacklevel=2,
        )


def _require_module(model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a transformers model or a module around one, found {type(model).__name__}")


def _own_config(module: torch.nn.Module) -> Any:
    config = module.__dict__.get("config")
    return config._prulong_config if type(config) is _PatternConfig else config


def _is_attention(module: torch.nn.Module) -> bool:
    """Whether it is a self-attention layer of a decoder, by what the attention function needs of it."""
    return (
        isinstance(getattr(module, "layer_idx", None), int)
        and "config" in module.__dict__
        and hasattr(module, "q_proj")
        and hasattr(module, "k_proj")
    )


def _language_model(model: torch.nn.Module, pattern: Pattern) -> tuple[torch.nn.Module, list[torch.nn.Module]]:
    """The one transformers model in `model` that the pattern fits, and its attention layers in order: the innermost
    PreTrainedModel around them, because that one makes the masks."""
    from transformers import PreTrainedModel

    groups: dict[int, list[torch.nn.Module]] = {}
    for module in model.modules():
        if _is_attention(module):
            groups.setdefault(id(_own_config(module)), []).append(module)
    fitting = [layers for layers in groups.values() if _mismatch(pattern, _own_config(layers[0])) is None]
    if not fitting:
        for config in (getattr(model, "config", None), *(_own_config(layers[0]) for layers in groups.values())):
            if config is not None and (error := _mismatch(pattern, config)) is not None:
                raise error
    if len(fitting) > 1:
        raise ValueError(
            f"{type(model).__name__} holds {len(fitting)} models that the pattern fits: apply it to one of them"
        )
    layers = sorted(fitting[0], key=lambda module: module.layer_idx) if fitting else []
    found = [module.layer_idx for module in layers]
    if found != list(range(pattern.model.layers)):
        raise ValueError(
            f"{type(model).__name__}: expected attention modules of layers 0 to {pattern.model.layers - 1}, found "
            f"{found or 'none'}"
        )
    # From the outside in; the last one that holds all layers is the innermost.
    hosts = [m for m in model.modules() if isinstance(m, PreTrainedModel) and set(layers) <= set(m.modules())]
    if not hosts:
        raise ValueError(
            f"{type(model).__name__} holds attention layers, but not the transformers model that calls them: apply the "
            "pattern to that model"
        )
    if not hosts[-1]._can_set_attn_implementation():
        raise ValueError(f"{type(hosts[-1]).__name__} does not let its attention function be replaced")
    return hosts[-1], layers


def _mismatch(pattern: Pattern, config: Any) -> ValueError | None:
    """What a model of this config says to the pattern; None if the pattern fits."""
    try:
        pattern.check_fits(config)
    except ValueError as error:
        return error
    except AttributeError:
        return ValueError(
            f"the pattern does not fit the model: {type(config).__name__} tells no layers and heads of attention; use "
            "a pattern made for this model"
        )
    return None


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(_NAME, _attention)
    # Without a mask function of the same name transformers would drop a padding mask without a word.
    AttentionMaskInterface.register(_NAME, _mask)
