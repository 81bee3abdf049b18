# SPDX-License-Identifier: MIT
"""Reading and writing of pattern files and head tables: strict, atomic, the same as the C++ library's."""

from __future__ import annotations

import json
import math
import operator
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from .pattern import Pattern

FORMAT = "prulong-pattern"
VERSION = 1
_KEYS = ("format", "version", "model", "sink", "window", "sparsity", "mask", "scores", "provenance")
_MODEL_KEYS = ("type", "layers", "kv_heads", "query_heads", "head_dim")
_MAX_INT = 2**63 - 1
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

T = TypeVar("T")


class _Refusal(ValueError):
    """Already says everything, in one line."""


def _quoted(value: object) -> str:
    text = json.dumps(value) if not isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:80] + "..."


def rows_of(rows: Any, convert: Callable[[Any], T]) -> tuple[tuple[T, ...], ...]:
    """Nested sequences, an array or a tensor as tuples."""
    if hasattr(rows, "tolist"):
        rows = rows.tolist()
    return tuple(tuple(convert(value) for value in row) for row in rows)


def role(value: Any) -> bool:
    """A mask value, 0 or 1."""
    if value not in (0, 1):
        raise ValueError(f"pattern: mask values must be 0 or 1, found {value!r}")
    return bool(value)


def check(pattern: Pattern, what: str) -> None:
    """Refuses what loading would refuse; `what` names the pattern in messages."""
    model = pattern.model

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{what}: {message}")

    def is_integer(value: Any) -> bool:
        try:
            return not isinstance(value, bool) and operator.index(value) <= _MAX_INT
        except TypeError:
            return False

    sizes = (model.layers, model.kv_heads, model.query_heads, model.head_dim)
    for name, value in zip(("sink", "window", *_MODEL_KEYS[1:]), (pattern.sink, pattern.window, *sizes), strict=True):
        if not is_integer(value):
            refuse(f"{name} must be an integer below 2**63, found {value!r}")
    for name, value in (("the model's type", model.type), *((f"provenance {k!r}", k) for k in pattern.provenance)):
        if not isinstance(value, str):
            refuse(f"{name} must be a text, found {value!r}")
    for name, value in pattern.provenance.items():
        if not isinstance(value, str):
            refuse(f"the value of provenance {name!r} must be a text, found {value!r}; use str()")
    if not model.type or min(sizes) < 1:
        refuse("the model's type, layers, kv_heads, query_heads and head_dim must all be given")
    if model.query_heads % model.kv_heads != 0:
        refuse(f"query_heads {model.query_heads} is not a multiple of kv_heads {model.kv_heads}")
    for name, rows in (("scores", pattern.scores), ("mask", pattern.mask)):
        if len(rows) != model.layers or any(len(row) != model.kv_heads for row in rows):
            refuse(
                f"expected {name} of {model.layers} layers x {model.kv_heads} KV heads, found "
                f"{len(rows)} rows of {'/'.join(map(str, sorted({len(row) for row in rows})))}"
            )
    for layer, row in enumerate(pattern.scores):
        for head, score in enumerate(row):
            if not math.isfinite(score):
                refuse(f"the score of layer {layer}, head {head} is not a finite number")
    if not 0 <= pattern.sparsity <= 1:
        refuse(f"sparsity must be from 0 to 1, found {pattern.sparsity}")
    if pattern.sink < 0:
        refuse(f"sink must be at least 0, found {pattern.sink}")
    if pattern.window < 1:
        refuse(f"window must be at least 1, found {pattern.window}")


