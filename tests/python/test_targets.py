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


def test_ratios_to_flash_attention_4_are_those_of_the_measured_times():
    figures = json.loads((ROOT / "docs/bench/attention_fa4_h200.json").read_text())

    def times(section, name, tokens, head_dim=128):
        return next(row for row in figures["rows"]
                    if (row["section"], row["name"], row["tokens"], row["head_dim"]) == (section, name, tokens, head_dim))

    def total(section, name):
        row = times(section, name, 32768)
        return row["forward_ms"] + row["backward_ms"]

    expected = {
        "all_fractional_of_plain_32768": total("fractional", "ours, all fractional") / total("fractional", "ours, all global"),
        "70_local_of_plain_32768": total("saturated", "ours, 70 % local") / total("saturated", "ours, all global"),
    }
    for tokens, head_dim in ((4096, 128), (16384, 128), (65536, 128), (16384, 64)):
        ours, peer = (times("causal", name, tokens, head_dim) for name in ("ours", "FlashAttention 4"))
        for direction in ("forward", "backward"):
            expected[f"{direction}_d{head_dim}_{tokens}_of_fa4"] = peer[f"{direction}_ms"] / ours[f"{direction}_ms"]
    assert figures["ratios"] == pytest.approx(expected, abs=6e-4)
