# SPDX-License-Identifier: MIT
"""prulong-train with several ranks: data parallel. The same run as alone, and what is refused."""

import fcntl
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import ranks
from ranks_program import ours, plain, spread  # noqa: F401 (spread: a fixture)
from train_program import final_state, metrics, train  # noqa: F401 (train: a fixture)

ROOT = Path(__file__).resolve().parents[2]
FOUR = "train.sequences_per_step=4"
MODES = {"masks": [], "weights": ["train.mode=weights"], "both": ["train.mode=both", "optimizer.lr_weights=0.001"]}


def assert_close(one, other, digits):
    """Metrics of two runs to so many significant digits."""
    def compare(a, b, where):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                compare(a[key], b[key], f"{where}.{key}")
        else:
            assert math.isclose(a, b, rel_tol=10.0 ** -digits, abs_tol=10.0 ** -digits), (where, a, b)
    assert len(plain(one)) == len(plain(other))
    for i, (a, b) in enumerate(zip(plain(one), plain(other), strict=True)):
        compare(a, b, str(i))


def test_masks_are_those_of_one_rank_to_the_bit(train, spread, tmp_path):  # noqa: F811
    train(FOUR, f"run.dir={tmp_path}/alone")
    for count in (2, 4):
        text = spread(count, FOUR, f"run.dir={tmp_path}/{count}")
        assert f"{count} ranks: {count} with sequences of their own" in text and " a rank)  " in text
        assert plain(tmp_path / "alone") == plain(tmp_path / str(count))
        for name, tensor in final_state(tmp_path / "alone").items():
            assert tensor.numpy().tobytes() == final_state(tmp_path / str(count))[name].numpy().tobytes(), name
        assert (tmp_path / "alone/masks.tsv").read_text() == (tmp_path / f"{count}/masks.tsv").read_text()


def test_a_step_need_not_divide_by_the_ranks(train, spread, tmp_path):  # noqa: F811
    uneven = ["train.sequences_per_step=3", "train.steps=4"]
    train(*uneven, f"run.dir={tmp_path}/alone")
    text = spread(2, *uneven, f"run.dir={tmp_path}/2")
    assert "train.sequences_per_step 3 over 2 ranks: some wait" in text
    assert plain(tmp_path / "alone") == plain(tmp_path / "2")


@pytest.mark.parametrize("recompute", ["on", "off"])
@pytest.mark.parametrize("mode", ["weights", "both"])
def test_trained_weights_are_those_of_one_rank_to_rounding(mode, recompute, train, spread, tmp_path):  # noqa: F811
    options = [FOUR, "train.steps=6", f"train.recompute={recompute}", *MODES[mode]]
    if mode == "weights":
        train("train.steps=2", f"run.dir={tmp_path}/masks")
        options.append(f"gates.pattern={tmp_path}/masks")
    train(*options, f"run.dir={tmp_path}/alone")
    spread(2, *options, f"run.dir={tmp_path}/2")
    assert_close(tmp_path / "alone", tmp_path / "2", digits=6)
    one, two = (load_file(tmp_path / run / "model/model.safetensors") for run in ("alone", "2"))
    for name in one:
        # AdamW moves a weight by up to a rate a step, whatever its gradient's size: where that is rounding, so is the move.
        difference = (one[name].double() - two[name].double()).abs()
        assert difference.mean() < 1e-6 and difference.max() < 2 * 6 * 1e-3, name


def test_a_run_goes_on_with_another_number_of_ranks(train, spread, tmp_path):  # noqa: F811
    train(FOUR, f"run.dir={tmp_path}/whole")
    run = tmp_path / "moved"
    spread(2, FOUR, "train.steps=12", f"run.dir={run}", "checkpoint.every=4", "checkpoint.keep=9")
    for path in itertools.chain(run.glob("checkpoints/step-00000012.*"), run.glob("checkpoints/step-00000008.*")):
        path.unlink()
    assert "going on after step 4" in spread(4, FOUR, f"run.dir={run}", "checkpoint.every=4", "checkpoint.keep=9")
    assert plain(tmp_path / "whole") == plain(run)
    for path in run.glob("checkpoints/step-00000012.*"):
        path.unlink()
    assert "going on after step 8" in train(FOUR, f"run.dir={run}")
    assert plain(tmp_path / "whole") == plain(run)
    for name, tensor in final_state(tmp_path / "whole").items():
        np.testing.assert_array_equal(tensor.numpy(), final_state(run)[name].numpy(), name)


