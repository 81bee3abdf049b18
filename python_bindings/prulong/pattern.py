# SPDX-License-Identifier: MIT
"""Head patterns: which KV heads keep the whole context, and everything needed to use that.

A Pattern is a value of Python; what it means, and every check and file, is the C++ library's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import _C
from ._C import global_heads

if TYPE_CHECKING:
    import torch
    import transformers


@dataclass(frozen=True)
class ModelShape:
    """The shape of a model, as far as head masks care."""

    type: str
    """Hugging Face model_type, "llama"."""
    layers: int
    kv_heads: int
    query_heads: int
    head_dim: int

    @classmethod
    def of(cls, model: ModelShape | transformers.PretrainedConfig) -> ModelShape:
        """The shape that a transformers config describes; a ModelShape is returned as it is."""
        if isinstance(model, ModelShape):
            return model
        if hasattr(model, "get_text_config"):
            model = model.get_text_config()
        query_heads = model.num_attention_heads
        return cls(
            type=model.model_type,
            layers=model.num_hidden_layers,
            kv_heads=getattr(model, "num_key_value_heads", None) or query_heads,
            query_heads=query_heads,
            head_dim=getattr(model, "head_dim", None) or model.hidden_size // query_heads,
        )


@dataclass(frozen=True)
class Pattern:
    """A mask of global and local KV heads with everything needed to use it.

    Immutable, save that `provenance` is an ordinary dict. Every constructor checks everything and raises ValueError, in
    one line, naming what is wrong; files that cannot be read or written raise OSError.
    """

    model: ModelShape
    sink: int
    """First tokens of a document that local heads see, >= 0."""
    window: int
    """Last tokens, the query included, that local heads see, >= 1."""
    sparsity: float
    """Share of local heads that was asked for, in [0, 1]; `local_fraction` is the share the mask has."""
    scores: tuple[tuple[float, ...], ...]
    """[layers][kv_heads]; larger stays global longer."""
    mask: tuple[tuple[bool, ...], ...]
    """[layers][kv_heads]; True = global, False = local."""
    provenance: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Free text by key: data, steps, seed, config_hash, versions, source."""

    def __post_init__(self) -> None:
        # Lists, arrays and tensors are welcome; what is stored compares by value.
        for name, value in _C.checked_fields(self).items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_scores(
        cls,
        model: ModelShape | transformers.PretrainedConfig,
        scores: Sequence[Sequence[float]] | torch.Tensor,
        sparsity: float,
        sink: int,
        window: int,
        provenance: Mapping[str, str] | None = None,
    ) -> Pattern:
        """Ranks all heads by score, ties by (layer, head), the earlier one first, and makes exactly
        global_heads(sparsity, layers * kv_heads) of them global.

        Args:
            scores: [layers, kv_heads], finite.
            sparsity: share of heads to make local, in [0, 1].
            sink, window: tokens that local heads see.
        """
        return _C.from_scores(ModelShape.of(model), scores, sparsity, sink, window, provenance or {})

    @classmethod
    def load(cls, path: str | Path) -> Pattern:
        """Reads a pattern file, or pattern.json of a folder; anything unknown or inconsistent in it is refused."""
        return _C.load(Path(path))

    @classmethod
    def from_duo_attention(
        cls,
        folder: str | Path,
        model: ModelShape | transformers.PretrainedConfig,
        sparsity: float,
        *,
        sink: int | None = None,
        window: int | None = None,
    ) -> Pattern:
        """Imports a DuoAttention folder: full_attention_heads.tsv, and config.json for sink_size and recent_size.

        The scores are kept as they are and ranked. `sparsity` has no default because DuoAttention's scores are no mask:
        thresholded at 0.5 they call nearly every head of a GQA model global.
        """
        return _C.import_head_table(Path(folder), ModelShape.of(model), sparsity, sink, window)

    @classmethod
    def from_tsv(
        cls,
        file: str | Path,
        model: ModelShape | transformers.PretrainedConfig,
        sink: int,
        window: int,
        sparsity: float | None = None,
    ) -> Pattern:
        """Imports a tab-separated table, a row per layer and a column per KV head, as PruLong and `to_tsv` write it.

        A table of only 0 and 1 is the mask; it ranks nothing, so another sparsity than its own is refused. A table of
        other scores needs `sparsity`. PruLong's published masks use sink 128 and window 1024.
        """
        return _C.import_head_table(Path(file), ModelShape.of(model), sparsity, sink, window)

    def save(self, folder: str | Path) -> None:
        """Writes `folder`/pattern.json and `folder`/masks.tsv. A new folder appears whole or not at all; in an old one
        each file is replaced atomically and the two never disagree, whoever else saves there."""
        _C.save(self, Path(folder))

    def save_json(self, file: str | Path) -> None:
        """Writes one pattern file, under any name, atomically."""
        _C.save_json(self, Path(file))

    def to_tsv(self) -> str:
        """The mask as text, a row per layer: 1.0 or 0.0, tab-separated, as DuoAttention's and PruLong's tools read."""
        return _C.mask_table(self)

    def check_fits(self, model: ModelShape | transformers.PretrainedConfig) -> None:
        """Raises ValueError naming the first mismatch if this pattern was made for another shape of model."""
        _C.check_fits(self, ModelShape.of(model))

    def mask_tensor(self, device: torch.device | str | None = None) -> torch.Tensor:
        """The mask as a bool tensor, [layers, kv_heads], True = global."""
        import torch

        return torch.tensor(self.mask, dtype=torch.bool, device=device)

    @property
    def heads(self) -> int:
        """Number of KV heads of the model, all layers together."""
        return self.model.layers * self.model.kv_heads

    @property
    def global_count(self) -> int:
        """Number of global heads."""
        return sum(value for row in self.mask for value in row)

    @property
    def local_fraction(self) -> float:
        """Share of heads that are local, in [0, 1]."""
        return (self.heads - self.global_count) / self.heads

    def __str__(self) -> str:
        """A map, one row per layer, last layer first: # global, . local."""
        return _C.mask_map(self)


__all__ = ["ModelShape", "Pattern", "global_heads"]
