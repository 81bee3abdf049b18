# SPDX-License-Identifier: MIT
"""Head masks for long contexts: few KV heads keep everything, the others a few first tokens and a recent window.

    import prulong
    pattern = prulong.Pattern.load("masks/pattern.json")
    prulong.apply(model, pattern)          # a transformers model; prulong.remove(model) undoes it
    model.generate(...)

Importing registers the operators torch.ops.prulong.*; `gated_attention` and `masked_attention` are typed wrappers.
"""

from . import _library

__version__ = _library.VERSION
_C = _library.load()

from .ops import gated_attention, masked_attention  # noqa: E402
from .pattern import ModelShape, Pattern, global_heads  # noqa: E402
from .transformers import apply, remove  # noqa: E402

__all__ = [
    "ModelShape",
    "Pattern",
    "apply",
    "gated_attention",
    "global_heads",
    "masked_attention",
    "remove",
]
