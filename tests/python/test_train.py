# SPDX-License-Identifier: MIT
"""prulong-train on a tiny random Llama and tiny synthetic data, driven as a user would."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from prulong import Pattern
from tiny_world import KV_HEADS, LAYERS, tiny_model
from train_program import assert_same_run, error_line, metrics, train, wait_for_step  # noqa: F401 (train: a fixture)


def test_a_run_learns_a_mask_and_writes_everything(train, tmp_path):
    text = train()
    run = tmp_path / "run"
    lines = metrics(run)
    steps = [line for line in lines if "loss_nats" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert all(np.isfinite(line["loss_nats"]) and line["tokens_per_s"] > 0 for line in steps)
    assert steps[0]["sparsity_target"] == 0 and steps[-1]["sparsity_target"] == 0.5
    held_out = lines[-1]["held_out"]
    assert set(held_out) == {"full", "masked"} and "answer_accuracy" in held_out["full"]
    pattern = Pattern.load(run)
    assert pattern.sink == 4 and pattern.window == 16 and sum(map(sum, pattern.mask)) == LAYERS * KV_HEADS // 2
    assert {"config.yaml", "run.json", "log.txt", "masks.tsv"} <= {p.name for p in run.iterdir()}
    assert "loss" in text and "tokens/s" in text and "left" in text and "lambda" in text
    assert len(list((run / "checkpoints").glob("*.json"))) == 3  # checkpoint.keep


def test_a_finished_run_has_nothing_to_do(train, tmp_path):
    train()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert "nothing to do" in train()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_the_resolved_configuration_makes_the_same_run(train, tmp_path, bin_folder):
    train()
    again = tmp_path / "again"
    result = subprocess.run([bin_folder / "prulong-train", tmp_path / "run" / "config.yaml", f"run.dir={again}"],
                            capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "run", again)


@pytest.mark.parametrize("mode", ["masks", "both"])
def test_a_killed_run_goes_on_bit_for_bit(train, tmp_path, mode):
    common = ["train.steps=30", f"train.mode={mode}", "optimizer.lr_weights=0.001"]
    train(*common, f"run.dir={tmp_path}/whole")
    killed = tmp_path / "killed"
    process = train(*common, f"run.dir={killed}", start=True)
    wait_for_step(process, killed, 6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "going on after step" in train(*common, f"run.dir={killed}")
    assert_same_run(tmp_path / "whole", killed)


def test_sigterm_saves_and_exits_cleanly(train, tmp_path):
    common = ["train.steps=200", "checkpoint.every=50", "eval.every=0"]
    run = tmp_path / "run"
    process = train(*common, start=True)
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped by a signal" in text
    reached = max(line["step"] for line in metrics(run))
    assert 0 < reached < 200 and (run / "checkpoints" / f"step-{reached:08d}.json").exists()
    train(*common)
    train(*common, f"run.dir={tmp_path}/whole")
    assert_same_run(tmp_path / "whole", run)


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_passed_over_loudly(train, tmp_path):
    train()
    run = tmp_path / "run"
    saved = sorted((run / "checkpoints").glob("step-*.safetensors"))
    whole = {p: p.read_bytes() for p in saved}
    flip_byte(saved[-1])
    text = train()
    assert "damaged checkpoint passed over" in text and "step-00000012.safetensors" in text and "going on after step 10" in text
    assert saved[-1].read_bytes() == whole[saved[-1]]
    for path in saved:
        flip_byte(path)
    assert "all 3 checkpoints are damaged" in error_line(train(code=1))


def test_a_run_is_not_mixed_with_another(train, tmp_path):
    train()
    message = error_line(train("sparsity.end=0.4", code=1))
    assert "sparsity.end" in message and "0.5" in message and "0.4" in message
    assert "data.train" in error_line(train("data.train.1.weight=3", code=1))
    assert "is not empty" in error_line(train("run.resume=never", code=1))


def test_a_start_that_failed_leaves_the_folder_as_good_as_empty(train, tmp_path):
    assert "nowhere: no such folder" in error_line(train("model.path=nowhere", code=1))
    train("run.resume=never")


def test_two_runs_on_one_folder_are_refused(train, tmp_path):
    first = train("train.steps=400", start=True)
    wait_for_step(first, tmp_path / "run", 2)
    assert "another run is using this folder" in error_line(train("train.steps=400", code=1))
    first.kill()
    first.wait()


def test_weights_are_trained_under_a_fixed_mask_and_load_in_transformers(train, world, tmp_path):
    train("train.steps=4")
    text = train("train.mode=weights", f"gates.pattern={tmp_path}/run", "optimizer.lr_weights=0.01", "train.steps=6",
                 f"run.dir={tmp_path}/tuned")
    assert "finished 6 steps" in text
    assert Pattern.load(tmp_path / "tuned").mask == Pattern.load(tmp_path / "run").mask
    before = LlamaForCausalLM.from_pretrained(world / "model", dtype=torch.float32).state_dict()
    after = LlamaForCausalLM.from_pretrained(tmp_path / "tuned" / "model", dtype=torch.float32).state_dict()
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before if "norm" not in name)
    losses = [line["loss_nats"] for line in metrics(tmp_path / "tuned") if "loss_nats" in line]
    assert losses[-1] < losses[0]


def test_recomputing_layers_changes_nothing(train, tmp_path):
    train("train.recompute=off", f"run.dir={tmp_path}/off")
    train("train.recompute=on", f"run.dir={tmp_path}/on")
    assert_same_run(tmp_path / "off", tmp_path / "on")


def test_steps_that_are_not_finite_are_skipped_and_end_the_run(train, world, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (world / "model").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    text = train(f"model.path={broken}", "train.max_skipped_steps=3", "data.eval=[]", code=1)
    assert "3 steps in a row had a non-finite loss or gradient" in error_line(text)
    assert "sequences 0 to 1" in text
    lines = metrics(tmp_path / "run")
    assert [line["skipped"] for line in lines] == [True] * 3 and lines[1]["first_sequence"] == 2


@pytest.mark.parametrize("overrides, code, expected", [
    (["train.stepz=3"], 2, "train.steps"),
    (["train.steps=many"], 2, "an integer"),
    (["sparsity.end=1.5"], 2, "[0, 1]"),
    (["model.path=nowhere"], 1, "nowhere"),
    (["data.train.1.path=nowhere"], 1, "nowhere"),
    (["gates.pattern=nowhere"], 1, "nowhere"),
    (["model.device=cuda"], 1, "no GPU") if not torch.cuda.is_available() else (["model.device=tpu"], 2, "cuda"),
])
def test_bad_configurations_end_with_one_line(train, overrides, code, expected):
    text = train(*overrides, code=code)
    assert expected in text and text.startswith("prulong-train: ") and text.count("\n") == 1


def test_files_that_do_not_fit_are_refused(train, world, tmp_path):
    model = tmp_path / "small"
    tiny_model(vocab_size=300).save_pretrained(model)
    assert "vocabulary of 400 tokens, the model has 300" in error_line(train(f"model.path={model}", code=1))
    train("train.steps=2")
    pattern = json.loads((tmp_path / "run" / "pattern.json").read_text())
    pattern["model"]["layers"] = LAYERS + 1
    pattern["mask"].append([1] * KV_HEADS)
    pattern["scores"].append([0.0] * KV_HEADS)
    (tmp_path / "other.json").write_text(json.dumps(pattern))
    assert "layers" in error_line(train(f"gates.pattern={tmp_path}/other.json", f"run.dir={tmp_path}/b", code=1))
    (tmp_path / "empty").mkdir()
    assert "empty" in error_line(train(f"data.train.1.path={tmp_path}/empty", f"run.dir={tmp_path}/c", code=1))
    cut = tmp_path / "cut"
    cut.mkdir()
    for file in (world / "model").iterdir():
        (cut / file.name).write_bytes(file.read_bytes())
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) - 7])
    assert "model.safetensors" in error_line(train(f"model.path={cut}", f"run.dir={tmp_path}/d", code=1))
