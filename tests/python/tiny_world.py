# SPDX-License-Identifier: MIT
"""A tiny random Llama with a recall kit and a token folder that fit it, for tests of the programs."""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "trainer" / "data")]
import make_data  # noqa: E402
import prepare_data  # noqa: E402

LAYERS, KV_HEADS, VOCAB = 3, 2, 400
PROSE = {split: " ".join(f"The {a} {b} went to the {c}." for a in adjectives for b in ("man", "dog", "cat", "ship")
                         for c in ("sea", "hill", "town", "wood", "lake"))
         for split, adjectives in (("train", ("old", "new", "red")), ("eval", ("big", "tiny", "blue")))}
WORDS = {"train": ("red old big", "apple dog house"), "eval": ("blue new tiny", "pear cat car")}


def tiny_model(**changes) -> LlamaForCausalLM:
    """A random Llama, the same every time."""
    torch.manual_seed(0)
    shape = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, head_dim=16,
                 num_attention_heads=4, num_key_value_heads=KV_HEADS, max_position_embeddings=512,
                 tie_word_embeddings=True)
    return LlamaForCausalLM(LlamaConfig(**(shape | changes)))


def write_world(folder: Path) -> Path:
    """Writes folder/{model,kit,tokens}, as transformers and scripts/prepare_data.py write them."""
    make_data.write_tokenizer(folder / "model", begin_of_text=True)
    tiny_model().save_pretrained(folder / "model")
    words = folder / "words"
    words.mkdir()
    for split, (adjectives, nouns) in WORDS.items():
        (words / f"{split}.txt").write_text(PROSE[split])
        (words / f"adjectives.{split}.txt").write_text(adjectives.replace(" ", "\n"))
        (words / f"nouns.{split}.txt").write_text(nouns.replace(" ", "\n"))
    (folder / "book.txt").write_text(PROSE["train"] * 3)
    tokenizer = ["--tokenizer", str(folder / "model")]
    prose = [f"--{split}-prose={words}/{split}.txt" for split in WORDS]
    assert prepare_data.main(["recall", *tokenizer, "--out", str(folder / "kit"), "--words", str(words), *prose]) == 0
    assert prepare_data.main(["text", *tokenizer, "--out", str(folder / "tokens"), str(folder / "book.txt")]) == 0
    return folder
