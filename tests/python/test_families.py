# SPDX-License-Identifier: MIT
"""Mistral, Qwen2 and Qwen3: the C++ model, its gradients and masks against transformers on random tiny checkpoints."""

import json
import math
import subprocess

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models import mistral, qwen2, qwen3, qwen3_moe

import prulong
from llama_program import PROGRAM, randomise, reference_logits, run_program

LAYERS, KV_HEADS, GROUP, VOCAB = 3, 2, 3, 131
SINK, WINDOW = 2, 9
SHAPE = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=LAYERS, rms_norm_eps=1e-5,
             num_attention_heads=KV_HEADS * GROUP, num_key_value_heads=KV_HEADS, max_position_embeddings=512,
             bos_token_id=None, eos_token_id=None, pad_token_id=None)
FAMILIES = {
    "mistral": (mistral.MistralConfig, {"sliding_window": None}),
    "qwen2": (qwen2.Qwen2Config, {}),
    "qwen3": (qwen3.Qwen3Config, {"head_dim": 16}),
}
LINEAR = {"rope_type": "linear", "factor": 2.0}


def config_of(family, **changes):
    kind, own = FAMILIES[family]
    return kind(**(SHAPE | own | changes))


def write_checkpoint(folder, family, **changes):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(family, **changes))
    randomise(model)
    model.save_pretrained(folder)


