# SPDX-License-Identifier: MIT
"""Text and JSON lines to tokens."""

import argparse
import codecs
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from preparation.files import DataError, first_line, printable, quoted, sha256_of
from preparation.folders import new_folder, refuse_inputs_inside, up_to_date
from preparation.inputs import Source, decode, find_sources, read_text
from preparation.shared import VERSION, Progress, load_tokenizer, token_dtype, tokenizer_file
from preparation.writers import MdsFolder, TokenFolder

BATCH_BYTES = 4 << 20  # text given to the tokenizer at once: enough to use every core, little memory
READING = 2  # changes whenever the same files become other documents


def split_documents(text: str, split: str) -> list[str]:
    if split == "line":
        documents = text.split("\n")
    elif split == "block":
        documents = re.split(r"\n(?:[ \t]*\n)+", text)
    else:
        documents = [text]
    return [document.strip("\n") for document in documents if document.strip()]


def json_documents(path: Path, field: str) -> Iterator[tuple[str | None, int]]:
    """(text, bytes of the line) of each line of a JSON lines file; lines of white space have none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if number > 1 and line.startswith(codecs.BOM_UTF8):
                raise DataError(f"{where}: a byte order mark in the middle of the file; remove it")
            text = decode(line, f"{where}: not JSON")
            if not text.strip(" \t\r\n"):
                yield None, len(line)
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not JSON: {first_line(error)}; one object a line is expected") from None
            if not isinstance(record, dict) or field not in record:
                found = ", ".join(map(quoted, list(record)[:8])) if isinstance(record, dict) else type(record).__name__
                raise DataError(f"{where}: field {quoted(field)} expected, {found or 'none'} found; name it with --field")
            if not isinstance(record[field], str):
                raise DataError(f"{where}: field {quoted(field)}: text expected, {type(record[field]).__name__} found")
            if not record[field].isascii() and re.search("[\ud800-\udfff]", record[field]):
                raise DataError(f"{where}: field {quoted(field)}: half a surrogate pair in the text; mend the escapes")
            yield record[field], len(line)


def documents_of(source: Source, split: str, field: str) -> Iterator[tuple[str | None, int]]:
    """(document, bytes of source read for it) of a file."""
    if source.is_json:
        yield from json_documents(source.path, field)
        return
    documents = split_documents(read_text(source.path), split)
    size = source.path.stat().st_size
    for index, document in enumerate(documents):
        yield document, size * (index + 1) // len(documents) - size * index // len(documents)


def batches(sources: list[Source], split: str, field: str, notes: list[str]) -> Iterator[tuple[list[str], int]]:
    """(documents, bytes of source read so far), a few MB at a time. Notes which files have no text, or records without."""
    batch, size, done = [], 0, 0
    for source in sources:
        texts = blank = 0
        for document, read in documents_of(source, split, field):
            done += read
            if document is not None and document.strip():
                texts += 1
                batch.append(document)
                size += len(document)
            elif document is not None:
                blank += 1
            if size >= BATCH_BYTES:
                yield batch, done
                batch, size = [], 0
        if blank or not texts:
            what = f"{blank:,} of {texts + blank:,} records have no text" if texts else "no text in it"
            notes.append(f"{source.path}: {what}")
    yield batch, done


def prepare_text(args: argparse.Namespace) -> None:
    tokenizer, record, vocab_size = load_tokenizer(args.tokenizer)
    sources = find_sources(args.inputs, args.field)
    refuse_inputs_inside(args.out, [*(source.path for source in sources), tokenizer_file(args.tokenizer)],
                         [path for path in args.inputs if path.is_dir()])
    inputs = {"tokenizer": record["sha256"], "reading": READING, "split": args.split, "field": args.field,
              "format": args.format,
              "sources": [{"name": s.name, "bytes": s.path.stat().st_size, "sha256": sha256_of(s.path)} for s in sources]}
    if args.format == "mds":
        inputs["sample_tokens"] = args.sample_tokens
    if up_to_date(args.out, "data.json", inputs, args.overwrite):
        print(printable(f"{args.out}: up to date"))
        return
    with new_folder(args.out, args.overwrite) as work:
        dtype = token_dtype(vocab_size)
        writer = MdsFolder(work, dtype, args.sample_tokens) if args.format == "mds" else TokenFolder(work, dtype)
        progress = Progress(sum(source["bytes"] for source in inputs["sources"]))
        largest = without = 0
        notes: list[str] = []
        for documents, done in batches(sources, args.split, args.field, notes):
            for encoding in tokenizer.encode_batch_fast(documents):
                if encoding.ids:
                    writer.add_document(encoding.ids)
                    largest = max(largest, max(encoding.ids))
                else:
                    without += 1
            progress.show(done, writer.tokens)
        progress.finish()
        if writer.tokens == 0:
            raise DataError(f"{args.inputs[0]}: no text in the input, so no tokens; nothing was written")
        data = {"format": writer.FORMAT, "version": VERSION, "tokenizer": record, "vocab_size": vocab_size,
                "largest_token": largest, "tokens": writer.tokens, "documents": writer.documents, "inputs": inputs,
                "sha256": writer.finish()}
        (work / "data.json").write_text(json.dumps(data, indent=1) + "\n")
    if without:
        notes.append(f"{without:,} documents became no token")
    for note in notes:
        print(printable(f"prepare_data: {note}"), file=sys.stderr)
    print(printable(f"{args.out}: {writer.tokens:,} tokens in {writer.documents:,} documents"))
