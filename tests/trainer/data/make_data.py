#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes what scripts/prepare_data.py writes, with a tiny tokenizer made here: DIR/{model,kit,tokens,mds}, and DIR/vocab.txt
with the bytes of each token in hexadecimal, one a line. The C++ tests read it back."""

import json
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

ROOT = Path(__file__).resolve().parent.parent.parent.parent
PROSE = ROOT / "assets" / "prose"


def write_tokenizer(folder: Path, begin_of_text: bool = False) -> Tokenizer:
    """A byte-level BPE tokenizer of 400 tokens in a folder of its own, like those of Llama 3 and SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=["<bos>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([(PROSE / "train.txt").read_text()[:20000]], trainer)
    if begin_of_text:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def main(folder: Path) -> None:
    tokenizer = write_tokenizer(folder / "model", begin_of_text=True)
    for name in ("train", "eval"):
        text = (PROSE / f"{name}.txt").read_text()[:40000]
        (folder / f"{name}.txt").write_text(text[:text.rindex("\n\n")] + "\n")
    prepare = [sys.executable, str(ROOT / "scripts" / "prepare_data.py")]
    model = ["--tokenizer", str(folder / "model")]
    subprocess.run([*prepare, "recall", *model, "--out", str(folder / "kit"), "--train-prose", str(folder / "train.txt"),
                    "--eval-prose", str(folder / "eval.txt")], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*prepare, "text", *model, "--out", str(folder / "tokens"), "--split", "block",
                    str(folder / "train.txt")], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*prepare, "text", *model, "--out", str(folder / "mds"), "--split", "block", "--format", "mds",
                    "--sample-tokens", "512", str(folder / "train.txt")], check=True, stdout=subprocess.DEVNULL)
    vocab_size = json.loads((folder / "kit" / "kit.json").read_text())["vocab_size"]
    # Token by token: a lone byte of a longer character decodes to a mark, which the ASCII text never needs.
    lines = [tokenizer.decode([i], skip_special_tokens=False).encode().hex() for i in range(vocab_size)]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