def change_config(folder, **changes):
    """Sets keys of config.json; None removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None or key not in changes}))


def documents(*lengths):
    torch.manual_seed(1)
    return [torch.randint(VOCAB, (length,)).tolist() for length in lengths]


# config.json as the published models of transformers 4.x have it.
OLD = {"rope_parameters": None, "layer_types": None, "dtype": None, "torch_dtype": "float32", "rope_theta": 1e6}
OLD_QWEN = OLD | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 1}
CASES = {
    "mistral": ("mistral", {}, {}),
    "mistral_head_dim": ("mistral", {"head_dim": 24}, {}),
    "mistral_linear": ("mistral", {"rope_theta": 1e6, "rope_scaling": LINEAR}, {}),
    "mistral_old": ("mistral", {}, OLD),
    "qwen2": ("qwen2", {}, {}),
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True}, {}),
    "qwen2_old": ("qwen2", {}, OLD_QWEN),
    "qwen3": ("qwen3", {}, {}),
    "qwen3_tied": ("qwen3", {"tie_word_embeddings": True}, {}),
    "qwen3_old": ("qwen3", {}, OLD_QWEN),
}


@pytest.mark.parametrize("case", CASES)
def test_random_checkpoints_match_transformers(case, tmp_path):
    family, changes, spelling = CASES[case]
    write_checkpoint(tmp_path / "model", family, **changes)
    change_config(tmp_path / "model", **spelling)
    packed = documents(200, 1, 33)
    found, _ = run_program(tmp_path / "model", tmp_path / "out", packed)
    expected = reference_logits(tmp_path / "model", packed)
    torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-4)
    # What we save, transformers loads, with the same weights and the same result.
    torch.testing.assert_close(reference_logits(tmp_path / "out" / "model", packed), expected, rtol=0, atol=1e-5)
    stored, saved = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "out/model"))
    assert stored.keys() == saved.keys()
    assert all(torch.equal(stored[name], saved[name]) for name in stored)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_what_a_family_adds_to_a_layer_shows(family, tmp_path):
    """Or the comparisons above would say nothing about it."""
    write_checkpoint(tmp_path, family)
    before = reference_logits(tmp_path, documents(20))
    weights = load_file(tmp_path / "model.safetensors")
    added = [name for name in weights if ".self_attn." in name and (name.endswith(".bias") or "_norm." in name)]
    assert len(added) == LAYERS * {"qwen2": 3, "qwen3": 2}[family]
    for name in added:
        changed = weights | {name: torch.roll(weights[name], 1)}
        save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
        assert (reference_logits(tmp_path, documents(20)) - before).abs().max() > 1e-3, name


def gated_attention(gates):
    """Softmax twice, over all earlier keys and over sink and window only, mixed by the gate of each KV head."""

    def attend(module, query, key, value, attention_mask, scaling, **_):
        position = torch.arange(query.shape[2])
        distance = position[:, None] - position
        seen = {"global": distance >= 0, "local": (distance >= 0) & ((position < SINK) | (distance < WINDOW))}
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        scores = query @ key.transpose(2, 3) * scaling
        of_all, of_local = (scores.masked_fill(~visible, -math.inf).softmax(-1) @ value for visible in seen.values())
        z = gates[module.layer_idx].repeat_interleave(groups)[None, :, None, None]
        return (z * of_all + (1 - z) * of_local).transpose(1, 2).contiguous(), None

    return attend


def reference_with_gates(folder, gates):
    """transformers' model in double precision, with the gates in its attention."""
    transformers.AttentionInterface.register("gated_reference", gated_attention(gates))
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="gated_reference"
    ).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_gate_gradients_are_those_of_the_method(family, tied, tmp_path):
    write_checkpoint(tmp_path / "model", family, tie_word_embeddings=tied)
    torch.manual_seed(2)
    gates = torch.rand(LAYERS, KV_HEADS) * 0.9 + 0.05
    packed = documents(60, 1, 25)
    (tmp_path / "out").mkdir()
    save_file({"gates": gates, "locality": torch.tensor([SINK, WINDOW])}, tmp_path / "out" / "gates.safetensors")
    run_program(tmp_path / "model", tmp_path / "out", packed)
    found = load_file(tmp_path / "out" / "gradients.safetensors")

    exact = gates.double().requires_grad_()
    model = reference_with_gates(tmp_path / "model", exact).requires_grad_(False)
    loss = 0.0
    for document in packed:
        tokens = torch.tensor(document)
        logits = model(tokens[None], use_cache=False).logits[0]
        loss = loss + torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="sum")
    loss.backward()
    torch.testing.assert_close(found["loss"].double(), loss.detach(), rtol=1e-5, atol=0)
    assert exact.grad.abs().min() > 1e-3
    torch.testing.assert_close(found["gates"].double(), exact.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_apply_to_transformers_models(family, tmp_path):
    write_checkpoint(tmp_path, family)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    mask = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    pattern = prulong.Pattern.from_scores(prulong.ModelShape.of(model.config), mask.tolist(), 4 / 6, SINK, WINDOW)
    tokens = torch.tensor(documents(50))
    with torch.no_grad():
        own = model(tokens).logits
        prulong.apply(model, pattern)
        found = model(tokens).logits
        expected = reference_with_gates(tmp_path, mask.double())(tokens, use_cache=False).logits
    assert (found - own).abs().max() > 1e-2
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_gates_and_weights_train(family, bin_folder, world, tmp_path):
    write_checkpoint(tmp_path / "model", family, vocab_size=400)
    (tmp_path / "train.yaml").write_text(f"""
model: {{path: {tmp_path}/model, dtype: float32}}
attention: {{sink: 4, window: 16}}
gates: {{init_mean: 0}}
optimizer: {{lr_gates: 0.5, lr_weights: 0.01}}
train: {{mode: both, steps: 4, seq_len: 96, recompute: on}}
data: {{train: [{{type: tokens, path: {world}/tokens}}]}}
run: {{dir: {tmp_path}/run}}
""")
    done = subprocess.run([bin_folder / "prulong-train", tmp_path / "train.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert prulong.Pattern.load(tmp_path / "run").model.type == family
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "run/model"))
    assert before.keys() == after.keys()
    assert not [name for name in before if torch.equal(before[name], after[name])]
    losses = [json.loads(line)["loss_nats"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    packed = documents(40, 7)
    found, _ = run_program(tmp_path / "run" / "model", tmp_path / "out", packed)
    torch.testing.assert_close(found["logits"], reference_logits(tmp_path / "run" / "model", packed), rtol=0, atol=1e-4)


def test_duo_attention_folder_of_mistral(bin_folder, tmp_path):
    """The layout of DuoAttention's published patterns: a table of bf16 scores and the options of their training."""
    write_checkpoint(tmp_path / "model", "mistral")
    duo = tmp_path / "lr=0.02-reg=0.05-ctx=1000_32000-multi_passkey10"
    duo.mkdir()
    rows = [[0.9921875, 0.0625], [-0.0003, 1.0], [0.5, 0.25]]
    (duo / "full_attention_heads.tsv").write_text("".join("\t".join(f"{x:.18e}" for x in row) + "\n" for row in rows))
    (duo / "config.json").write_text(json.dumps({"model_name": "Mistral-7B-Instruct-v0.2", "sink_size": 128,
                                                 "recent_size": 256, "lr": 0.02, "streaming_attn_implementation": "x"}))
    command = [bin_folder / "prulong-export", duo, "--model", tmp_path / "model", "--sparsity", "0.5", "--out",
               tmp_path / "mask"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mistral, 3 layers of 2 KV heads" in done.stdout
    pattern = prulong.Pattern.load(tmp_path / "mask")
    shape = prulong.ModelShape.of(transformers.AutoConfig.from_pretrained(tmp_path / "model"))
    assert pattern == prulong.Pattern.from_duo_attention(duo, shape, 0.5)
    assert pattern.mask == ((True, False), (False, True), (True, False))
    assert (pattern.sink, pattern.window, pattern.model.type) == (128, 256, "mistral")


@pytest.mark.parametrize(
    "config, message",
    [
        (config_of("mistral", sliding_window=4096), '"sliding_window" is 4096'),
        (config_of("qwen2", use_sliding_window=True, max_window_layers=1), '"sliding_window" is 4096'),
        (config_of("qwen3", layer_types=["full_attention", "full_attention", "sliding_attention"]), '"layer_types" is ['),
        (config_of("qwen3", attention_bias=True), '"attention_bias" is true'),
        (config_of("qwen3", rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}),
         'rope_type" is "yarn"'),
        (config_of("qwen2", hidden_act="gelu"), '"hidden_act" is "gelu"'),
        (qwen3_moe.Qwen3MoeConfig(), '"model_type" is "qwen3_moe"; supported model types: "llama", "mistral",'),
    ],
)
def test_what_is_not_supported_is_refused_by_name(config, message, tmp_path):
    config.save_pretrained(tmp_path)
    command = [PROGRAM, tmp_path, tmp_path / "out", "float32", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr and done.stderr.count("\n") == 1
