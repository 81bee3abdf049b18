# SPDX-License-Identifier: MIT
"""Head patterns: which KV heads keep the whole context, and everything needed to use that.

The file format and the rounding rule are those of the C++ library; either reads what the other wrote.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import _pattern_files as files

if TYPE_CHECKING:
    import torch
    import transformers


def global_heads(sparsity: float, heads: int) -> int:
    """How many of `heads` stay global: round((1 - sparsity) * heads) in double arithmetic, to nearest, halves away from
    zero (Python's own round takes halves to even)."""
    exact = (1.0 - sparsity) * heads
    below = math.floor(exact)
    return below + (exact - below >= 0.5)


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

    Immutable, save that `provenance` is an ordinary dict. Every constructor checks everything and raises ValueError, in one line, naming what is wrong; files that
    cannot be read or written raise OSError.
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
        object.__setattr__(self, "scores", files.rows_of(self.scores, float))
        object.__setattr__(self, "mask", files.rows_of(self.mask, files.role))
        object.__setattr__(self, "sparsity", float(self.sparsity))
        object.__setattr__(self, "provenance", dict(self.provenance))
        files.check(self, "pattern")

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
        rows = files.rows_of(scores, float)
        shape = ModelShape.of(model)
        # All global first: its checks make the ranking below safe.
        every = tuple((True,) * len(row) for row in rows)
        unrounded = cls(shape, sink, window, sparsity, rows, every, provenance or {})
        flat = [score for row in rows for score in row]
        order = sorted(range(len(flat)), key=lambda index: (-flat[index], index))
        keep = set(order[: global_heads(unrounded.sparsity, len(flat))])
        mask = tuple(
            tuple(layer * shape.kv_heads + head in keep for head in range(shape.kv_heads))
            for layer in range(shape.layers)
        )
        return cls(shape, sink, window, sparsity, rows, mask, provenance or {})

    @classmethod
    def load(cls, path: str | Path) -> Pattern:
        """Reads a pattern file, or pattern.json of a folder; anything unknown or inconsistent in it is refused."""
        file = Path(path)
        file = file / "pattern.json" if file.is_dir() else file
        values = files.parse(file, file.read_bytes())
        values["model"] = ModelShape(**values["model"])
        return cls(**values)

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
        folder = Path(folder)
        config = folder / "config.json"
        if sink is None:
            sink = files.integer_of_json(config, config.read_bytes(), "sink_size", 0)
        if window is None:
            window = files.integer_of_json(config, config.read_bytes(), "recent_size", 1)
        source = {"source": f"DuoAttention folder {folder.resolve().name}"}
        return cls._from_table(folder / "full_attention_heads.tsv", model, sparsity, sink, window, source)

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
        return cls._from_table(Path(file), model, sparsity, sink, window, {"source": f"head table {Path(file).name}"})

    @classmethod
    def _from_table(
        cls,
        file: Path,
        model: ModelShape | transformers.PretrainedConfig,
        sparsity: float | None,
        sink: int,
        window: int,
        provenance: Mapping[str, str],
    ) -> Pattern:
        shape = ModelShape.of(model)
        rows = files.read_table(file)
        if (len(rows), len(rows[0])) != (shape.layers, shape.kv_heads):
            raise ValueError(
                f"{file}: the table does not fit the model: {len(rows)} rows of {len(rows[0])}, but the model has "
                f"{shape.layers} layers of {shape.kv_heads} KV heads"
            )
        is_mask = all(score in (0.0, 1.0) for row in rows for score in row)
        if sparsity is None:
            if not is_mask:
                raise ValueError(
                    f"{file}: holds a score per head, not a mask: say with sparsity what share to make local"
                )
            mask = tuple(tuple(score == 1.0 for score in row) for row in rows)
            local = sum(not value for row in mask for value in row) / (shape.layers * shape.kv_heads)
            return cls(shape, sink, window, local, rows, mask, provenance)
        result = cls.from_scores(shape, rows, sparsity, sink, window, provenance)
        files.refuse_arbitrary_cut(file, [score for row in rows for score in row], sparsity, result.global_count)
        return result

    def save(self, folder: str | Path) -> None:
        """Writes `folder`/pattern.json and `folder`/masks.tsv. A new folder appears whole or not at all; in an old one
        each file is replaced atomically and the two never disagree."""
        files.write_folder(Path(folder), files.to_json(self), self.to_tsv())

    def save_json(self, file: str | Path) -> None:
        """Writes one pattern file, under any name, atomically."""
        files.write_atomically(Path(file), files.to_json(self))

    def to_tsv(self) -> str:
        """The mask as text, a row per layer: 1.0 or 0.0, tab-separated, as DuoAttention's and PruLong's tools read."""
        return "".join("\t".join("1.0" if value else "0.0" for value in row) + "\n" for row in self.mask)

    def check_fits(self, model: ModelShape | transformers.PretrainedConfig) -> None:
        """Raises ValueError naming the first mismatch if this pattern was made for another shape of model."""
        other = ModelShape.of(model)
        for key in ("type", "layers", "kv_heads", "query_heads", "head_dim"):
            ours, theirs = getattr(self.model, key), getattr(other, key)
            if ours != theirs:
                raise ValueError(
                    f"the pattern does not fit the model: {key} {ours} in the pattern, {theirs} in the model; "
                    "use a pattern made for this model"
                )

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
        lines = ["layer  KV head 0 on the left; # global, . local"]
        for layer in reversed(range(self.model.layers)):
            lines.append(f"{layer:5}  " + "".join("#" if value else "." for value in self.mask[layer]))
        return "\n".join(lines) + "\n"


__all__ = ["ModelShape", "Pattern", "global_heads"]
