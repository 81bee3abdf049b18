# SPDX-License-Identifier: MIT
"""The cache of a transformers model with a pattern: it holds what the pattern keeps, and gives the rest back.

Each row of the batch is a sequence of one KvCache of the C++ library (engine/kv_cache.h): padding is not stored, beams
share the pages of what they have in common, a draft that is refused is taken back.
"""

from __future__ import annotations

import inspect
import os
from typing import Any, NoReturn

import torch
import transformers
from transformers.cache_utils import DynamicLayer

from . import _C
from ._attention import PATTERN, Pass
from .pattern import Pattern

_MOST_PAGES = 1 << 23  # the book of a larger pool would cost memory itself
_CROP_REMOVES = "tokens_to_remove" in inspect.signature(transformers.Cache.crop).parameters  # else: crop(length)


class Cache(transformers.Cache):
    """Keys and values of the tokens so far, as far as the pattern's heads still see them.

    A model with a pattern (prulong.apply) makes one by itself, in generate and in model(...): every empty DynamicCache
    becomes one at its first use. Make one yourself to keep more tokens that can be taken back.

    All of what generate does works: left padding, prefill in chunks, beams, prompt lookup and assistant models, further
    calls with the same cache. copy.deepcopy shares the memory of what both have in common. There are no tensors of keys
    and values to look at, and nothing can be saved: keep the tokens. Of a model over several devices all keys and
    values lie on the first layer's.
    """

    def __init__(self, pattern: Pattern | torch.nn.Module, *, slack: int = 64) -> None:
        """
        Args:
            pattern: the pattern, or the model that it is applied to.
            slack: how many last tokens `crop` can take back once local heads have given keys back; as many more stay in
                each local head. Drafts (num_assistant_tokens, prompt_lookup_num_tokens) must not be longer.
        """
        if isinstance(pattern, torch.nn.Module):
            model = pattern
            pattern = next((module.__dict__[PATTERN] for module in model.modules() if PATTERN in module.__dict__), None)
            if pattern is None:
                raise ValueError(f"{type(model).__name__} has no pattern: call prulong.apply(model, pattern) first")
        if not isinstance(pattern, Pattern):
            raise TypeError(
                f"pattern: expected a prulong.Pattern or a model with one, found {type(pattern).__name__}: read one "
                "with prulong.Pattern.load"
            )
        if slack < 0:
            raise ValueError(f"slack: expected 0 or more tokens, found {slack}")
        super().__init__(layers=[_Layer() for _ in range(pattern.model.layers)])
        self._pattern = pattern
        self._slack = slack
        self._clear()

    def _clear(self) -> None:
        self._kv: _C.KvCache | None = None  # made by the first pass, which brings dtype and device
        self._layout: tuple[Any, ...] = ()  # dtype, device and head_dim of what it holds
        self._sequences: list[int] = []  # of each row
        self._pads: tuple[int, ...] = ()  # of each row
        self._columns = 0  # tokens so far, padding included
        self._pass: Pass | None = None
        self._attention: _C.CachedAttention | None = None  # of the pass
        self._next_layer = 0  # of the pass
        self._depth = len(self.layers)  # layers that have seen every token: fewer after a pass that ended early
        self._announced: int | None = None  # layer whose update is due

    @staticmethod
    @torch.compiler.disable
    def of(cache: Any, pattern: Pattern, layer: int) -> Cache:
        """The cache that a layer of a model with this pattern is called with: its next update is that layer's. An empty
        DynamicCache becomes one.

        Raises:
            ValueError: any other cache, and one of another pattern.
        """
        if type(cache) is transformers.DynamicCache and _is_plain(cache):
            if cache.get_seq_length() > 0:
                raise ValueError(
                    f"the DynamicCache holds {cache.get_seq_length()} tokens from before the pattern: begin with an "
                    "empty one, a prulong.Cache or none"
                )
            # In place, because generate or its caller holds it.
            cache.__class__ = Cache
            cache.__init__(pattern)
        if not isinstance(cache, Cache):
            raise ValueError(
                f"{type(cache).__name__} is not supported by the prulong attention (only the ordinary DynamicCache is, "
                "which neither slides nor is offloaded): pass an empty DynamicCache, a prulong.Cache or none"
            )
        own = cache._pattern
        if own is not pattern and (own.mask, own.sink, own.window) != (pattern.mask, pattern.sink, pattern.window):
            raise ValueError(
                "the prulong.Cache was made for another pattern than the model's: its local heads hold other keys; use "
                "a new one"
            )
        cache._announced = layer
        return cache

    # --- one pass, layer by layer -------------------------------------------------------------------------------------

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hands the new keys and values through; the layer's attention stores them."""
        if self._announced != layer_idx:
            raise ValueError(
                "a prulong.Cache works in the model that its pattern is applied to alone: call prulong.apply(model, "
                "pattern), or pass another cache"
            )
        self._announced = None
        return key_states, value_states

    @torch.compiler.disable
    def attend(
        self, layer: int, new: Pass, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """Stores the pass's keys and values of a layer, k and v [T, Hkv, D], and attends: q [T, Hq, D] -> [T, Hq, D].

        Raises:
            ValueError: the call does not go on where this cache ends, or there is not enough memory.
        """
        if torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:
            q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
        if new is not self._pass:
            self._begin(new, k, scale)
        if layer != self._next_layer or layer >= self._depth:
            self._refuse_layer(layer)
        assert self._attention is not None
        device = q.device
        if device != self._layout[1]:  # a model over several devices: all of the cache is on the first layer's
            q, k, v = (x.to(self._layout[1]) for x in (q, k, v))
        out = self._attention.attend(layer, q, k, v) if q.shape[0] else q  # none in a chunk of padding
        self._next_layer += 1
        if self._next_layer == len(self.layers):
            self._end(new)
        return out.to(device)

    def _begin(self, new: Pass, k: torch.Tensor, scale: float | None) -> None:
        if self._pass is not None:
            self._depth = min(self._depth, self._next_layer)
        if new.start != self._columns:
            raise ValueError(f"the pass begins at token {new.start}, but the cache holds {self._columns}")
        if not self._sequences:
            kv = self._storage(k)
            self._sequences, self._pads = [kv.add() for _ in new.pads], (0,) * new.batch
        if len(new.pads) != len(self._sequences):
            raise ValueError(
                f"the input has {len(new.pads)} rows, the cache {len(self._sequences)}: use a new cache for another "
                "batch, or batch_select_indices or batch_repeat_interleave"
            )
        for row, (now, before) in enumerate(zip(new.pads, self._pads)):
            if now != before and (now < before or before < self._columns):  # it grows while there is nothing else
                raise ValueError(
                    f"attention_mask marks {now} tokens of row {row} as padding, but the cache was filled with "
                    f"{before}: pass the mask of all tokens, those in the cache included"
                )
        if (found := (k.dtype, k.device, k.shape[-1])) != self._layout:
            raise ValueError(f"keys are {_text(found)}, but the cache holds {_text(self._layout)}: use a new cache")
        assert self._kv is not None
        self._attention = self._kv.append(self._sequences, new.counts, 0.0 if scale is None else float(scale))
        self._pass, self._next_layer, self._pads, self._columns = new, 0, new.pads, new.end

    def _end(self, new: Pass) -> None:
        self._attention = None
        # What a long prompt needed goes back; later passes are no longer than a draft.
        if self._kv is not None and max(new.counts) > self._slack + 1:
            self._kv.trim()

    def _refuse_layer(self, layer: int) -> NoReturn:
        if layer >= self._depth:
            raise ValueError(
                f"layer {layer} has not seen all tokens in the cache, because an earlier pass ended before it: use a "
                "new cache, or reset this one"
            )
        raise ValueError(
            f"layer {layer} attends when it is layer {self._next_layer}'s turn: a prulong.Cache is for models whose "
            "layers run in order, each once"
        )

    def _storage(self, k: torch.Tensor) -> _C.KvCache:
        if self._kv is None:
            shape, mask = self._pattern.model, self._pattern.mask
            page = 128 if k.device.type == "cuda" else 32  # entries: the key block of the kernels
            page_bytes = 2 * page * k.shape[-1] * k.element_size()
            with torch.inference_mode(False):  # else later passes could not write to it outside of that mode
                self._kv = _C.KvCache(
                    layers=shape.layers,
                    kv_heads=shape.kv_heads,
                    head_dim=k.shape[-1],
                    is_global=[int(value) for row in mask for value in row],
                    sink=self._pattern.sink,
                    window=self._pattern.window,
                    slack=self._slack,
                    page=page,
                    # Only addresses are reserved; memory is taken page by page.
                    bytes=min(_memory_of(k.device), _MOST_PAGES * page_bytes),
                    dtype=k.dtype,
                    device=k.device,
                )
            self._layout = (k.dtype, k.device, k.shape[-1])
        return self._kv

    # --- what transformers asks ---------------------------------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of each row so far, padding included."""
        return self._columns

    def get_mask_sizes(self, query_length: int | torch.Tensor, layer_idx: int = 0) -> tuple[int, int]:
        """Keys that there are with the new queries' own, and where they begin. In earlier versions of transformers the
        argument is a tensor of the queries' positions."""
        count = query_length.shape[0] if isinstance(query_length, torch.Tensor) else query_length
        return self._columns + count, 0

    def get_max_cache_shape(self, layer_idx: int | None = None) -> int:
        """No bound: -1."""
        return -1

    get_max_length = get_max_cache_shape  # its later name

    # --- what generate does with it -----------------------------------------------------------------------------------

    def crop(self, n: int) -> None:
        """Takes the last -n tokens of each row back. In earlier versions of transformers (5.12 for one) a
        positive n is the length to keep.

        Raises:
            ValueError: local heads have given back keys that would be seen then (see slack), or n is positive in later
                versions.
        """
        if _CROP_REMOVES and n > 0:
            raise ValueError(f"crop takes the number of tokens to remove as a negative number, found {n}")
        remove = -n if n < 0 or _CROP_REMOVES else self._columns - n
        remove = min(remove, self._columns)
        if remove <= 0:
            return
        shortened = [self._kv.fork(sequence) for sequence in self._sequences]  # all rows or none
        try:
            for sequence, pad in zip(shortened, self._pads):
                self._kv.truncate(sequence, min(remove, self._columns - pad))
        except ValueError:
            for sequence in shortened:
                self._kv.drop(sequence)
            raise
        self._drop()
        self._sequences = shortened
        self._columns -= remove
        self._pads = tuple(min(pad, self._columns) for pad in self._pads)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes what row beam_idx[i] was; what rows have in common is stored once."""
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times; what they have in common is stored once."""
        self._select([row for row in range(len(self._sequences)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows."""
        self._select(torch.arange(len(self._sequences))[indices].tolist())

    def _select(self, rows: list[int]) -> None:
        if not self._sequences:
            return
        old, pads, kept = self._sequences, self._pads, set()
        self._sequences = []
        for row in rows:
            self._sequences.append(self._kv.fork(old[row]) if row in kept else old[row])
            kept.add(row)
        for row in set(range(len(old))) - kept:
            self._kv.drop(old[row])
        self._pads = tuple(pads[row] for row in rows)

    def reset(self) -> None:
        """Forgets all tokens and gives their memory back."""
        self._drop()
        if self._kv is not None:  # a copy may have it too
            self._kv.trim()
        self._clear()

    def bytes(self) -> dict[str, int]:
        """Memory of keys and values, in bytes.

        Returns:
            "allocated", taken from the system; "in_use", pages that hold keys and values; "peak", most in use so far,
            while a layer attends included; "full", what full attention would hold for the same tokens, padding not
            counted. Copies share memory: the first three are of all of them.
        """
        if self._kv is None:
            return {"allocated": 0, "in_use": 0, "peak": 0, "full": 0}
        tokens = sum(self._kv.tokens(sequence) for sequence in self._sequences)
        dtype, _, head_dim = self._layout
        return {**self._kv.bytes(), "full": tokens * self._pattern.heads * head_dim * 2 * dtype.itemsize}

    # --- copies and files ---------------------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        copy = Cache(self._pattern, slack=self._slack)
        copy._kv, copy._layout, copy._pads, copy._columns = self._kv, self._layout, self._pads, self._columns
        copy._sequences = [self._kv.fork(sequence) for sequence in self._sequences]
        copy._depth = self._depth if self._attention is None else min(self._depth, self._next_layer)
        return copy

    def __copy__(self) -> Cache:
        return self.__deepcopy__({})

    def __reduce__(self) -> NoReturn:
        _refuse_tensors()

    def _drop(self) -> None:
        for sequence in self._sequences:
            self._kv.drop(sequence)
        self._sequences = []

    def __del__(self) -> None:
        if "_sequences" in self.__dict__:
            self._drop()

    def __iter__(self) -> NoReturn:
        _refuse_tensors()

    def __getitem__(self, layer: int) -> NoReturn:
        _refuse_tensors()

    def to_legacy_cache(self) -> NoReturn:
        """Refused: there are no tensors of keys and values."""
        _refuse_tensors()

    def early_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: memory is taken as it is needed."""


class _Layer:
    """What transformers asks of a cache's layer."""

    is_sliding = False
    is_compileable = False
    is_croppable = True
    is_initialized = False
    supports_early_init = False

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"a prulong.Cache keeps keys and values in pages of its own: a layer of it has no {name!r}; ask the cache"
        )


def _is_plain(cache: transformers.DynamicCache) -> bool:
    return not getattr(cache, "offloading", False) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _text(layout: tuple[Any, ...]) -> str:
    dtype, device, head_dim = layout
    return f"{dtype} of {head_dim} on {device}"


def _refuse_tensors() -> NoReturn:
    raise ValueError(
        "a prulong.Cache has no tensors of keys and values to read or save: keep the tokens and compute it again"
    )
