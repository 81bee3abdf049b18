# SPDX-License-Identifier: MIT
"""Signals at any moment, readers that go away, descriptors that are closed: no step is lost, no file written into."""

import hashlib
import os
import signal
import subprocess
import time

import numpy as np
import pytest

from train_program import assert_same_run, metrics, train, wait_for_step  # noqa: F401 (train: a fixture)


def shell(bin_folder, tmp_path, line, **options):
    """A line of bash in which $T is prulong-train on the fixture's configuration."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", T=f"{bin_folder}/prulong-train {tmp_path}/train.yaml", **options)
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, timeout=300)


def hashes(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_stop_in_an_evaluation_saves_and_the_evaluation_is_made_later(train, tmp_path):
    options = ["train.steps=8", "eval.every=4", "checkpoint.every=0", "eval.sequences=40"]
    train(*options, f"run.dir={tmp_path}/whole")
    run = tmp_path / "run"
    for number in (signal.SIGTERM, signal.SIGHUP):  # in the evaluation after step 4, in that at the end
        process = train(*options, f"run.dir={run}", start=True)
        wanted = 4 if number == signal.SIGTERM else 8
        while not (run / "metrics.jsonl").exists() or f'"step":{wanted},' not in (run / "metrics.jsonl").read_text():
            time.sleep(0.001)
        process.send_signal(number)
        _, text = process.communicate(timeout=60)
        assert process.returncode == 0 and f"stopped by a signal after step {wanted}, saved" in text, text
        assert (run / "checkpoints" / f"step-0000000{wanted}.json").exists()
    train(*options, f"run.dir={run}")
    assert_same_run(tmp_path / "whole", run)
    assert "nothing to do" in train(*options, f"run.dir={run}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_each_signal_saves(train, tmp_path, number):
    process = train("train.steps=4000", "checkpoint.every=2", "eval.every=0", start=True)
    wait_for_step(process, tmp_path / "run", 2)
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped by a signal" in text, text
    step = metrics(tmp_path / "run")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:08}.json").exists()


def test_a_reader_that_goes_away_costs_no_step(train, bin_folder, tmp_path):
    for name, line in (("head", "$T run.dir=$R 2>&1 | head -1; exit ${PIPESTATUS[0]}"),
                       ("none", "$T run.dir=$R 2> >(exec 0<&-; sleep 1)"), ("out", "$T run.dir=$R | true")):
        done = shell(bin_folder, tmp_path, line, R=f"{tmp_path}/{name}")
        assert done.returncode == 0, done.stderr
        assert metrics(tmp_path / name)[-1]["step"] == 12
        assert "finished 12 steps" in (tmp_path / name / "log.txt").read_text()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_write_into_no_file(train, world, bin_folder, tmp_path, closed):
    before = hashes(world)
    assert shell(bin_folder, tmp_path, f"$T {closed}").returncode == 0
    assert metrics(tmp_path / "run")[-1]["step"] == 12
    assert hashes(world) == before
    assert (tmp_path / "run" / "log.txt").read_text().count("finished 12 steps") == 1
    assert all(line.startswith("{") for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    export = f"{bin_folder}/prulong-export $PWD/run --out $PWD/out {closed}"
    done = subprocess.run(["bash", "-c", export], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "pattern.json").read_text().startswith("{")


def test_output_that_is_lost_is_an_error_of_its_own(train, bin_folder, tmp_path):
    done = shell(bin_folder, tmp_path, "$T --show-config > /dev/full")
    assert done.returncode == 1 and "standard output: cannot be written" in done.stderr
    assert shell(bin_folder, tmp_path, "$T --show-config | true; exit ${PIPESTATUS[0]}").returncode == 0


def test_what_a_run_cannot_mean_is_said(train, world, tmp_path):
    text = train("train.steps=1", "train.seq_len=700", "data.eval=[]",
                 f"data.train=[{{type: recall, path: {world}/kit, tasks: [codes], statements: 2, questions: 2}}]")
    assert "warning: data.train: documents of 700 tokens go beyond the 512 positions" in text
    text = train("train.steps=1", "attention.window=150", f"run.dir={tmp_path}/brief", "data.eval=[]",
                 f"data.train=[{{type: recall, path: {world}/kit, tasks: [codes], statements: 2, questions: 2}}]")
    assert "warning" not in text
    rows = tmp_path / "rows.npy"
    np.save(rows, np.random.default_rng(0).integers(0, 400, (60, 20)).astype(np.uint16))
    text = train("train.steps=1", f"run.dir={tmp_path}/short", "data.eval=[]",
                 f"data.train=[{{type: npy, path: {rows}}}]")
    assert "is longer than sink + window = 20 tokens (the longest has 20)" in text
    assert text.count("warning") == 1 and "warning" in (tmp_path / "short" / "log.txt").read_text()
