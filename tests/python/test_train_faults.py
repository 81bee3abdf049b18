# SPDX-License-Identifier: MIT
"""What may go wrong under a run: kill -9 at any moment, a full disk, a limit on files, a folder that is read-only."""

import os
import random
import resource
import signal
import subprocess
import time

import numpy as np
import pytest

from prulong import Pattern
from train_program import assert_same_run, error_line, metrics, train, wait_for_step  # noqa: F401 (train: a fixture)

KILLS = int(os.environ.get("PRULONG_KILLS", "8"))
BOTH = ["train.mode=both", "optimizer.lr_weights=0.001"]  # checkpoints with all weights: larger than all other files


def reached_step(run):
    """The last whole line of a metrics.jsonl that is being written."""
    try:
        lines = (run / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()
    except FileNotFoundError:
        return 0
    return int(lines[-1].partition('"step":')[2].partition(",")[0].rstrip("}")) if lines else 0


def half_written(run):
    """Whether a checkpoint is being written: a temporary, or data whose manifest is not there yet."""
    names = {p.name for p in (run / "checkpoints").glob("*")}
    return any(n.endswith(".tmp") or n.endswith(".safetensors") and n.replace(".safetensors", ".json") not in names
               for n in names)


def kill_somewhere(process, run, moment, while_saving):
    """Kills a run a few steps after its start: at any time, or while it saves. Returns whether it was saving."""
    goal = reached_step(run) + moment.randint(1, 3)
    while reached_step(run) < goal and process.poll() is None:
        time.sleep(0.001)
    if while_saving:
        deadline = time.monotonic() + 5
        while not half_written(run) and process.poll() is None and time.monotonic() < deadline:
            pass
        time.sleep(moment.uniform(0, 0.004))
    else:
        time.sleep(moment.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    _, text = process.communicate()
    assert process.returncode == -signal.SIGKILL and "damaged" not in text and "error" not in text, text
    return half_written(run)


def test_kills_at_random_moments_lose_nothing(train, tmp_path):
    options = [*BOTH, f"train.steps={4 * KILLS + 16}", "checkpoint.every=1", "checkpoint.keep=2", "eval.every=11"]
    train(*options, f"run.dir={tmp_path}/whole")
    run = tmp_path / "killed"
    moment = random.Random(int(os.environ.get("PRULONG_SEED", "1")))
    saving = 0
    for kill in range(KILLS):
        saving += kill_somewhere(train(*options, f"run.dir={run}", start=True), run, moment, kill % 2 == 0)
    print(f"{KILLS} kills, {saving} of them with a checkpoint half written; step {reached_step(run)} reached")
    assert "going on after step" in train(*options, f"run.dir={run}")
    assert_same_run(tmp_path / "whole", run)


@pytest.fixture
def disk(tmp_path):
    """mount(options): a small file system of its own at tmp_path/disk; options again remount it. Needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        remount = "remount," if os.path.ismount(folder) else ""
        command = ["mount", "-t", "tmpfs", "-o", remount + options, "tmpfs", folder]
        try:
            done = subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            done = False
        if not done:
            pytest.skip("file systems cannot be mounted here")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


def checkpoints(run):
    return sorted(p.name for p in (run / "checkpoints").iterdir())


def assert_one_error(text, *words):
    """All that is said is progress, and one line why the run ended."""
    errors = [line for line in text.splitlines() if line.startswith("prulong-train: ")]
    assert len(errors) == 1 and error_line(text) == errors[0], text
    for word in words:
        assert word in errors[0], text


def test_a_full_disk_ends_a_run_that_goes_on_later(train, tmp_path, disk):
    options = [*BOTH, "train.steps=6", "checkpoint.keep=1"]
    whole = tmp_path / "whole"
    train(*options, f"run.dir={whole}")
    size = next((whole / "checkpoints").glob("*.safetensors")).stat().st_size
    assert size > 200_000
    # Room for one checkpoint, not for the next beside it.
    folder = disk(f"size={int(1.6 * size) // 1024}k")
    run = folder / "run"
    text = train(*options, f"run.dir={run}", code=1)
    assert_one_error(text, "step-00000004.safetensors: cannot write: No space left on device", "free disk space")
    assert checkpoints(run) == ["step-00000002.json", "step-00000002.safetensors"]
    # Not even room for a line.
    with (folder / "rest").open("wb", buffering=0) as rest:
        with pytest.raises(OSError):
            while True:
                rest.write(bytes(4096))
    assert_one_error(train(*options, f"run.dir={run}", code=1), str(run), "free")
    assert checkpoints(run) == ["step-00000002.json", "step-00000002.safetensors"]
    disk("size=10m")
    assert "going on after step 2" in train(*options, f"run.dir={run}")
    assert_same_run(whole, run)


def test_a_read_only_folder_is_refused(train, tmp_path, disk):
    run = disk("size=10m") / "run"
    train("train.steps=2", f"run.dir={run}")
    before = {p.name: p.stat().st_mtime_ns for p in run.iterdir()}
    disk("ro")
    assert_one_error(train("train.steps=2", f"run.dir={run}", code=1), f"{run}: ", "Read-only", "run.dir")
    assert_one_error(train(f"run.dir={run}2", code=1), f"{run}2: cannot be created: Read-only", "another run.dir")
    assert {p.name: p.stat().st_mtime_ns for p in run.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(train, tmp_path):
    (tmp_path / "run").mkdir(mode=0o555)
    assert_one_error(train(code=1), "Permission denied", "run.dir")


def test_a_limit_on_files_is_an_error_and_no_signal(train, tmp_path):
    options = [*BOTH, "train.steps=6"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(*options, f"run.dir={whole}")
    process = train(*options, f"run.dir={run}", start=True)
    wait_for_step(process, run, 2)
    process.kill()
    process.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        text = train(*options, f"run.dir={run}", code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_one_error(text, ".safetensors: cannot write: File too large", "ulimit -f")
    train(*options, f"run.dir={run}")
    assert_same_run(whole, run)


def test_an_error_after_the_last_step_costs_no_step(train, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    np.save(bad / "x.npy", np.full(400, 60000, np.uint16))
    held_out = f"data.eval=[{{type: npy, path: {bad}}}]"
    assert_one_error(train("checkpoint.every=0", held_out, code=1), "x.npy: token 60000")
    run = tmp_path / "run"
    assert checkpoints(run) == ["step-00000012.json", "step-00000012.safetensors"]
    assert Pattern.load(run).provenance["steps"] == "12"


def test_a_second_start_writes_what_the_last_checkpoint_left_out(train, tmp_path):
    options = [*BOTH, "train.steps=2"]
    run = tmp_path / "run"
    train(*options)
    (run / "masks.tsv").unlink()
    (run / "pattern.json").unlink()
    assert "nothing to do" in train(*options)
    assert Pattern.load(run).provenance["steps"] == "2"
    weights = run / "model" / "model.safetensors"
    trained = weights.read_bytes()
    weights.unlink()
    assert "nothing to do" in train(*options)
    assert weights.read_bytes() == trained


def test_what_killed_saves_leave_is_removed(train, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("step-00000003.safetensors", "step-00000005.safetensors.tmp", "notes.txt"):
        (folder / name).write_text("what was written so far")
    train("checkpoint.keep=1")
    assert checkpoints(tmp_path / "run") == ["notes.txt", "step-00000012.json", "step-00000012.safetensors"]


def test_names_of_data_files_need_not_be_text(train, world, tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    tokens = np.load(world / "tokens" / "tokens.npy")
    with open(os.fsencode(folder) + b"/caf\xe9.npy", "wb") as file:
        np.save(file, tokens)
    source = f"data.train=[{{type: npy, path: {folder}}}]"
    train(source, "train.steps=2")
    assert "nothing to do" in train(source, "train.steps=2")
    (folder / "lost.npy").symlink_to(tmp_path / "nowhere")
    assert_one_error(train(source, "train.steps=2", code=1), "lost.npy: a file expected, found a folder or a broken link")


def test_settings_that_would_mean_something_else_are_refused(train, world, tmp_path):
    train("train.steps=2", f"run.dir={tmp_path}/masks")
    kept = ["train.mode=weights", f"gates.pattern={tmp_path}/masks"]
    assert_one_error(train(*kept, "attention.window=32", code=1), "attention.sink=4 attention.window=16")
    inverted = train(f"gates.pattern={tmp_path}/masks", "gates.init_mean=-4", code=2)
    assert "gates.init_mean: expected more than 0 with gates.pattern" in inverted
    np.save(tmp_path / "tokens.npy", np.load(world / "tokens" / "tokens.npy"))
    source = f"data.train=[{{type: npy, path: {tmp_path}/tokens.npy, end_token: 99999999}}]"
    assert_one_error(train(source, code=1), "tokens.npy: end_token 99999999: a token of the model's expected, below")
