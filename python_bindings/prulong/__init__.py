# SPDX-License-Identifier: MIT
"""Head masks for long contexts: few KV heads keep everything, the others a few first tokens and a recent window.

    import prulong
    pattern = prulong.Pattern.load("masks/pattern.json")
    prulong.apply(model, pattern)          # a transformers model; prulong.remove(model) undoes it
    model.generate(...)                    # its cache holds what the pattern keeps: prulong.Cache

    engine = prulong.Engine("MODEL_FOLDER", pattern)
    print(engine.generate("The capital of France is").text)

Importing registers the operators torch.ops.prulong.*; `gated_attention`, `masked_attention`, `append_kv` and
`paged_attention` are typed wrappers.
"""

from typing import TYPE_CHECKING, Any

from . import _library

__version__ = _library.VERSION
_C = _library.load()

from .engine import Engine, Generation, Sampling  # noqa: E402
from .ops import append_kv, gated_attention, masked_attention, paged_attention  # noqa: E402
from .pattern import ModelShape, Pattern, global_heads  # noqa: E402
from .transformers import apply, remove  # noqa: E402

if TYPE_CHECKING:
    from .cache import Cache

__all__ = [
    "Cache",
    "Engine",
    "Generation",
    "ModelShape",
    "Pattern",
    "Sampling",
    "append_kv",
    "apply",
    "gated_attention",
    "global_heads",
    "masked_attention",
    "paged_attention",
    "remove",
]


def __getattr__(name: str) -> Any:
    if name != "Cache":
        raise AttributeError(f"module 'prulong' has no attribute {name!r}")
    from .cache import Cache  # imports transformers, which the rest does without

    return Cache
