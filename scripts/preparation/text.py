# SPDX-License-Identifier: MIT
"""Text and JSON lines to tokens."""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from preparation.shared import (VERSION, DataError, Progress, load_tokenizer, new_folder, read_text, sha256_of,
                                token_dtype, up_to_date)
from preparation.writers import MdsFolder, TokenFolder

BATCH_BYTES = 4 << 20  # text given to the tokenizer at once: enough to use every core, little memory


def find_files(inputs: list[Path]) -> list[tuple[str, Path]]:
    """(name, path) of every input file: a folder gives its *.txt and *.jsonl in sorted order, by their name inside it."""
    files = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".jsonl") and p.is_file())
            if not inside:
                raise DataError(f"{path}: no .txt or .jsonl file in this folder")
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


def json_documents(path: Path, field: str) -> Iterator[tuple[str, int]]:
    """(text, bytes of the line) of each line of a JSON lines file; lines of white space have no text."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                yield "", len(line)
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # bad UTF-8 too
                raise DataError(f"{path}:{number}: not JSON: {str(error).splitlines()[0]}") from None
            if not isinstance(record, dict) or field not in record:
                found = ", ".join(map(repr, list(record)[:8])) if isinstance(record, dict) else type(record).__name__
                raise DataError(f"{path}:{number}: field {field!r} expected, {found or 'none'} found; name it with --field")
            if not isinstance(record[field], str):
                raise DataError(f"{path}:{number}: field {field!r}: text expected, "
                                f"{type(record[field]).__name__} found")
            if not record[field].isascii() and re.search("[\ud800-\udfff]", record[field]):
                raise DataError(f"{path}:{number}: field {field!r}: half a surrogate pair in the text; mend the escapes")
            yield record[field], len(line)


def documents_of(path: Path, split: str, field: str) -> Iterator[tuple[str, int]]:
    """(document, bytes of source read for it) of a file."""
    if path.suffix == ".jsonl":
        yield from json_documents(path, field)
        return
    documents = split_documents(read_text(path), split)
    size = path.stat().st_size
    for index, document in enumerate(documents):
        yield document, size * (index + 1) // len(documents) - size * index // len(documents)


def batches(files: list[tuple[str, Path]], split: str, field: str) -> Iterator[tuple[list[str], int]]:
    """(documents, bytes of source read so far), a few MB at a time."""
    batch, size, done = [], 0, 0
    for _, path in files:
        for document, read in documents_of(path, split, field):
            done += read
            if document.strip():
                batch.append(document)
                size += len(document)
            if size >= BATCH_BYTES:
                yield batch, done
                batch, size = [], 0
    yield batch, done


def prepare_text(args: argparse.Namespace) -> None:
    tokenizer, record, vocab_size = load_tokenizer(args.tokenizer)
    files = find_files(args.inputs)
    inputs = {"tokenizer": record["sha256"], "split": args.split, "field": args.field, "format": args.format,
              "sources": [{"name": n, "bytes": p.stat().st_size, "sha256": sha256_of(p)} for n, p in files]}
    if args.format == "mds":
        inputs["sample_tokens"] = args.sample_tokens
    if up_to_date(args.out, "data.json", inputs, args.overwrite):
        print(f"{args.out}: up to date")
        return
    with new_folder(args.out) as work:
        dtype = token_dtype(vocab_size)
        writer = MdsFolder(work, dtype, args.sample_tokens) if args.format == "mds" else TokenFolder(work, dtype)
        progress = Progress(sum(source["bytes"] for source in inputs["sources"]))
        for documents, done in batches(files, args.split, args.field):
            for encoding in tokenizer.encode_batch_fast(documents):
                if encoding.ids:
                    writer.add_document(encoding.ids)
            progress.show(done, writer.tokens)
        progress.finish()
        if writer.tokens == 0:
            raise DataError(f"{args.inputs[0]}: no text in the input, so no tokens; nothing was written")
        data = {"format": writer.FORMAT, "version": VERSION, "tokenizer": record, "vocab_size": vocab_size,
                "tokens": writer.tokens, "documents": writer.documents, "inputs": inputs, "sha256": writer.finish()}
        (work / "data.json").write_text(json.dumps(data, indent=1) + "\n")
    print(f"{args.out}: {writer.tokens:,} tokens in {writer.documents:,} documents")
