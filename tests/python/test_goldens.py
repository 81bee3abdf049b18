# SPDX-License-Identifier: MIT
"""tests/goldens: what its comparison says, on values made here; recording itself takes minutes and a build."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "goldens"
SPEC = importlib.util.spec_from_file_location("goldens_store", FOLDER / "store.py")
store = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(store)


def goldens(array=None, metrics=None, random=0.5):
    found = store.Goldens({"commit": "none"})

    def work(add):
        add("first", array=torch.arange(100.0) if array is None else array,
            metrics={"loss": [1.0, 2.0], "step": [1, 2]} if metrics is None else metrics)
        add(store.INTENDED, accuracy=random)

    found.record("part", work)
    return found


@pytest.mark.parametrize("whole", [True, False])
def test_what_was_written_is_read_and_equal(whole, tmp_path, capsys):
    goldens().write(tmp_path)
    json.loads((tmp_path / store.SUMMARY).read_text())
    before = store.Goldens.read(tmp_path if whole else (tmp_path / store.ARRAYS).unlink() or tmp_path / store.SUMMARY)
    assert store.compare(before, goldens())
    assert "part: 2 cases, 3 values: equal" in capsys.readouterr().out


def test_a_difference_of_one_bit_is_found_and_sized(capsys):
    changed = torch.arange(100.0)
    changed[50] = torch.nextafter(changed[50], torch.tensor(100.0))
    assert not store.compare(goldens(), goldens(array=changed))
    assert "part / first / array: bits differ; largest difference 3.85e-08" in capsys.readouterr().out


@pytest.mark.parametrize("changes, said, same", [
    ({"metrics": {"loss": [1.0, 2.5], "step": [1, 2]}}, "1 numbers differ, at most by 0.2 relative: loss.1 was 2.0",
     False),
    ({"metrics": {"loss": [1.0, 2.0]}}, "step.0 is gone", False),
    ({"metrics": {"loss": [1.0, 2.0], "step": [1, 2], "rank": [0]}}, "new: rank.0", True),
    ({"metrics": {"loss": [1.0, "nan"], "step": [1, 2]}}, "loss.1 was 2.0, is 'nan'", False),
    ({"array": torch.arange(99.0)}, "100 elements became 99", False),
    ({"array": torch.arange(100.0, dtype=torch.float64)}, "bits differ", False),
    ({"random": 0.25}, "differs as intended", True),
])
def test_differences_are_named(changes, said, same, capsys):
    assert store.compare(goldens(), goldens(**changes)) == same
    assert said in capsys.readouterr().out


def test_a_case_that_is_gone_is_a_difference(capsys):
    after = goldens()
    del after.parts["part"]["first"]
    assert not store.compare(goldens(), after)
    assert "part / first / array: is gone" in capsys.readouterr().out
