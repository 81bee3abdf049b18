# SPDX-License-Identifier: MIT
"""The folder that a preparation writes: what may stand in its place, and how it takes it."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from preparation.files import DataError, identity, quoted, sha256_of

# Format -> the file that describes the folder, and the names of the others.
FORMATS = {
    "prulong-tokens": ("data.json", r"tokens\.npy|documents\.npy"),
    "prulong-mds": ("data.json", r"index\.json|shard\.\d{5,}\.mds"),
    "prulong-recall-kit": ("kit.json", r"tokens\.npy|offsets\.npy"),
}


def refuse_inputs_inside(out: Path, files: list[Path], folders: list[Path]) -> None:
    """Refuses an `out` that is or holds one of the files, under any name, or that lies in a folder that is read whole."""
    place = Path(os.path.realpath(out))
    for folder in folders:
        if identity(folder) in map(identity, (place, *place.parents)):
            raise DataError(f"{out}: lies in the input folder {folder}, which would then be read with it; give another --out")
    there = identity(place)
    if there is None:
        return
    inside = {identity(path) for path in place.iterdir()} if place.is_dir() else set()
    for file in files:
        if identity(file) in {there, *inside} or there in map(identity, file.resolve().parents):
            raise DataError(f"{out}: holds the input {file}; give another --out")


def refuse_foreign(out: Path) -> None:
    """Refuses to replace anything but a folder that a preparation finished and nobody added to."""
    def refuse(what: str) -> None:
        raise DataError(f"{out}: {what}; only a folder that prepare_data wrote is replaced: give another --out, or move "
                        "this one away")

    if not out.is_dir():
        refuse("is a file, a folder expected")
    names = sorted(os.listdir(out))
    record = next((name for name in ("data.json", "kit.json") if name in names), None)
    if record is None:
        refuse(f"holds {quoted(names[0])} and no data.json or kit.json" if names else "is empty")
    description = describe(out / record)
    expected, others = FORMATS.get(str(description.get("format")), ("", ""))
    if expected != record:
        refuse(f"its {record} is none of prulong")
    for name in names:
        path = out / name
        if path.is_symlink() or not path.is_file() or not (name == record or re.fullmatch(others, name)):
            refuse(f"holds {quoted(name)}, which does not belong to {expected}")


def describe(path: Path) -> dict:
    """The content of data.json or kit.json; empty for anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def is_whole(folder: Path, description: dict) -> bool:
    """Whether the files that data.json or kit.json describes are there, as they were written."""
    try:
        if not all(sha256_of(folder / name) == digest for name, digest in description["sha256"].items()):
            return False
        shards = describe(folder / "index.json")["shards"] if description["format"] == "prulong-mds" else []
        return all((folder / s["raw_data"]["basename"]).stat().st_size == s["raw_data"]["bytes"] for s in shards)
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def up_to_date(out: Path, record: str, inputs: dict, overwrite: bool) -> bool:
    """Whether `out` already holds data of the same inputs, all of it. Anything else there is an error, unless it is a
    folder of ours and to be overwritten."""
    if not os.path.lexists(os.path.realpath(out)):
        return False
    description = describe(out / record)
    same = description.get("inputs") == inputs
    if same and is_whole(out, description):
        return True
    refuse_foreign(out)
    if not overwrite:
        found = "its files are not as they were written" if same else "holds other data"
        raise DataError(f"{out}: exists and {found}; give another --out, or --overwrite")
    return False


@contextlib.contextmanager
def new_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that takes the place of `out` when the block ends well, and disappears otherwise. What stands in
    that place is looked at again first; it goes only after the new one is there."""
    out = Path(os.path.realpath(out))
    for above in out.parents:
        if os.path.lexists(above) and not above.is_dir():
            raise DataError(f"{out}: cannot be created, for {above} is a file; give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        yield new
        try:
            if os.path.lexists(out):
                if not overwrite:
                    raise DataError(f"{out}: something else made it meanwhile; give another --out")
                refuse_foreign(out)
                out.rename(old)
            new.rename(out)
        except BaseException:  # an interruption too
            if old.exists() and not os.path.lexists(out):
                old.rename(out)
            raise
    finally:
        if new.exists():
            shutil.rmtree(new, ignore_errors=True)
        else:  # it took the place of the old one
            shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(OSError):  # an old folder that could not be put back stays in it
            temporary.rmdir()