def test_bytes_sent_are_what_the_sums_need(spread, tmp_path):
    for count in (2, 4):
        spread(count, FOUR, "train.steps=2", "eval.sequences=4", "eval.every=0", f"run.dir={tmp_path}/{count}")
        first, second = (line["leader_bytes_sent"] for line in metrics(tmp_path / str(count))[:2])
        gates, rounds = 3 * 2, 4 // count
        # A step: whether to stop, each round; labels and a digest; a loss and the gates' gradient of each sequence.
        assert second - first == (count - 1) * 8 * (rounds + 2 + rounds * (1 + gates))


def test_context_that_does_not_divide_the_ranks(spread, tmp_path):
    text = spread(2, FOUR, "parallel.context=3", code=1)
    assert ours(text) == ["prulong-train: rank 0 of 2: parallel.context: expected a divisor of the number of ranks, "
                          "which is 2, found 3"] or ours(text) == [
                              "prulong-train: rank 1 of 2: parallel.context: expected a divisor of the number of "
                              "ranks, which is 2, found 3"]
    assert "exitcode  : 2 " in text


def test_more_ranks_than_sequences(spread):
    text = spread(2, "train.sequences_per_step=1", code=1)
    assert len(ours(text)) == 1 and "expected a sequence for each of 2 ranks" in ours(text)[0]


def test_keys_of_the_section(train, tmp_path):  # noqa: F811
    assert "unknown key \"parallel.contexts\"; the nearest known key is parallel.context" in train("parallel.contexts=2", code=2)
    assert "parallel.context: expected an integer from 1 to 1048576 or auto, found \"0\"" in train("parallel.context=0", code=2)
    assert "parallel.timeout: expected an integer from 1" in train("parallel.timeout=0", code=2)
    assert "expected a divisor of the number of ranks, which is 1, found 2" in train("parallel.context=2", code=2)
    train("parallel.context=auto", "train.steps=2")
    assert 'context: "auto"' in (tmp_path / "run/config.yaml").read_text()


def per_rank(bin_folder, tmp_path, arguments):
    """A script that starts prulong-train with other arguments on each rank."""
    script = tmp_path / "start.sh"
    cases = "\n".join(f"{rank}) exec {bin_folder}/prulong-train {tmp_path}/train.yaml {' '.join(given)} ;;"
                      for rank, given in enumerate(arguments))
    script.write_text(f"#!/bin/sh\ncase $RANK in\n{cases}\nesac\n")
    script.chmod(0o755)
    return script


@pytest.mark.parametrize("other, said", [
    (["optimizer.lr_gates=0.4"], "rank 1 has optimizer.lr_gates = '0.4', this one has '0.5'"),
    (["data.train.0.questions=1"], "rank 1 has data.train = "),
    (["checkpoint.every=1"], "rank 1 has checkpoint.every = '1', this one has '2'"),
    (["model.path={other}"], "rank 1 has model = "),
])
def test_ranks_with_other_inputs_are_named(other, said, train, bin_folder, world, tmp_path):  # noqa: F811
    from tiny_world import tiny_model

    other = [text.replace("{other}", f"{tmp_path}/other") for text in other]
    tiny_model(rms_norm_eps=1e-5).save_pretrained(tmp_path / "other")
    done = ranks.run(2, per_rank(bin_folder, tmp_path, [[], other]))
    assert done.returncode != 0 and len(ours(done.stdout)) == 1, done.stdout
    assert ours(done.stdout)[0].startswith(f"prulong-train: rank 0 of 2: {said}")
    assert "; start all ranks with the same" in ours(done.stdout)[0]
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_rank_without_its_file(train, bin_folder, tmp_path):  # noqa: F811
    done = ranks.run(2, per_rank(bin_folder, tmp_path, [[], ["model.path=/nowhere"]]))
    assert len(ours(done.stdout)) == 1 and done.returncode != 0, done.stdout
    assert ours(done.stdout)[0].startswith("prulong-train: rank 1 of 2: ") and "/nowhere" in ours(done.stdout)[0]
    assert "/nowhere" in done.stdout.partition("Root Cause")[2]  # torchrun repeats what TORCHELASTIC_ERROR_FILE says


def test_a_second_run_in_the_same_folder(train, spread, bin_folder, tmp_path):  # noqa: F811
    first = train("train.steps=100000", "checkpoint.every=0", "eval.every=0", start=True)
    try:
        while not (tmp_path / "run/metrics.jsonl").exists():
            assert first.poll() is None
        text = spread(2, code=1)
    finally:
        first.kill()
        first.communicate()
    assert ours(text) == [f"prulong-train: rank 0 of 2: {tmp_path}/run: another run is using this folder; wait for it; "
                          "choose another run.dir"]


