# SPDX-License-Identifier: MIT
"""prulong-train --memory on the shapes of large models, of which only config.json is there."""

import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "llama3.1-8b.yaml"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
MODELS = {
    "Llama-3.1-8B-Instruct": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072, rope_theta=500000.0, rope_scaling=LLAMA3),
    "Mistral-7B-Instruct-v0.3": MistralConfig(
        vocab_size=32768, num_key_value_heads=8, max_position_embeddings=32768, rope_theta=1e6, sliding_window=None),
    "Qwen2.5-7B-Instruct": Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, rope_theta=1e6),
    "Qwen3-8B": Qwen3Config(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
        max_position_embeddings=40960, rope_theta=1e6),
}


@pytest.mark.parametrize("name", MODELS)
def test_large_models_from_their_config_alone(name, bin_folder, tmp_path):
    config = MODELS[name]
    config.save_pretrained(tmp_path / "models" / name)
    command = [bin_folder / "prulong-train", CONFIG, f"model.path=models/{name}", "--memory"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.device("meta"):
        weights = transformers.AutoModelForCausalLM.from_config(config).num_parameters()
    lines = done.stdout.splitlines()
    assert lines[0] == (
        f"model   models/{name}: {config.model_type}, {weights:,} weights, {config.num_hidden_layers} layers of "
        f"{config.num_key_value_heads} KV heads, {config.num_attention_heads} query heads, head_dim 128"
    )
    assert f"{config.num_hidden_layers * config.num_key_value_heads} gates" in lines[1]
    figures = {line[:32].strip(): [float(x) for x in line[32:].replace("GiB", "").split()] for line in lines[4:8]}
    assert figures["weights"] == [round(weights * 2 / 2**30, 2)] * 2
    inputs = config.num_hidden_layers * 65536 * config.hidden_size * 2 / 2**30  # all that is kept when recomputing
    assert inputs <= figures["activations"][1] <= 1.1 * inputs + 0.1
    assert figures["activations"][0] > 5 * inputs
    for column in range(2):
        parts = sum(figures[row][column] for row in ("weights", "activations", "loss or one layer, the larger"))
        assert figures["in all, about"][column] == pytest.approx(parts, abs=0.03)
    assert figures["in all, about"][1] < 75  # one 80 GB GPU, as configs/llama3.1-8b.yaml says
    if name.startswith("Llama"):
        claim = f"answers {figures['in all, about'][1]:.0f} GiB with layers computed again in the backward pass "
        kept = f"({figures['activations'][1]:.0f} GiB of activations; {figures['activations'][0]:.0f} GiB without)"
        assert claim + kept in (ROOT / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["models"]  # no run was begun


def test_a_folder_without_config_is_refused(bin_folder, tmp_path):
    command = [bin_folder / "prulong-train", CONFIG, "--memory"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "models/Llama-3.1-8B-Instruct: no such folder" in done.stderr and done.stderr.count("\n") == 1


def report(bin_folder, folder, *arguments, code=0):
    command = [bin_folder / "prulong-train", CONFIG, *arguments, "--memory"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_of_one_of_several_ranks(bin_folder, tmp_path):
    name = "Llama-3.1-8B-Instruct"
    MODELS[name].save_pretrained(tmp_path / "models" / name)

    def gib(text, row):
        line = next(line for line in text.splitlines() if line.startswith(row))
        return [float(x) for x in line[32:].replace("GiB", "").split()]

    alone = report(bin_folder, tmp_path)
    data = report(bin_folder, tmp_path, "--ranks", "8")
    assert "8 at a time: of one of 8 ranks" in data
    assert gib(data, "in all") == gib(alone, "in all")  # each has whole sequences
    shared = report(bin_folder, tmp_path, "parallel.context=4", "--ranks=8")
    assert "2 at a time, each shared by 4: of one of 8 ranks" in shared
    assert gib(shared, "weights") == gib(alone, "weights")
    for quarter, whole in zip(gib(shared, "activations"), gib(alone, "activations")):
        assert quarter == pytest.approx(whole / 4, abs=0.02)
    assert gib(data, "with parallel.context=4") == gib(shared, "in all")
    assert gib(report(bin_folder, tmp_path, "parallel.context=auto", "--ranks=8"), "in all") == gib(alone, "in all")
    refused = report(bin_folder, tmp_path, "parallel.context=3", "--ranks=8", code=2)
    assert "expected a divisor of the number of ranks, which is 8, found 3" in refused
    assert "--ranks: expected at least 1, found 0" in report(bin_folder, tmp_path, "--ranks=0", code=2)
