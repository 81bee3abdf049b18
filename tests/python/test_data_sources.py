# SPDX-License-Identifier: MIT
"""Every type of source through prulong-train: the same run again after a stop, damage refused in one line."""

import numpy as np
import pytest

from tiny_world import prepare_data
from train_program import assert_same_run, error_line, train  # noqa: F401 (train: a fixture)


@pytest.fixture(scope="module")
def data(world, tmp_path_factory):
    """Folders mds, npy and raw with the tokens of the tiny world's book."""
    folder = tmp_path_factory.mktemp("data")
    assert prepare_data.main(["text", "--tokenizer", str(world / "model"), "--out", str(folder / "mds"), "--format", "mds",
                              "--sample-tokens", "64", str(world / "book.txt")]) == 0
    tokens = np.load(world / "tokens" / "tokens.npy")
    for name in ("npy", "raw"):
        (folder / name).mkdir()
    for index, part in enumerate(np.array_split(tokens, 3)):
        np.save(folder / "npy" / f"{index}.npy", part)
        part.tofile(folder / "raw" / f"{index}.bin")
    return folder


def source(data, kind, **keys):
    keys = {"type": kind, "path": data / kind, **({"dtype": "uint16"} if kind == "raw" else {}), **keys}
    return "{" + ", ".join(f"{name}: {value}" for name, value in keys.items()) + "}"


def test_a_mixture_of_every_type_goes_on_from_one_integer(train, data, tmp_path):  # noqa: F811
    sources = ", ".join([source(data, "mds", weight=3), source(data, "npy", end_token=5), source(data, "raw")])
    common = [f"data.train=[{sources}]", "train.loss_tokens=all"]
    train(*common, "train.steps=10", "checkpoint.every=2", f"run.dir={tmp_path}/whole")
    part = [*common, "train.steps=10", "checkpoint.every=2", f"run.dir={tmp_path}/part"]
    train(*part)
    for file in sorted((tmp_path / "part" / "checkpoints").glob("step-*"))[2:]:
        file.unlink()  # what a run that was stopped earlier has not written
    assert "going on after step" in train(*part)
    assert_same_run(tmp_path / "whole", tmp_path / "part")


@pytest.mark.parametrize("damage, message", [
    (lambda mds: (mds / "shard.00000.mds").write_bytes((mds / "shard.00000.mds").read_bytes()[:-1]),
     "bytes expected by index.json"),
    (lambda mds: (mds / "shard.00000.mds").unlink(), "shard.00000.mds: cannot open"),
    (lambda mds: (mds / "index.json").write_text("{}"), "index.json: /version is missing"),
])
def test_damaged_shards_end_a_run_in_one_line(train, data, tmp_path, damage, message):  # noqa: F811
    copy = tmp_path / "mds"
    copy.mkdir()
    for file in (data / "mds").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    damage(copy)
    assert message in error_line(train(f"data.train=[{source(tmp_path, 'mds')}]", "train.loss_tokens=all", code=1))


def test_tokens_beyond_the_models_vocabulary_are_refused(train, data, tmp_path):  # noqa: F811
    np.full(500, 60000, "<u2").tofile(tmp_path / "raw")
    assert "is beyond the vocabulary of" in error_line(
        train(f"data.train=[{source(tmp_path, 'raw')}]", "train.loss_tokens=all", code=1))
