# SPDX-License-Identifier: MIT
"""Every type of source through prulong-train: the same run again after a stop, damage refused in one line."""

import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer

from tiny_world import VOCAB, prepare_data
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
    (lambda mds: (mds / "index.json").write_text("{}"), 'index.json: "version" is missing'),
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


@pytest.fixture()
def padded(world, tmp_path):
    """The tiny world's tokenizer with an unused token behind the model's rows."""
    tokenizer = Tokenizer.from_file(str(world / "model" / "tokenizer.json"))
    assert tokenizer.add_special_tokens(["[PAD]"]) == 1 and tokenizer.token_to_id("[PAD]") == VOCAB
    (tmp_path / "padded").mkdir()
    tokenizer.save(str(tmp_path / "padded" / "tokenizer.json"))
    return tmp_path / "padded"


def prepare(kind, padded, out, *arguments):
    assert prepare_data.main([kind, "--tokenizer", str(padded), "--out", str(out), *map(str, arguments)]) == 0
    record = out / ("kit.json" if kind == "recall" else "data.json")
    content = json.loads(record.read_text())
    assert content["vocab_size"] == VOCAB + 1
    return record, content


@pytest.mark.parametrize("kind", ["tokens", "mds"])
def test_a_token_that_the_model_lacks_and_no_text_has_changes_nothing(train, world, padded, tmp_path, kind):  # noqa: F811
    (tmp_path / "pad.txt").write_text("A [PAD] in the text." * 40)
    record, content = prepare("text", padded, tmp_path / "new" / kind, "--format", kind, world / "book.txt")
    prepare("text", padded, tmp_path / "bad" / kind, "--format", kind, tmp_path / "pad.txt")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    del content["largest_token"]  # as folders were written before
    (tmp_path / "old" / kind / "data.json").write_text(json.dumps(content))
    bad = tmp_path / "bad" / kind / "data.json"
    shutil.copytree(tmp_path / "bad", tmp_path / "old-bad")
    (tmp_path / "old-bad" / kind / "data.json").write_text(json.dumps(
        {k: v for k, v in json.loads(bad.read_text()).items() if k != "largest_token"}))
    for data in ("new", "old"):
        train(f"data.train=[{source(tmp_path / data, kind)}]", "train.loss_tokens=all", f"run.dir={tmp_path}/run-{data}")
    for data in ("bad", "old-bad"):
        error = error_line(train(f"data.train=[{source(tmp_path / data, kind)}]", "train.loss_tokens=all", code=1))
        assert f"token {VOCAB} " in error and str(tmp_path / data / kind) in error


def test_a_kit_of_a_tokenizer_with_a_token_that_the_model_lacks(train, world, padded, tmp_path):  # noqa: F811
    words = world / "words"
    record, content = prepare("recall", padded, tmp_path / "kit", "--words", words,
                              *(f"--{split}-prose={words}/{split}.txt" for split in ("train", "eval")))
    kit = ["data.train.0.path=" + str(tmp_path / "kit"), "data.eval.0.path=" + str(tmp_path / "kit")]
    train(*kit)
    content["templates"]["codes"]["after"] = [VOCAB]
    record.write_text(json.dumps(content))
    assert f"token {VOCAB} occurs" in error_line(train(*kit, f"run.dir={tmp_path}/other", code=1))
