# SPDX-License-Identifier: MIT
"""docs/bench/targets.json: every target figure, held against the file that it was read from."""

import json
import operator
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = json.loads((ROOT / "docs/bench/targets.json").read_text())
COMPARE = {">=": operator.ge, "<=": operator.le}
KEYS = {"name", "target", "measured", "met", "file", "key", "command", "commit", "machine"}


def test_names_are_distinct():
    names = [row["name"] for row in ROWS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_a_row_is_what_its_file_says(row):
    assert row.keys() == KEYS
    figures = json.loads((ROOT / row["file"]).read_text())
    assert row["commit"] == figures["commit"] and row["command"] == figures["command"]
    value = figures
    for step in row["key"].split("/"):
        value = value[int(step) if isinstance(value, list) else step]
    assert row["measured"] == value
    sign, limit = re.fullmatch(r"(>=|<=) (\S+)", row["target"]).groups()
    assert row["met"] is COMPARE[sign](value, float(limit))
