#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tokenises data for prulong with a model's own Hugging Face tokenizer.

  prepare_data.py text   --tokenizer MODEL_DIR --out DIR [--split file|block|line] INPUT...
      UTF-8 text files, or folders of *.txt, become a token folder.
  prepare_data.py recall --tokenizer MODEL_DIR --out DIR
      Prose, names and codes become a recall kit: the pieces from which prulong composes synthetic long-range recall.

Both write into a temporary folder that is renamed at the end, and leave a folder that already holds the same data alone.

TOKEN FOLDER
  tokens.npy     [tokens] uint16, or uint32 for vocabularies beyond 65,536
  documents.npy  [documents + 1] int64: where each document starts in tokens.npy, and the token count at the end
  data.json      format "prulong-tokens", version, tokenizer {name, sha256}, vocab_size, tokens, documents, inputs
                 (options and source files), sha256 of both arrays
RECALL KIT
  tokens.npy     [tokens] uint16 or uint32: every piece of text, one after another
  offsets.npy    [pieces + 1] int64: where each piece starts
  kit.json       format "prulong-recall-kit", version, tokenizer, vocab_size, tokens, pieces, inputs, sha256, and
    prefix       the tokens that the tokenizer puts before a text (none, or the beginning-of-text token)
    templates    task -> the tokens of its fixed parts (the table TEMPLATES of this script)
    lists        split (train, eval) -> list -> [first piece, number of pieces]. Lists: prose (sentences in order),
                 adjectives, nouns, codes (5 digits), passkeys (7 digits). No piece is in both splits.
