# SPDX-License-Identifier: MIT
"""What every kind of preparation does: tokenizers, progress."""

import os
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from preparation.files import DataError, first_line, sha256_of  # noqa: E402
from preparation.inputs import recorded_name  # noqa: E402

VERSION = 1


def tokenizer_file(folder: Path) -> Path:
    return folder / "tokenizer.json"


def load_tokenizer(folder: Path) -> tuple[Tokenizer, dict, int]:
    """The tokenizer of a model folder, its name and hash for the record, and the vocabulary size."""
    path = tokenizer_file(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give that of a Hugging Face model, which holds its tokenizer.json")
    if not path.is_file():
        raise DataError(f"{folder}: no tokenizer.json; give the folder of a Hugging Face model, or write the file with "
                        "AutoTokenizer.from_pretrained(...).save_pretrained(...)")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise DataError(f"{path}: not a tokenizer: {first_line(error)}") from None
    # Some models save a maximum length or padding: both would silently change long texts.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if vocab_size == 0:
        raise DataError(f"{path}: the vocabulary is empty")
    return tokenizer, {"name": recorded_name(folder.resolve().name), "sha256": sha256_of(path)}, vocab_size


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


class Progress:
    """One line that is rewritten on a terminal, and a plain line every ten seconds elsewhere."""

    def __init__(self, total_bytes: int):
        self.total, self.start, self.shown = max(total_bytes, 1), time.monotonic(), time.monotonic()
        self.terminal = sys.stderr.isatty()

    def show(self, done_bytes: int, tokens: int) -> None:
        now = time.monotonic()
        if now - self.shown < (0.2 if self.terminal else 10):
            return
        self.shown = now
        left = (now - self.start) * (self.total - done_bytes) / max(done_bytes, 1)
        line = f"{100 * done_bytes / self.total:5.1f} %  {tokens:,} tokens  {left:.0f} s left"
        print(f"\r{line}\x1b[K" if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
