# SPDX-License-Identifier: MIT
"""Recall kits: the pieces from which prulong composes synthetic long-range recall."""

import argparse
import json
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from preparation.files import DataError, lines_of, printable, quoted, sha256_of
from preparation.folders import new_folder, refuse_inputs_inside, up_to_date
from preparation.inputs import read_text, recorded_name
from preparation.shared import load_tokenizer, token_dtype, tokenizer_file

VERSION = 2
# A statement is before + adjective + noun + middle + value + after. A list of statements starts with intro and ends with
# outro, the questions start with ask. A question is question_before + adjective + noun + question_middle + values with
# separator between them + question_after; parts of it that are not given are those of the statement. Every part starts
# where any tokenizer splits anyway.
TEMPLATES = {
    "codes": {"before": " The secret code of the", "middle": " is", "after": "."},
    "passkey": {"before": " The passkey is", "after": ". Remember it."},
    "key_values": {"intro": " The list", "before": "\n-", "middle": ":", "outro": "\n", "ask": " The list again"},
    "multi_values": {"before": " One of the numbers of the", "middle": " is", "after": ".",
                     "question_before": " The numbers of the", "question_middle": " are", "separator": ","},
    "labels": {"intro": " The labels", "before": "\n-", "middle": ":", "outro": "\n", "ask": " More of them"},
}
VALUES = {"codes": "codes", "passkey": "passkeys", "key_values": "nouns", "multi_values": "codes", "labels": "labels"}
STATEMENT_PARTS = ("before", "middle", "after")
PARTS = ("intro", *STATEMENT_PARTS, "outro", "ask", "question_before", "question_middle", "separator", "question_after")


def parts_of(task: str) -> dict[str, str]:
    """The text of every part of a task."""
    given = TEMPLATES[task]
    questions = {f"question_{part}": given.get(part, "") for part in STATEMENT_PARTS}
    return {part: given.get(part, questions.get(part, "")) for part in PARTS}


@dataclass
class Pieces:
    """Texts and their tokens, in the order of the kit's arrays; lists[split][name] = [first, count]."""
    tokenizer: Tokenizer
    texts: list[str] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    lists: dict[str, dict[str, list[int]]] = field(default_factory=lambda: {"train": {}, "eval": {}})

    def add(self, split: str, name: str, texts: list[str]) -> None:
        self.lists[split][name] = [len(self.texts), len(texts)]
        self.texts += texts
        self.tokens += tokenize_in_context(self.tokenizer, texts)


def tokenize_in_context(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Tokens of each text as they are in the middle of a longer one: some tokenizers add a space at the very start."""
    anchors = ["a." if text.startswith(" ") else "a" for text in texts]
    heads = {anchor: tokenizer.encode(anchor, add_special_tokens=False).ids for anchor in set(anchors)}
    encodings = tokenizer.encode_batch_fast([a + t for a, t in zip(anchors, texts)], add_special_tokens=False)
    result = []
    for anchor, text, encoding in zip(anchors, texts, encodings):
        head = heads[anchor]
        if encoding.ids[:len(head)] != head:
            raise DataError(f"this tokenizer joins {quoted(text)} with the text before it; recall samples cannot be composed "
                            "with it")
        result.append(encoding.ids[len(head):])
    return result


def prefix_of(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text, such as a beginning-of-text token."""
    plain, full = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    for start in range(len(full) - len(plain) + 1):
        if full[start:start + len(plain)] == plain:
            return full[:start]
    return []


def sentences_of(path: Path) -> list[str]:
    """The sentences of a text, each with a leading space, so that they join to flowing prose."""
    text = " ".join(read_text(path).split())
    # Not after titles and initials: a statement there would tear the sentence.
    ends = re.finditer(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])[.!?][\"')]*(?= [\"'(]*[A-Z])", text)
    cuts = [0, *(match.end() for match in ends), len(text)]
    sentences = [text[a:b].strip() for a, b in zip(cuts, cuts[1:])]
    return [" " + sentence for sentence in sentences if sentence]


def words_of(path: Path) -> list[str]:
    words = list(dict.fromkeys(filter(None, (line.strip(" \t") for line in lines_of(read_text(path))))))
    bad = next((word for word in words if not re.fullmatch(r"[^\W\d_]+", word)), None)
    if bad is not None:
        raise DataError(f"{path}: {quoted(bad)} is not a word; one word of letters a line is expected")
    return [" " + word for word in words]


def add_split_texts(pieces: Pieces, name: str, train: list[str], held_out: list[str], source: str) -> None:
    """Adds both splits; what training has is dropped from evaluation."""
    seen = set(train)
    held_out = [text for text in held_out if text not in seen]
    for split, texts in (("train", train), ("eval", held_out)):
        if len(texts) < 2:
            raise DataError(f"{source}: the {split} split has {len(texts)} {name}, at least 2 needed (a piece of both "
                            "splits counts for train alone)")
        pieces.add(split, name, texts)


def add_numbers(pieces: Pieces, name: str, digits: int, train: int, held_out: int) -> None:
    numbers = random.Random(name).sample(range(10 ** (digits - 1), 10 ** digits), train + held_out)
    texts = [f" {number}" for number in numbers]
    add_split_texts(pieces, name, texts[:train], texts[train:], "numbers")