def test_a_predecessor_that_is_just_ending(train, bin_folder, tmp_path):  # noqa: F811
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = ranks.start(2, bin_folder / "prulong-train", tmp_path / "train.yaml", "train.steps=2")
        while len(ranks.workers(process)) < 2:
            time.sleep(0.05)
        time.sleep(2)
        assert not (tmp_path / "run/metrics.jsonl").exists() and process.poll() is None
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "finished 2 steps" in text, text


def test_two_machines(train, bin_folder, tmp_path):  # noqa: F811
    """Two launchers that meet at an address, here on one machine."""
    train(FOUR, f"run.dir={tmp_path}/alone")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    options = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "test"]
    launchers = [subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", "2",
                                   *options, str(bin_folder / "prulong-train"), str(tmp_path / "train.yaml"), FOUR],
                                  env=ranks.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                 for _ in range(2)]
    texts = [launcher.communicate(timeout=100)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], texts
    assert "4 ranks: 4 with sequences of their own" in "".join(texts)
    assert plain(tmp_path / "alone") == plain(tmp_path / "run")


def started_by_hand(bin_folder, tmp_path, **variables):
    environment = dict(ranks.environment(), WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", **variables)
    return subprocess.run([bin_folder / "prulong-train", tmp_path / "train.yaml", "parallel.timeout=3"], text=True,
                          env={k: v for k, v in environment.items() if v}, capture_output=True, timeout=60)


def test_a_port_in_use(train, bin_folder, tmp_path):  # noqa: F811
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = started_by_hand(bin_folder, tmp_path, MASTER_PORT=str(port))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (f"prulong-train: MASTER_PORT {port}: in use on this machine; choose another "
                                            "(torchrun --master-port)")


def test_a_rank_that_never_comes(train, bin_folder, tmp_path):  # noqa: F811
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    done = started_by_hand(bin_folder, tmp_path, MASTER_PORT=str(port))
    assert done.returncode == 1
    assert "rank 0 waited 3 s for rank 1 to start; see what those say" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("variables, said", [
    (dict(MASTER_PORT=""), "environment variable MASTER_PORT: expected a whole number from 1 to 65535, found nothing"),
    (dict(MASTER_PORT="x1"), "environment variable MASTER_PORT: expected a whole number from 1 to 65535, found 'x1'"),
    (dict(MASTER_PORT="1", RANK="2"), "environment variable RANK: expected a whole number from 0 to 1, found '2'"),
    (dict(MASTER_PORT="1", WORLD_SIZE="two"), "environment variable WORLD_SIZE: expected a whole number from 1"),
])
def test_a_broken_environment(variables, said, train, bin_folder, tmp_path):  # noqa: F811
    environment = dict(WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1") | variables
    done = subprocess.run([bin_folder / "prulong-train", tmp_path / "train.yaml"], text=True, capture_output=True,
                          env=dict(os.environ, **{k: v for k, v in environment.items() if v}))
    assert done.returncode == 2 and done.stderr.startswith(f"prulong-train: {said}") and done.stderr.count("\n") == 1


def test_the_reason_lies_where_torchrun_looks(train, bin_folder, tmp_path):  # noqa: F811
    reason = tmp_path / "reason.json"
    subprocess.run([bin_folder / "prulong-train", tmp_path / "train.yaml", "train.steps=none"], capture_output=True,
                   env=dict(os.environ, TORCHELASTIC_ERROR_FILE=str(reason)))
    written = json.loads(reason.read_text())["message"]
    assert "train.steps: expected an integer" in written["message"] and int(written["extraInfo"]["timestamp"]) > 0


def test_the_slurm_script(train, bin_folder, tmp_path):  # noqa: F811
    """On one machine, with Slurm's two commands played."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, body in (("scontrol", "echo localhost; echo other"), ("srun", 'exec "$@"')):
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    checkout = tmp_path / "checkout"
    (checkout / "build/cpu").mkdir(parents=True)
    (checkout / "build/cpu/bin").symlink_to(bin_folder)
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (checkout / ".venv/bin/python").chmod(0o755)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    slurm = dict(SLURM_JOB_NODELIST="machine[1-2]", SLURM_JOB_NUM_NODES="1", SLURM_GPUS_ON_NODE="2", SLURM_JOB_ID="7",
                 PRULONG_PORT=str(port))
    done = subprocess.run([ROOT / "configs/slurm.sh", tmp_path / "train.yaml", "train.steps=2"], cwd=checkout, text=True,
                          env=ranks.environment() | slurm | {"PATH": f"{tools}:{os.environ['PATH']}"},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100)
    assert done.returncode == 0 and "2 ranks: 2 with sequences of their own" in done.stdout, done.stdout