def _parse_json(file: Path, content: bytes) -> Any:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise _Refusal(f"{file}: key {_quoted(key)} stands there twice")
            result[key] = value
        return result

    def no_constant(name: str) -> NoReturn:
        raise _Refusal(f"{file}: not valid JSON: {name} is no number of JSON")

    try:
        return json.loads(content.decode(), object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except _Refusal:
        raise
    except RecursionError:
        raise ValueError(f"{file}: nested too deeply to be a pattern") from None
    except ValueError as error:  # of the decoder and of JSON
        raise ValueError(f"{file}: not valid JSON: {error}") from None


class _Fields:
    """Reads the values of one object; every refusal names file and key."""

    def __init__(self, file: Path, prefix: str, values: Mapping[str, Any], keys: Sequence[str], others: bool = False):
        self._file, self._prefix, self._values = file, prefix, values
        for key in values:
            if key not in keys and not others:
                raise ValueError(f"{file}: unknown key {prefix}{_quoted(key)[1:-1]}")
        for key in keys:
            if key not in values:
                raise ValueError(f"{file}: key {prefix}{key} is missing")

    def refuse(self, key: str, expected: str, found: object) -> NoReturn:
        raise ValueError(f"{self._file}: key {self._prefix}{key}: expected {expected}, found {_quoted(found)}")

    def integer(self, key: str, minimum: int) -> int:
        value = self._values[key]
        if type(value) is not int or not minimum <= value <= _MAX_INT:  # bool is an int to isinstance
            self.refuse(key, f"an integer of at least {minimum}", value)
        return value

    def number(self, key: str, minimum: float, maximum: float) -> float:
        value = self._values[key]
        if type(value) not in (int, float) or not minimum <= value <= maximum:
            self.refuse(key, f"a number from {minimum:g} to {maximum:g}", value)
        return float(value)

    def text(self, key: str) -> str:
        value = self._values[key]
        if type(value) is not str or not value:
            self.refuse(key, "a text that is not empty", value)
        return value

    def object(self, key: str) -> dict[str, Any]:
        value = self._values[key]
        if type(value) is not dict:
            self.refuse(key, "an object", value)
        return value

    def matrix(self, key: str, layers: int, kv_heads: int, expected: str, good: Callable[[Any], bool]) -> Any:
        rows = self._values[key]
        size = f"{layers} rows (layers) of {kv_heads}"
        if type(rows) is not list:
            self.refuse(key, size, rows)
        if len(rows) != layers:
            raise ValueError(f"{self._file}: key {self._prefix}{key}: expected {size}, found {len(rows)} rows")
        for layer, row in enumerate(rows):
            if type(row) is not list or len(row) != kv_heads:
                self.refuse(f"{key}[{layer}]", f"{kv_heads} values (KV heads)", row)
            for head, value in enumerate(row):
                if not good(value):
                    self.refuse(f"{key}[{layer}][{head}]", expected, value)
        return rows


def _is_score(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(float(value))
    except OverflowError:
        return False


def parse(file: Path, content: bytes) -> dict[str, Any]:
    """The fields of a Pattern, from the content of a pattern file."""
    root = _parse_json(file, content)
    if type(root) is not dict or root.get("format") != FORMAT:
        raise ValueError(f'{file}: not a pattern file: no "format": "{FORMAT}"')
    if type(root.get("version")) is not int or root["version"] != VERSION:
        found = _quoted(root["version"]) if "version" in root else "none"
        raise ValueError(f"{file}: key version: this program reads version {VERSION}, found {found}")
    fields = _Fields(file, "", root, _KEYS)
    shape = _Fields(file, "model.", fields.object("model"), _MODEL_KEYS)
    model: dict[str, Any] = {"type": shape.text("type")}
    model.update({key: shape.integer(key, 1) for key in _MODEL_KEYS[1:]})
    if model["query_heads"] % model["kv_heads"] != 0:
        heads = (model["query_heads"], model["kv_heads"])
        raise ValueError(f"{file}: query_heads {heads[0]} is not a multiple of kv_heads {heads[1]}")
    provenance = fields.object("provenance")
    for key, value in provenance.items():
        if type(value) is not str:
            fields.refuse(f"provenance.{_quoted(key)[1:-1]}", "a text", value)
    size = (model["layers"], model["kv_heads"])
    return {
        "model": model,
        "sink": fields.integer("sink", 0),
        "window": fields.integer("window", 1),
        "sparsity": fields.number("sparsity", 0, 1),
        "mask": fields.matrix("mask", *size, "0 or 1", lambda value: type(value) is int and value in (0, 1)),
        "scores": fields.matrix("scores", *size, "a finite number", _is_score),
        "provenance": provenance,
    }


def integer_of_json(file: Path, content: bytes, key: str, minimum: int) -> int:
    """An integer of a JSON object that holds other keys too."""
    root = _parse_json(file, content)
    if type(root) is not dict:
        raise ValueError(f"{file}: expected a JSON object")
    return _Fields(file, "", root, (key,), others=True).integer(key, minimum)


def read_table(file: Path) -> tuple[tuple[float, ...], ...]:
    """Tab-separated numbers without a header, every row equally long."""
    text = file.read_bytes().decode("utf-8", "replace").rstrip("\r\n")
    if not text:
        raise ValueError(f"{file}: an empty table; expected a row per layer and a column per KV head")
    rows: list[tuple[float, ...]] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        where = f"{file}:{number}"
        if not line:
            raise ValueError(f"{where}: an empty row")
        values = []
        for cell in line.split("\t"):
            if not _NUMBER.fullmatch(cell) or not math.isfinite(float(cell)):
                raise ValueError(
                    f"{where}: expected a finite number, found {cell[:40]!r} (columns are separated by tabs)"
                )
            values.append(float(cell))
        if rows and len(values) != len(rows[0]):
            raise ValueError(f"{where}: {len(values)} columns, but the rows before have {len(rows[0])}")
        rows.append(tuple(values))
    return tuple(rows)


def refuse_arbitrary_cut(file: Path, scores: Sequence[float], sparsity: float, keep: int) -> None:
    """Two distinct scores are a mask, not a ranking: a cut inside either half would choose heads by position alone."""
    order = sorted(scores, reverse=True)
    if 0 < keep < len(order) and order[keep - 1] == order[keep] and len(set(order)) <= 2:
        raise ValueError(
            f"{file}: a mask, not a ranking: it tells {order.count(order[0])} of {len(order)} heads from the others, "
            f"and sparsity {sparsity:g} keeps {keep}; leave sparsity out to take the mask as it is"
        )


def to_json(pattern: Pattern) -> str:
    """The text of a pattern file, one line per layer; numbers read back exactly."""

    def matrix(rows: Sequence[Sequence[Any]]) -> str:
        return "[\n" + ",\n".join("    [" + ", ".join(map(repr, row)) + "]" for row in rows) + "\n  ]"

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    model = pattern.model
    texts = sorted(pattern.provenance.items())
    provenance = ",".join(f"\n    {quoted(key)}: {quoted(value)}" for key, value in texts)
    return (
        f'{{\n  "format": "{FORMAT}",\n  "version": {VERSION},\n  "model": {{"type": {quoted(model.type)}, '
        f'"layers": {model.layers}, "kv_heads": {model.kv_heads}, "query_heads": {model.query_heads}, '
        f'"head_dim": {model.head_dim}}},\n  "sink": {pattern.sink},\n  "window": {pattern.window},\n'
        f'  "sparsity": {pattern.sparsity!r},\n  "mask": {matrix([[int(v) for v in row] for row in pattern.mask])},\n'
        f'  "scores": {matrix(pattern.scores)},\n  "provenance": {{{provenance}' + ("\n  }" if texts else "}") + "\n}\n"
    )


def write_atomically(file: Path, text: str) -> None:
    """`file` holds its old content or all of the new one, whatever happens."""
    temporary = file.with_name(file.name + ".tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(text.encode("utf-8", "replace"))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_folder(folder: Path, pattern: str, table: str) -> None:
    """pattern.json and masks.tsv: a new folder appears whole; in an old one the two never disagree."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_name(f"{folder.name}.tmp{os.getpid()}")
        unfinished.mkdir()
        try:
            write_atomically(unfinished / "masks.tsv", table)
            write_atomically(unfinished / "pattern.json", pattern)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return
    if not folder.is_dir():
        raise ValueError(f"{folder}: not a folder; name another one")
    (folder / "masks.tsv").unlink(missing_ok=True)
    write_atomically(folder / "pattern.json", pattern)
    write_atomically(folder / "masks.tsv", table)