def sample_pieces(pieces: Pieces, split: str, task: str, parts: dict, rng: random.Random) -> list[tuple[str, list[int]]]:
    """(text, tokens) of a small sample as prulong composes it: prose, a statement or a list of them, prose, questions."""
    def pick(name: str, count: int) -> list[tuple[str, list[int]]]:
        first, size = pieces.lists[split][name]
        return [(pieces.texts[i], pieces.tokens[i]) for i in rng.sample(range(first, first + size), min(count, size))]

    statements, questions = [], []
    for _ in range(2):
        values = pick(VALUES[task], 1 + (parts["separator"][0] != ""))
        name = [] if task == "passkey" else pick("adjectives", 1) + pick("nouns", 1)
        for value in values:
            statements += [parts["before"], *name, parts["middle"], value, parts["after"]]
        listed = [piece for value in values for piece in (parts["separator"], value)][1:]
        questions += [parts["question_before"], *name, parts["question_middle"], *listed, parts["question_after"]]
    return [*pick("prose", 2), parts["intro"], *statements, parts["outro"], *pick("prose", 2), parts["ask"], *questions]


def check_composition(pieces: Pieces, templates: dict, samples: int = 50) -> None:
    """Composed tokens must be those of the composed text: else the model would read another text than people do."""
    rng = random.Random(0)
    for index in range(samples * len(templates) * 2):
        task, split = list(templates)[index % len(templates)], ("train", "eval")[index // len(templates) % 2]
        sample = sample_pieces(pieces, split, task, templates[task], rng)
        text = "".join(part[0] for part in sample)
        ids = [token for part in sample for token in part[1]]
        decoded = pieces.tokenizer.decode(ids, skip_special_tokens=False)
        if decoded.strip() != text.strip():
            raise DataError(f"this tokenizer changes the text: {quoted(text)} became {quoted(decoded)}")
        if tokenize_in_context(pieces.tokenizer, [text])[0] != ids:
            raise DataError(f"this tokenizer joins pieces of a {task} sample; recall samples cannot be composed with it")


def prepare_recall(args: argparse.Namespace) -> None:
    tokenizer, record, vocab_size = load_tokenizer(args.tokenizer)
    words = {kind: [args.words / f"{kind}.{split}.txt" for split in ("train", "eval")] for kind in ("adjectives", "nouns")}
    files = [args.train_prose, args.eval_prose, *words["adjectives"], *words["nouns"]]
    for path in files:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
    refuse_inputs_inside(args.out, [*files, tokenizer_file(args.tokenizer)], [])
    # The script is an input too: its templates and its splitting decide what the kit holds.
    inputs = {"tokenizer": record["sha256"], "script": sha256_of(Path(__file__)),
              "sources": [{"name": recorded_name(p.name), "bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in files]}
    if up_to_date(args.out, "kit.json", inputs, args.overwrite):
        print(printable(f"{args.out}: up to date"))
        return
    pieces = Pieces(tokenizer)
    add_split_texts(pieces, "prose", sentences_of(args.train_prose), sentences_of(args.eval_prose), str(args.eval_prose))
    for kind, (train, held_out) in words.items():
        add_split_texts(pieces, kind, words_of(train), words_of(held_out), str(held_out))
    add_numbers(pieces, "codes", 5, 16384, 4096)
    add_numbers(pieces, "passkeys", 7, 4096, 1024)
    add_numbers(pieces, "labels", 2, 60, 30)
    templates = {}
    for task in TEMPLATES:
        texts = parts_of(task)
        ids = tokenize_in_context(tokenizer, list(texts.values()))
        templates[task] = {part: (text, tokens) for (part, text), tokens in zip(texts.items(), ids)}
    check_composition(pieces, templates)

    with new_folder(args.out, args.overwrite) as work:
        tokens = np.asarray([token for piece in pieces.tokens for token in piece], dtype=token_dtype(vocab_size))
        np.save(work / "tokens.npy", tokens)
        np.save(work / "offsets.npy", np.cumsum([0] + [len(piece) for piece in pieces.tokens], dtype="<i8"))
        fixed = [prefix_of(tokenizer), *(value[1] for parts in templates.values() for value in parts.values())]
        kit = {"format": "prulong-recall-kit", "version": VERSION, "tokenizer": record, "vocab_size": vocab_size,
               "largest_token": max(int(tokens.max()), *(max(ids, default=0) for ids in fixed)), "tokens": len(tokens), "pieces": len(pieces.tokens), "inputs": inputs,
               "sha256": {name: sha256_of(work / name) for name in ("tokens.npy", "offsets.npy")},
               "prefix": prefix_of(tokenizer), "lists": pieces.lists,
               "templates": {t: {part: value[1] for part, value in parts.items()} for t, parts in templates.items()}}
        (work / "kit.json").write_text(json.dumps(kit, indent=1) + "\n")
    print(printable(f"{args.out}: {len(tokens):,} tokens in {len(pieces.tokens):,} pieces"))
