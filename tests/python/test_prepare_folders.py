# SPDX-License-Identifier: MIT
"""What scripts/prepare_data.py may replace: its own finished folder, never an input, and only once the new one is there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prepare_program import ROOT, TEXT, model, recall_arguments, run, words  # noqa: F401
from preparation import folders

# ruff: noqa: F811 (fixtures)


def contents(folder):
    """Every file below a folder with its bytes, links as links."""
    return {path.relative_to(folder).as_posix(): path.readlink() if path.is_symlink() else path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()}


@pytest.fixture()
def refused(model, tmp_path, capsys):
    """Runs `text` with --overwrite and expects one line of refusal that names both, and nothing changed."""
    def check(message, out, *inputs, tokenizer=model):
        before = contents(tmp_path)
        assert run("text", tokenizer, out, *inputs, "--overwrite") == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert contents(tmp_path) == before
    return check


@pytest.fixture()
def book(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT)
    return tmp_path / "book.txt"


@pytest.fixture()
def finished(model, book, tmp_path, capsys):
    """A finished folder of other text."""
    (tmp_path / "other.txt").write_text("Something else.")
    assert run("text", model, tmp_path / "out", tmp_path / "other.txt") == 0
    capsys.readouterr()
    return tmp_path / "out"


@pytest.mark.parametrize("files, message", [
    ({"thesis.tex": "chapter one"}, "holds 'thesis.tex' and no data.json or kit.json"),
    ({".hidden": "x"}, "holds '.hidden' and no data.json"),
    ({"data.json": '{"format": "of another program"}', "tokens.npy": ""}, "its data.json is none of prulong"),
    ({"data.json": "[1]"}, "its data.json is none of prulong"),
    ({"data.json": "[" * 100000}, "its data.json is none of prulong"),
    ({"kit.json": '{"format": "prulong-tokens"}'}, "its kit.json is none of prulong"),
    ({"data.json": '{"format": "prulong-tokens"}', "notes.txt": "mine"}, "holds 'notes.txt', which does not belong to"),
    ({"data.json": '{"format": "prulong-tokens"}', "sub/a": "mine"}, "holds 'sub', which does not belong to"),
    ({"data.json": '{"format": "prulong-tokens"}', "shard.00000.mds": "mine"}, "holds 'shard.00000.mds', which"),
    ({"data.json": '{"format": "prulong-mds"}', "shard.00000.mds.bak": "mine"}, "holds 'shard.00000.mds.bak', which"),
    ({}, "is empty"),
])
def test_only_a_finished_folder_of_ours_is_replaced(refused, book, tmp_path, files, message):
    (tmp_path / "mine").mkdir()
    for name, content in files.items():
        (tmp_path / "mine" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "mine" / name).write_text(content)
    refused(message, tmp_path / "mine", book)
    refused(message, tmp_path / "mine" / ".." / "mine", book)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    refused(message, tmp_path / "link", book)


def test_a_link_inside_a_finished_folder_is_not_ours(refused, finished, book, tmp_path):
    (tmp_path / "tokens.npy").write_bytes((finished / "tokens.npy").read_bytes())
    (finished / "tokens.npy").unlink()
    (finished / "tokens.npy").symlink_to(tmp_path / "tokens.npy")
    refused("holds 'tokens.npy', which does not belong", finished, book)


def test_a_folder_does_not_take_the_place_of_a_file(refused, model, book, tmp_path, capsys):
    refused("book.txt: holds the input", book, book)
    (tmp_path / "file").write_text("mine")
    refused("file: is a file, a folder expected", tmp_path / "file", book)
    refused("is a file; give another --out", tmp_path / "file" / "out", book)
    (tmp_path / "loop").symlink_to("loop")
    refused("loop: is a file, a folder expected", tmp_path / "loop", book)
    with pytest.raises(SystemExit):
        run("text", model, "", book)
    assert "a folder expected, an empty name found" in capsys.readouterr().err


def test_a_folder_that_holds_an_input_is_never_replaced(refused, finished, model, book, tmp_path):
    refused("out: holds the input", finished, finished / "data.json")
    os.link(finished / "tokens.npy", tmp_path / "linked.txt")
    refused("out: holds the input", finished, tmp_path / "linked.txt")
    (tmp_path / "link.json").symlink_to("out/data.json")
    refused("out: holds the input", finished, book, tmp_path / "link.json")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.json").symlink_to(finished / "data.json")
    refused("out: holds the input", finished, tmp_path / "texts")
    (finished / "in.txt").write_text("mine")
    refused("out: holds the input", finished, finished / "in.txt")
    refused("out: holds the input", finished, book, tmp_path / "texts" / ".." / "out" / "in.txt")
    (tmp_path / "link").symlink_to(finished)
    refused("link: holds the input", tmp_path / "link", finished / "in.txt")
    refused("out: holds the input", finished, tmp_path / "link" / "in.txt")
    (finished / "in.txt").unlink()
    (finished / "model").mkdir()
    (finished / "model" / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    refused("out: holds the input", finished, book, tokenizer=finished / "model")
    refused("model: holds the input", finished / "model", book, tokenizer=finished / "model")


def test_an_input_folder_is_neither_replaced_nor_written_into(refused, book, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("My only copy.")
    (tmp_path / "link").symlink_to(texts)
    for out in (texts, texts / "out", texts / "new" / "out", tmp_path / "link", tmp_path / "link" / "out",
                texts / ".." / "texts" / "out"):
        refused("lies in the input folder", out, texts)
        refused("lies in the input folder", out, book, tmp_path / "link")
    refused("holds the input", tmp_path, texts)


def test_inputs_of_a_kit_are_kept(model, words, tmp_path, capsys):
    kit = tmp_path / "kit"
    assert run("recall", model, kit, *recall_arguments(words)) == 0
    (kit / "train.txt").write_text(TEXT)
    for out in (kit, words):
        before = contents(tmp_path)
        arguments = [*recall_arguments(words)[2:], "--train-prose", kit / "train.txt"]
        assert run("recall", model, out, *arguments, "--overwrite") == 1
        assert "holds the input" in capsys.readouterr().err and contents(tmp_path) == before


def test_through_a_link_the_folder_itself_is_replaced(model, finished, book, tmp_path):
    (tmp_path / "link").symlink_to("out")
    assert run("text", model, tmp_path / "link", book, "--overwrite") == 0
    assert (tmp_path / "link").is_symlink()
    assert json.loads((finished / "data.json").read_text())["inputs"]["sources"][0]["name"] == "book.txt"


def test_a_folder_that_is_not_whole_is_not_up_to_date(model, finished, tmp_path, capsys):
    (finished / "tokens.npy").write_bytes((finished / "tokens.npy").read_bytes()[:-2] + b"\1\0")
    assert run("text", model, finished, tmp_path / "other.txt") == 1
    assert "its files are not as they were written; give another --out, or --overwrite" in capsys.readouterr().err
    (finished / "tokens.npy").unlink()
    assert run("text", model, finished, tmp_path / "other.txt") == 1
    assert run("text", model, finished, tmp_path / "other.txt", "--overwrite") == 0
    assert run("text", model, finished, tmp_path / "other.txt") == 0
    assert "up to date" in capsys.readouterr().out
    shards = tmp_path / "shards"
    for arguments, code in (([], 0), ([], 1), (["--overwrite"], 0)):
        assert run("text", model, shards, tmp_path / "other.txt", "--format", "mds", *arguments) == code
        (shards / "shard.00000.mds").unlink(missing_ok=True)


def test_data_of_another_kind_is_other_data(model, finished, words, tmp_path, capsys):
    assert run("recall", model, finished, *recall_arguments(words)) == 1
    assert "exists and holds other data" in capsys.readouterr().err
    assert run("recall", model, finished, *recall_arguments(words), "--overwrite") == 0
    assert sorted(os.listdir(finished)) == ["kit.json", "offsets.npy", "tokens.npy"]


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_while_folders_change_places_leaves_the_old_one(model, finished, book, tmp_path, monkeypatch, failing,
                                                                   error):
    before, calls, rename = contents(tmp_path), [], Path.rename

    def fail(self, target):
        calls.append(self)
        if len(calls) == failing:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    assert run("text", model, finished, book, "--overwrite") == (1 if isinstance(error, OSError) else 130)
    assert contents(tmp_path) == before and len(calls) >= failing
    assert sorted(p.name for p in tmp_path.iterdir()) == ["book.txt", "other.txt", "out"]


def test_what_came_meanwhile_is_kept(finished, tmp_path):
    def work(out, overwrite, change):
        with folders.new_folder(out, overwrite) as new:
            (new / "data.json").write_text("{}")
            change()
    with pytest.raises(folders.DataError, match="holds 'notes.txt'"):
        work(finished, True, lambda: (finished / "notes.txt").write_text("mine"))
    assert (finished / "notes.txt").read_text() == "mine" and (finished / "tokens.npy").is_file()
    with pytest.raises(folders.DataError, match="something else made it meanwhile"):
        work(tmp_path / "new", False, (tmp_path / "new").mkdir)
    assert not list((tmp_path / "new").iterdir()) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("stop, clean", [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGHUP, True),
                                         (signal.SIGKILL, False)])
def test_an_interrupted_run_leaves_the_old_folder(model, finished, tmp_path, stop, clean):
    before = contents(finished)
    (tmp_path / "long.txt").write_text("A sentence as it goes, and on.\n" * 400_000)
    command = [sys.executable, ROOT / "scripts" / "prepare_data.py", "text", "--tokenizer", model, "--out", finished,
               "--split", "line", "--overwrite", tmp_path / "long.txt"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".out.*/new/tokens.npy")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(stop)
    output, error = process.communicate(timeout=60)
    assert process.returncode not in (0, 1), output + error
    assert contents(finished) == before
    assert "Traceback" not in error
    assert not clean or not list(tmp_path.glob(".out.*"))
