# SPDX-License-Identifier: MIT
"""Finding and reading the files that are prepared. Nothing of them is left out without a word."""

import codecs
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from preparation.files import DataError, printable

TEXT = (".txt",)
JSON_LINES = (".jsonl", ".ndjson", ".json")
PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zstd", ".lz4", ".zip", ".7z", ".tar", ".rar")
WIDE_MARKS = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"),
              (codecs.BOM_UTF16_BE, "UTF-16"))


@dataclass(frozen=True)
class Source:
    """A file to read. `name` is what the record calls it: the file's own, or that inside its input folder."""
    name: str
    path: Path

    @property
    def is_json(self) -> bool:
        return self.path.suffix.lower() in JSON_LINES


def recorded_name(name: str) -> str:
    """A file name as text, which the bytes of a name need not be."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def find_sources(inputs: list[Path], field: str) -> list[Source]:
    """Every file to read: those given, and of a folder its text and JSON lines, sorted by their names inside it. What else
    a folder holds is named on standard error."""
    sources = []
    for path in inputs:
        if path.is_dir():
            sources += sources_inside(path)
        elif path.is_file():
            sources.append(Source(recorded_name(path.name), path))
        elif os.path.lexists(path):
            raise DataError(f"{path}: a file or folder expected, found a broken link, a pipe or a device")
        else:
            raise DataError(f"{path}: no such file or folder")
    for source in sources:
        check_kind(source, field)
    return sources


def sources_inside(folder: Path) -> list[Source]:
    def fail(error: OSError) -> None:
        raise error

    paths, skipped = [], []
    for here, folders, files in os.walk(folder, onerror=fail):
        paths += [Path(here, name) for name in files]
        skipped += [(Path(here, name), "a link to a folder") for name in folders if os.path.islink(Path(here, name))]
    found = []
    for path in sorted(paths):
        suffix = path.suffix.lower()
        if suffix in PACKED:
            raise DataError(f"{path}: packed files are not read; unpack it, or move it out of {folder}")
        if suffix not in TEXT + JSON_LINES:
            skipped.append((path, f"not {', '.join(TEXT + JSON_LINES)}"))
        elif not path.is_file():
            raise DataError(f"{path}: a file expected, found a broken link, a pipe or a device; remove it")
        else:
            found.append(Source(recorded_name(path.relative_to(folder).as_posix()), path))
    if not found:
        raise DataError(f"{folder}: no .txt or .jsonl file in this folder, nor {' or '.join(JSON_LINES[1:])}")
    for path, why in sorted(skipped):
        print(printable(f"prepare_data: skipped {path}: {why}"), file=sys.stderr)
    return found


def check_kind(source: Source, field: str) -> None:
    """Refuses packed files, and JSON lines under a name by which they would be read as plain text."""
    suffix = source.path.suffix.lower()
    if suffix in PACKED:
        raise DataError(f"{source.path}: packed files are not read; unpack it first")
    if source.is_json:
        return
    with source.path.open("rb") as file:
        head = next((line for line in file if line.strip()), b"").removeprefix(codecs.BOM_UTF8).strip()
    try:
        record = json.loads(head) if head.startswith(b"{") else None
    except (ValueError, RecursionError):
        return
    # A text may well begin with some object of JSON, but hardly with one that has this field.
    if isinstance(record, dict) and (suffix not in TEXT or field in record):
        raise DataError(f"{source.path}: its first line is an object of JSON: rename it to end in .jsonl (or in .txt, with "
                        "another --field, if it is text after all)")


def decode(data: bytes, where: object) -> str:
    """UTF-8, with or without a byte order mark at its start."""
    for mark, encoding in WIDE_MARKS:
        if data.startswith(mark):
            raise DataError(f"{where}: {encoding} found, UTF-8 expected; convert the file first (iconv -f {encoding} -t UTF-8)")
    if (at := data.find(0)) >= 0:
        raise DataError(f"{where}: byte {at} is NUL, so this is no UTF-8 text; convert the file first, or leave it out")
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        return data[start:].decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {start + error.start} is not UTF-8; convert the file first") from None


def read_text(path: Path) -> str:
    """The text of a file. Its lines end with a newline alone: a carriage return before one is dropped."""
    return decode(path.read_bytes(), path).replace("\r\n", "\n")