"""

import argparse
import array
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

ASSETS = Path(__file__).resolve().parent.parent / "assets"
VERSION = 1
BATCH_BYTES = 4 << 20  # text given to the tokenizer at once: enough to use every core, little memory

# A statement is before + adjective + noun + middle + value + after; a question repeats it. A list of statements starts
# with intro and ends with outro, the questions start with ask. Every part starts where any tokenizer splits anyway.
TEMPLATES = {
    "codes": {"before": " The secret code of the", "middle": " is", "after": "."},
    "passkey": {"before": " The passkey is", "after": ". Remember it."},
    "key_values": {"intro": " The list", "before": "\n-", "middle": ":", "outro": "\n", "ask": " The list again"},
}
VALUES = {"codes": "codes", "passkey": "passkeys", "key_values": "nouns"}
PARTS = ("intro", "before", "middle", "after", "outro", "ask")


class DataError(Exception):
    """One line for the user."""


# --- Shared ------------------------------------------------------------------------------------------------------------
def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; convert the file first") from None


def load_tokenizer(folder: Path) -> tuple[Tokenizer, dict, int]:
    """The tokenizer of a model folder, its name and hash for the record, and the vocabulary size."""
    path = folder / "tokenizer.json"
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


def publish(work: Path, out: Path) -> None:
    """Moves a finished folder to its place."""
    if out.exists():
        old = work.parent / "old"
        out.rename(old)
        work.rename(out)
        shutil.rmtree(old)
    else:
        work.rename(out)


# --- Token folders -----------------------------------------------------------------------------------------------------
class TokenFile:
    """Appends tokens to a .npy file whose length is known only at the end."""

    HEADER_BYTES = 128

    def __init__(self, path: Path, dtype: np.dtype):
        self.dtype, self.count = dtype, 0
        self.file = path.open("wb")
        self.file.write(b"\0" * self.HEADER_BYTES)

    def append(self, ids: list[int]) -> None:
        self.file.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self.count += len(ids)

    def close(self) -> None:
        header = f"{{'descr': '{self.dtype.str}', 'fortran_order': False, 'shape': ({self.count},), }}".encode()
        length = self.HEADER_BYTES - 10
        self.file.seek(0)
        self.file.write(b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + header.ljust(length - 1) + b"\n")
        self.file.close()


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


def find_files(inputs: list[Path]) -> list[tuple[str, Path]]:
    """(name, path) of every input file: a folder gives its *.txt files in sorted order, by their name inside it."""
    files = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*.txt") if p.is_file())
            if not inside:
                raise DataError(f"{path}: no .txt file in this folder")
            files += [(p.relative_to(path).as_posix(), p) for p in inside]
        elif path.is_file():
            files.append((path.name, path))
        else:
            raise DataError(f"{path}: no such file or folder")
    return files


def split_documents(text: str, split: str) -> list[str]:
    if split == "line":
        documents = text.splitlines()
    elif split == "block":
        documents = re.split(r"\n[ \t\r]*\n\s*", text)
    else:
        documents = [text]
    return [document.strip("\r\n") for document in documents if document.strip()]


def batches(files: list[tuple[str, Path]], split: str):
    """(documents, bytes of source read so far), a few MB at a time."""
    batch, size, done = [], 0, 0
    for _, path in files:
        text = read_text(path)
        done += path.stat().st_size
        for document in split_documents(text, split):
            batch.append(document)
            size += len(document)
            if size >= BATCH_BYTES:
                yield batch, done
                batch, size = [], 0
    yield batch, done


def prepare_text(args: argparse.Namespace) -> None:
    tokenizer, record, vocab_size = load_tokenizer(args.tokenizer)
    files = find_files(args.inputs)
    inputs = {"tokenizer": record["sha256"], "split": args.split,
              "sources": [{"name": n, "bytes": p.stat().st_size, "sha256": sha256_of(p)} for n, p in files]}
    if up_to_date(args.out, "data.json", inputs, args.overwrite):
        print(f"{args.out}: up to date")
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{args.out.name}.", dir=args.out.parent) as temporary:
        work = Path(temporary) / "new"
        work.mkdir()
        tokens = TokenFile(work / "tokens.npy", token_dtype(vocab_size))
        offsets = array.array("q", [0])
        progress = Progress(sum(source["bytes"] for source in inputs["sources"]))
        for documents, done in batches(files, args.split):
            for encoding in tokenizer.encode_batch_fast(documents):
                if not encoding.ids:
                    continue
                tokens.append(encoding.ids)
                offsets.append(tokens.count)
            progress.show(done, tokens.count)
        progress.finish()
        tokens.close()
        if tokens.count == 0:
            raise DataError(f"{args.inputs[0]}: no text in the input, so no tokens; nothing was written")
        np.save(work / "documents.npy", np.frombuffer(offsets, dtype="<i8"))
        data = {"format": "prulong-tokens", "version": VERSION, "tokenizer": record, "vocab_size": vocab_size,
                "tokens": tokens.count, "documents": len(offsets) - 1, "inputs": inputs,
                "sha256": {name: sha256_of(work / name) for name in ("tokens.npy", "documents.npy")}}
        (work / "data.json").write_text(json.dumps(data, indent=1) + "\n")
        publish(work, args.out)
    print(f"{args.out}: {tokens.count:,} tokens in {len(offsets) - 1:,} documents")


# --- Recall kits -------------------------------------------------------------------------------------------------------
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
            raise DataError(f"this tokenizer joins {text!r} with the text before it; recall samples cannot be composed with it")
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
    words = list(dict.fromkeys(read_text(path).split()))
    bad = next((word for word in words if not re.fullmatch(r"[^\W\d_]+", word)), None)
    if bad is not None:
        raise DataError(f"{path}: {bad!r} is not a word; one word of letters a line is expected")
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

    statements = []
    for value in pick(VALUES[task], 2):
        name = [] if task == "passkey" else pick("adjectives", 1) + pick("nouns", 1)
        statements += [parts["before"], *name, parts["middle"], value, parts["after"]]
    return [*pick("prose", 2), parts["intro"], *statements, parts["outro"], *pick("prose", 2), parts["ask"], *statements]


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
            raise DataError(f"this tokenizer changes the text: {text[:60]!r} became {decoded[:60]!r}")
        if tokenize_in_context(pieces.tokenizer, [text])[0] != ids:
            raise DataError(f"this tokenizer joins pieces of a {task} sample; recall samples cannot be composed with it")


def prepare_recall(args: argparse.Namespace) -> None:
    tokenizer, record, vocab_size = load_tokenizer(args.tokenizer)
    words = {kind: [args.words / f"{kind}.{split}.txt" for split in ("train", "eval")] for kind in ("adjectives", "nouns")}
    files = [args.train_prose, args.eval_prose, *words["adjectives"], *words["nouns"]]
    for path in files:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
    # The script is an input too: its templates and its splitting decide what the kit holds.
    inputs = {"tokenizer": record["sha256"], "script": sha256_of(Path(__file__)),
              "sources": [{"name": p.name, "bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in files]}
    if up_to_date(args.out, "kit.json", inputs, args.overwrite):
        print(f"{args.out}: up to date")
        return
    pieces = Pieces(tokenizer)
    add_split_texts(pieces, "prose", sentences_of(args.train_prose), sentences_of(args.eval_prose), str(args.eval_prose))
    for kind, (train, held_out) in words.items():
        add_split_texts(pieces, kind, words_of(train), words_of(held_out), str(held_out))
    add_numbers(pieces, "codes", 5, 16384, 4096)
    add_numbers(pieces, "passkeys", 7, 4096, 1024)
    templates = {}
    for task, texts in TEMPLATES.items():
        used = [texts.get(part, "") for part in PARTS]
        ids = tokenize_in_context(tokenizer, used)
        templates[task] = {part: (text, tokens) for part, text, tokens in zip(PARTS, used, ids)}
    check_composition(pieces, templates)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{args.out.name}.", dir=args.out.parent) as temporary:
        work = Path(temporary) / "new"
        work.mkdir()
        tokens = np.asarray([token for piece in pieces.tokens for token in piece], dtype=token_dtype(vocab_size))
        np.save(work / "tokens.npy", tokens)
        np.save(work / "offsets.npy", np.cumsum([0] + [len(piece) for piece in pieces.tokens], dtype="<i8"))
        kit = {"format": "prulong-recall-kit", "version": VERSION, "tokenizer": record, "vocab_size": vocab_size,
               "tokens": len(tokens), "pieces": len(pieces.tokens), "inputs": inputs,
               "sha256": {name: sha256_of(work / name) for name in ("tokens.npy", "offsets.npy")},
               "prefix": prefix_of(tokenizer), "lists": pieces.lists,
               "templates": {t: {part: value[1] for part, value in parts.items()} for t, parts in templates.items()}}
        (work / "kit.json").write_text(json.dumps(kit, indent=1) + "\n")
        publish(work, args.out)
    print(f"{args.out}: {len(tokens):,} tokens in {len(pieces.tokens):,} pieces")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = commands.add_parser("text", help="text files to a token folder")
    text.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="a UTF-8 text file, or a folder of *.txt")
    text.add_argument("--split", choices=("file", "block", "line"), default="file",
                      help="what one document is: a file, a block between blank lines, or a line (default: %(default)s)")
    text.set_defaults(run=prepare_text)
    recall = commands.add_parser("recall", help="prose, names and codes to a recall kit")
    recall.add_argument("--train-prose", type=Path, default=ASSETS / "prose" / "train.txt", metavar="FILE",
                        help="prose of training samples (default: assets/prose/train.txt)")
    recall.add_argument("--eval-prose", type=Path, default=ASSETS / "prose" / "eval.txt", metavar="FILE",
                        help="prose of evaluation samples (default: assets/prose/eval.txt)")
    recall.add_argument("--words", type=Path, default=ASSETS / "words", metavar="DIR",
                        help="folder of {adjectives,nouns}.{train,eval}.txt (default: assets/words)")
    recall.set_defaults(run=prepare_recall)
    for command in (text, recall):
        command.add_argument("--tokenizer", type=Path, required=True, metavar="MODEL_DIR",
                             help="a Hugging Face model folder (its tokenizer.json is read)")
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
        command.add_argument("--overwrite", action="store_true", help="replace a folder that holds other data")
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (DataError, OSError) as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
