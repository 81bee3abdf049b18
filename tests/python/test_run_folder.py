# SPDX-License-Identifier: MIT
"""What a run's folder says: TensorBoard's events, read by TensorBoard, and what the run was made of."""

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from prulong import Pattern
from train_program import error_line, metrics, train, wait_for_step  # noqa: F401 (train: a fixture)

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars_of_metrics(run):
    """{name: {step: value}} of metrics.jsonl, names of inner objects joined by '/'."""
    scalars = {}

    def collect(fields, step, prefix=""):
        for key, value in fields.items():
            if isinstance(value, dict):
                collect(value, step, f"{prefix}{key}/")
            elif not isinstance(value, bool) and f"{prefix}{key}" != "step":
                scalars.setdefault(prefix + key, {})[step] = value

    for line in metrics(run):
        collect(line, line["step"])
    return scalars


def scalars_of_tensorboard(run):
    events = event_accumulator.EventAccumulator(str(run), size_guidance={event_accumulator.SCALARS: 0}).Reload()
    scalars = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        scalars[tag] = {point.step: point.value for point in points}
        assert len(scalars[tag]) == len(points), f"{tag}: a step twice"
        assert [p.wall_time for p in points] == sorted(p.wall_time for p in points) and points[0].wall_time > 1.7e9
    return scalars


def assert_same_scalars(run):
    expected, found = scalars_of_metrics(run), scalars_of_tensorboard(run)
    assert found.keys() == expected.keys() and "held_out/masked/loss_nats" in found
    for name, points in expected.items():
        assert found[name].keys() == points.keys(), name
        for step, value in points.items():
            assert found[name][step] == np.float32(value), (name, step)


def test_tensorboard_reads_what_metrics_jsonl_holds(train, tmp_path):
    train()
    assert_same_scalars(tmp_path / "run")
    files = list((tmp_path / "run").glob("events.out.tfevents.*"))
    assert len(files) == 1
    train()  # nothing to do
    assert list((tmp_path / "run").glob("events.out.tfevents.*")) == files


def test_steps_that_a_resumed_run_repeats_appear_once(train, tmp_path):
    run = tmp_path / "run"
    options = ["train.steps=400", "checkpoint.every=20", "eval.every=10"]
    process = train(*options, start=True)
    wait_for_step(process, run, 20)
    while max(line["step"] for line in metrics(run)) < 25:  # ahead of the checkpoint
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    ahead = max(line["step"] for line in metrics(run))
    with next(run.glob("events.out.tfevents.*")).open("ab") as file:  # a record cut short
        file.write(b"\x30\0\0\0\0\0\0\0\1\2")
    process = train(*options, start=True)
    wait_for_step(process, run, ahead + 20)
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert len(list(run.glob("events.out.tfevents.*"))) == 2
    assert_same_scalars(run)


def test_a_run_folder_says_what_made_it(train, world, tmp_path):
    train("train.steps=2")
    run = tmp_path / "run"
    facts = json.loads((run / "run.json").read_text())
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", facts["versions"]["commit"])
    assert {"prulong", "torch", "cuda", "compiler"} <= facts["versions"].keys()
    assert facts["machine"]["threads"] == "1" and facts["machine"]["cpu"]
    assert {"model", "data.train", "data.eval"} <= facts.keys() and facts["gates.pattern"] == "none"
    made_by = Pattern.load(run).provenance
    assert made_by["model_fingerprint"] == facts["model"] and made_by["data"] == facts["data.train"]
    assert re.fullmatch("[0-9a-f]{16}", made_by["config_hash"]) and made_by["commit"] == facts["versions"]["commit"]
    assert f"commit {made_by['commit']}" in (run / "log.txt").read_text()


def test_a_run_goes_on_with_what_it_was_made_from_wherever_that_lies(train, world, tmp_path):
    train("train.steps=2", f"run.dir={tmp_path}/masks")
    weights = ["train.mode=weights", "train.steps=2"]
    train(*weights, f"gates.pattern={tmp_path}/masks")
    (tmp_path / "masks").rename(tmp_path / "elsewhere")
    model = Path(shutil.copytree(world / "model", tmp_path / "model"))
    moved = [*weights, f"gates.pattern={tmp_path}/elsewhere/pattern.json", f"model.path={model}"]
    assert "nothing to do" in train(*moved)
    pattern = json.loads((tmp_path / "elsewhere" / "pattern.json").read_text())
    pattern["mask"][0][0] = 1 - pattern["mask"][0][0]
    (tmp_path / "elsewhere" / "pattern.json").write_text(json.dumps(pattern))
    assert "gates.pattern = 'mask:" in error_line(train(*moved, code=1))
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    changed = train(*weights, f"gates.pattern={tmp_path}/run", moved[-1], code=1)
    assert "holds a run with model = " in error_line(changed)
