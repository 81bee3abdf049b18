# SPDX-License-Identifier: MIT
"""What every kind of preparation does: reading text, tokenizers, progress, finding and publishing finished folders."""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from preparation.files import DataError, sha256_of  # noqa: E402

VERSION = 1


def read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; convert the file first") from None


def load_tokenizer(folder: Path) -> tuple[Tokenizer, dict, int]:
    """The tokenizer of a model folder, its name and hash for the record, and the vocabulary size."""
    path = folder / "tokenizer.json"
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give that of a Hugging Face model, which holds its tokenizer.json")
    if not path.is_file():
        raise DataError(f"{folder}: no tokenizer.json; give the folder of a Hugging Face model, or write the file with "
                        "AutoTokenizer.from_pretrained(...).save_pretrained(...)")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise DataError(f"{path}: not a tokenizer: {str(error).splitlines()[0]}") from None
    # Some models save a maximum length or padding: both would silently change long texts.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if vocab_size == 0:
        raise DataError(f"{path}: the vocabulary is empty")
    return tokenizer, {"name": folder.resolve().name, "sha256": sha256_of(path)}, vocab_size


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


def up_to_date(out: Path, record: str, inputs: dict, overwrite: bool) -> bool:
    """Whether `out` already holds data of the same inputs. Anything else there is an error unless to be overwritten."""
    if not out.exists():
        return False
    try:
        if json.loads((out / record).read_text())["inputs"] == inputs:
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if not overwrite:
        raise DataError(f"{out}: exists and holds other data; give another --out, or --overwrite")
    return False


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `out` when the block ends well, and disappears otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        work = Path(temporary) / "new"
        work.mkdir()
        yield work
        if out.exists():
            out.rename(Path(temporary) / "old")
        work.rename(out)


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
