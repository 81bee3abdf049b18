# SPDX-License-Identifier: MIT
"""What a run's folder says: TensorBoard's events, read by TensorBoard, and what the run was made of."""

import signal

import numpy as np
import pytest

from train_program import metrics, train, wait_for_step  # noqa: F401 (train: a fixture)

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
