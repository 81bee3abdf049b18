# SPDX-License-Identifier: MIT
"""What scripts that write files share, without a library to load."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


class DataError(Exception):
    """One line for the user."""


def printable(text: object) -> str:
    """As one line for a message: what does not print (control characters, other line ends, bytes of a file name that
    are no text) is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def quoted(value: object, most: int = 80) -> str:
    """What a file holds, as one line for a message; of a long value the beginning."""
    return repr(value) if len(str(value)) <= most else f"{str(value)[:most]!r}..."


def first_line(error: object) -> str:
    """The beginning of what a library says, which may be long."""
    line = next((line for line in lines_of(str(error)) if line.strip()), "no message")
    return printable(line[:300])


def lines_of(text: str) -> list[str]:
    """The lines of a text, without their ends. A line ends with a newline, before which a carriage return does not count;
    no other character ends one (str.splitlines knows eight more)."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def identity(path: Path) -> tuple[int, int] | None:
    """What two names of one file or folder have in common, links of both kinds included; None where there is none."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def refuse_inputs(out: Path, inputs: Iterable[Path]) -> None:
    """Refuses an output file that is one of the files that are read."""
    there = identity(out)
    for path in inputs:
        if there is not None and identity(path) == there:
            raise DataError(f"{out}: is the input {path}; name another file to write")
