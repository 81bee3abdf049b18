# SPDX-License-Identifier: MIT
"""prulong-train as a user runs it, on the tiny world: the fixture `train`, and what tests ask about its runs."""

import json
import os
import subprocess
import time

import pytest
from safetensors.torch import load_file


@pytest.fixture
def train(bin_folder, world, tmp_path):
    """Runs prulong-train with a small configuration; keyword arguments: code, start (do not wait)."""
    config = tmp_path / "train.yaml"
    config.write_text(f"""
model: {{path: {world}/model, dtype: float32}}
attention: {{sink: 4, window: 16}}
sparsity: {{end: 0.5, warmup_ratio: 0.5}}
optimizer: {{lr_gates: 0.5, lr_multipliers: 1.0}}
train: {{steps: 12, seq_len: 160, sequences_per_step: 2, loss_chunk: 64}}
data:
  train:
    - {{type: recall, path: {world}/kit, tasks: [codes], statements: 2, questions: 2}}
    - {{type: tokens, path: {world}/tokens, weight: 2}}
  eval:
    - {{type: recall, path: {world}/kit, tasks: [codes], statements: 2, questions: 2}}
eval: {{sequences: 2}}
checkpoint: {{every: 2}}
run: {{dir: {tmp_path}/run}}
""")

    def run(*overrides, code=0, start=False):
        command = [bin_folder / "prulong-train", config, *overrides]
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        if start:
            return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == code, result.stdout + result.stderr
        return result.stderr

    return run


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def final_state(run):
    return load_file(sorted((run / "checkpoints").glob("step-*.safetensors"))[-1])


def assert_same_run(one, other):
    """Bit for bit, but for the times."""
    a, b = final_state(one), final_state(other)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].numpy().tobytes() == b[name].numpy().tobytes(), name
    def plain(line):
        return {k: v for k, v in line.items() if k not in ("step_s", "tokens_per_s")}
    assert [plain(line) for line in metrics(one)] == [plain(line) for line in metrics(other)]


def error_line(text):
    """The last line; whatever else was said is progress."""
    return text.strip().splitlines()[-1]


def wait_for_step(process, run, step):
    """Waits until a running training has written a checkpoint of a step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if any(int(p.stem[5:]) >= step for p in run.glob("checkpoints/step-*.json")):
            return
        time.sleep(0.005)
    pytest.fail("no checkpoint in time: " + (process.stderr.read() if process.poll() is not None else "still running"))
