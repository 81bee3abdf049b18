# SPDX-License-Identifier: MIT
"""prulong-train with several ranks, of which one is killed, stopped, or hangs."""

import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

import ranks
from ranks_program import ours, plain, spread  # noqa: F401 (spread: a fixture)
from train_program import final_state, metrics, train  # noqa: F401 (train: a fixture)

FOUR = "train.sequences_per_step=4"


@pytest.fixture
def started(train, bin_folder, tmp_path):  # noqa: F811
    """Starts prulong-train with ranks: started(count, *overrides), and ends what is left of it."""
    processes = []

    def start(count, *overrides, options=()):
        processes.append(ranks.start(count, bin_folder / "prulong-train", tmp_path / "train.yaml", *overrides,
                                     options=options))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_for_step(process, run, step):
    """Waits until a run has logged a step, and returns that which it has reached."""
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline and process.poll() is None:
        steps = [line["step"] for line in metrics(run)] if (run / "metrics.jsonl").exists() else []
        if steps and steps[-1] >= step:
            return steps[-1]
        time.sleep(0.01)
    pytest.fail("no step in time: " + (process.communicate()[0] if process.poll() is not None else "still running"))


def wait_for_restart(process, before):
    """Waits until torchrun has started all workers anew."""
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and process.poll() is None:
        now = ranks.workers(process)
        if len(now) == len(before) and not set(now.values()) & set(before.values()):
            return
        time.sleep(0.02)
    pytest.fail("no restart in time")


def same_result(one, other):
    assert plain(one) == plain(other)
    for name, tensor in final_state(one).items():
        assert tensor.numpy().tobytes() == final_state(other)[name].numpy().tobytes(), name
    assert (one / "masks.tsv").read_text() == (other / "masks.tsv").read_text()


def test_kills_of_any_rank_cost_nothing(train, started, tmp_path):  # noqa: F811
    steps = [FOUR, "train.steps=40", "eval.every=13"]
    train(*steps, f"run.dir={tmp_path}/whole")
    run = tmp_path / "killed"
    process = started(2, *steps, f"run.dir={run}", options=["--max-restarts", "3"])
    moment = random.Random(int(os.environ.get("PRULONG_SEED", "1")))
    reached = 0
    for _ in range(3):
        reached = wait_for_step(process, run, reached + moment.randint(3, 9))
        time.sleep(moment.uniform(0, 0.05))
        before = ranks.workers(process)
        os.kill(before[moment.randrange(2)], signal.SIGKILL)
        wait_for_restart(process, before)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert text.count("going on after step") == 3
    lines = ours(text)
    assert len(lines) == 3 and all("of 2 gives no sign of life since '" in line for line in lines), text
    same_result(tmp_path / "whole", run)


@pytest.mark.parametrize("whom", ["all", "rank 0", "rank 1"])
def test_a_stop_is_one_step_of_all(whom, train, started, spread, tmp_path):  # noqa: F811
    steps = [FOUR, "train.steps=30", "checkpoint.every=0", "eval.every=0"]
    train(*steps, f"run.dir={tmp_path}/whole")
    run = tmp_path / "stopped"
    process = started(2, *steps, f"run.dir={run}")
    wait_for_step(process, run, 5)
    os.kill(process.pid if whom == "all" else ranks.workers(process)[int(whom[-1])], signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert "stopped by a signal after step" in text and ours(text) == [], text
    assert process.returncode == 0 or whom == "all"  # torchrun's own exit status after a signal
    assert f"going on after step {metrics(run)[-1]['step']}" in spread(2, *steps, f"run.dir={run}")
    same_result(tmp_path / "whole", run)


def test_a_rank_that_hangs_is_named_with_its_place(train, bin_folder, world, tmp_path):  # noqa: F811
    os.mkfifo(tmp_path / "config.json")  # nobody writes: whoever reads it waits for ever
    script = tmp_path / "start.sh"
    script.write_text(f"#!/bin/sh\n[ $RANK = 1 ] && other=model.path={tmp_path}\n"
                      f"exec {bin_folder}/prulong-train {tmp_path}/train.yaml parallel.timeout=4 $other\n")
    script.chmod(0o755)
    done = ranks.run(2, script)
    assert done.returncode != 0 and len(ours(done.stdout)) == 1, done.stdout
    line = ours(done.stdout)[0]
    assert line.startswith("prulong-train: no step within parallel.timeout, 4 s; ")
    assert "rank 0 is in 'comparing what ranks were started with' for " in line
    assert "rank 1 is in 'opening model and data' for " in line


def test_a_rank_of_another_machine_is_killed(train, bin_folder, tmp_path):  # noqa: F811
    """Two launchers that meet at an address, here on one machine: both start their ranks again."""
    steps = [FOUR, "train.steps=30", "eval.every=0"]
    train(*steps, f"run.dir={tmp_path}/whole")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", "1", "--nnodes", "2",
               "--max-restarts", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "test",
               str(bin_folder / "prulong-train"), str(tmp_path / "train.yaml"), *steps]
    launchers = [subprocess.Popen(command, env=ranks.environment(), text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT) for _ in range(2)]
    try:
        wait_for_step(launchers[0], tmp_path / "run", 5)
        at = {rank: pid for launcher in launchers for rank, pid in ranks.workers(launcher).items()}
        os.kill(at[1], signal.SIGKILL)
        texts = [launcher.communicate(timeout=100)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert [launcher.returncode for launcher in launchers] == [0, 0], texts
    assert "going on after step" in "".join(texts)
    same_result(tmp_path / "whole", tmp_path / "run")
