# SPDX-License-Identifier: MIT
"""prulong-train's optimizer steps against the same mathematics written out in torch and numpy, in double precision."""

import json
import math
import os
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from transformers.models.llama import modeling_llama

from tiny_world import KV_HEADS, LAYERS, VOCAB, tiny_model

SEQ_LEN, MICRO_STEPS, STEPS = 96, 2, 3
SINK, WINDOW, SEED = 4, 16, (7 << 32) + 11  # both words of the noise's key
NOISE, START = 0, 1  # streams of the generator


def philox(counter, key):
    """Philox4x32-10 of Salmon et al., in numpy."""
    multipliers, weyl = np.array([0xD2511F53, 0xCD9E8D57], np.uint64), np.array([0x9E3779B9, 0xBB67AE85], np.uint32)
    counter, key = np.array(counter, np.uint32), np.array(key, np.uint32)
    for _ in range(10):
        products = multipliers * counter[[0, 2]].astype(np.uint64)
        high, low = (products >> np.uint64(32)).astype(np.uint32), products.astype(np.uint32)
        counter = np.array([high[1] ^ counter[1] ^ key[0], low[1], high[0] ^ counter[3] ^ key[1], low[0]], np.uint32)
        key = key + weyl
    return counter


def uniforms(stream, step, micro_step):
    """Two numbers in (0, 1) for every gate, [layers, kv_heads, 2]."""
    numbers = np.empty((LAYERS, KV_HEADS, 2))
    key = [SEED & 0xFFFFFFFF, SEED >> 32]
    for layer in range(LAYERS):
        for head in range(KV_HEADS):
            words = philox([step, micro_step, layer << 16 | head, stream], key).tolist()
            numbers[layer, head] = [((words[i] << 32 | words[i + 1]) >> 12) * 2.0**-52 + 2.0**-53 for i in (0, 2)]
    return numbers


def initial_log_alpha(mean, std):
    u, v = np.moveaxis(uniforms(START, 0, 0), -1, 0)
    return torch.tensor(mean + std * np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v), requires_grad=True)


def draw(log_alpha, step, micro_step):
    u = torch.tensor(uniforms(NOISE, step, micro_step)[..., 0])
    s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + log_alpha) / (2 / 3))
    return (1.2 * s - 0.1).clamp(0, 1)


def attention_by_gates(gates):
    """Eager attention twice, with all earlier keys and with sink and window only, mixed by z of each KV head."""
    query, key = torch.arange(SEQ_LEN)[:, None], torch.arange(SEQ_LEN)
    visible = {"global": key <= query, "local": (key <= query) & ((key < SINK) | (query - key < WINDOW))}
    masks = {name: torch.zeros(SEQ_LEN, SEQ_LEN, dtype=torch.float64).masked_fill(~seen, -math.inf)
             for name, seen in visible.items()}

    def attend(module, query, key, value, attention_mask, scaling, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        scores = query @ key.transpose(2, 3) * scaling
        z = gates()[module.layer_idx].repeat_interleave(groups)[None, :, None, None]
        mixed = [(scores + masks[name]).softmax(-1) @ value for name in ("global", "local")]
        return (z * mixed[0] + (1 - z) * mixed[1]).transpose(1, 2).contiguous(), None

    return attend


def sparsity_target(step, end, warmup_ratio):
    return end * min(1.0, step / math.ceil(warmup_ratio * STEPS))


def rate_factor(step, warmup_ratio, floor, from_zero):
    warmup = math.ceil(warmup_ratio * STEPS)
    if step < warmup:
        return (step if from_zero else step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))


def steps_of_reference(folder, document, monkeypatch, settings):
    """Yields log_alpha, the multipliers and their optimizer's first moments after each step, and what was measured."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    model.requires_grad_(False)
    log_alpha = initial_log_alpha(settings["init_mean"], settings["init_std"])
    multipliers = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    common = dict(betas=(0.9, 0.95), eps=1e-8, weight_decay=settings["decay"])
    gates_optimizer = torch.optim.AdamW([log_alpha], **common)
    multipliers_optimizer = torch.optim.AdamW([multipliers], maximize=True, **common)
    tokens = torch.tensor(document)[None]
    now = {}
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", attention_by_gates(lambda: now["z"]))
    for step in range(STEPS):
        draws, loss = [draw(log_alpha, step, i) for i in range(MICRO_STEPS)], 0.0
        for z in draws:
            now["z"] = z
            logits = model(tokens, use_cache=False).logits[0, :-1]
            loss = loss + torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")
        loss = loss / (MICRO_STEPS * (SEQ_LEN - 1))
        if settings["estimate"] == "expected":
            sparsity = torch.sigmoid(2 / 3 * math.log(0.1 / 1.1) - log_alpha).mean()
        else:
            sparsity = 1 - torch.stack(draws).mean()
        gap = sparsity - sparsity_target(step, settings["end"], settings["target_warmup"])
        constraint = multipliers[0] * gap + multipliers[1] * gap**2
        gates_optimizer.zero_grad()
        multipliers_optimizer.zero_grad()
        (loss + constraint).backward()
        norm = torch.nn.utils.clip_grad_norm_([log_alpha, multipliers], settings["clip"])
        factor = rate_factor(step, settings["rate_warmup"], 0.01, settings["from_zero"])
        for optimizer, rate in ((gates_optimizer, 0.5), (multipliers_optimizer, 0.7)):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
        yield {"log_alpha": log_alpha, "multipliers": multipliers,
               "log_alpha.m": gates_optimizer.state[log_alpha]["exp_avg"],
               "multipliers.m": multipliers_optimizer.state[multipliers]["exp_avg"]}, {
            "loss_nats": loss, "sparsity": sparsity, "constraint_loss": constraint, "gradient_norm": norm,
            "sparsity_target": sparsity - gap, "learning_rate_factor": factor}


DEFAULT = {"init_mean": 0.3, "init_std": 1.2, "decay": 0.0, "estimate": "expected", "end": 0.6, "target_warmup": 0.5,
           "rate_warmup": 0.5, "from_zero": False, "clip": 0.05}
PUBLISHED = {**DEFAULT, "decay": 0.1, "estimate": "sampled", "target_warmup": 0.8, "from_zero": True, "clip": 10.0}


@pytest.mark.parametrize("settings", [DEFAULT, PUBLISHED], ids=["default", "published"])
def test_steps_are_the_mathematics_of_the_method(bin_folder, tmp_path, monkeypatch, settings):
    tiny_model().save_pretrained(tmp_path / "model")
    document = np.random.default_rng(3).integers(0, VOCAB, SEQ_LEN).astype(np.uint16)
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    np.save(tokens / "tokens.npy", document)
    np.save(tokens / "documents.npy", np.array([0, SEQ_LEN], np.int64))
    (tokens / "data.json").write_text(json.dumps({"format": "prulong-tokens", "version": 1, "vocab_size": VOCAB,
                                                  "tokens": SEQ_LEN, "documents": 1}))
    (tmp_path / "train.yaml").write_text(json.dumps({
        "model": {"path": str(tmp_path / "model"), "dtype": "float32"},
        "attention": {"sink": SINK, "window": WINDOW},
        "gates": {"init_mean": settings["init_mean"], "init_std": settings["init_std"]},
        "sparsity": {"end": settings["end"], "warmup_ratio": settings["target_warmup"],
                     "estimate": settings["estimate"]},
        "optimizer": {"lr_gates": 0.5, "lr_multipliers": 0.7, "gates_weight_decay": settings["decay"],
                      "clip_norm": settings["clip"], "warmup_ratio": settings["rate_warmup"],
                      "warmup_from_zero": settings["from_zero"]},
        "train": {"steps": STEPS, "seq_len": SEQ_LEN, "sequences_per_step": MICRO_STEPS, "seed": SEED,
                  "loss_chunk": 40},
        "data": {"train": [{"type": "tokens", "path": str(tokens)}]},
        "checkpoint": {"every": 1, "keep": STEPS},
        "run": {"dir": str(tmp_path / "run")},
    }))
    result = subprocess.run([bin_folder / "prulong-train", tmp_path / "train.yaml"], capture_output=True, text=True,
                            env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    reference = steps_of_reference(tmp_path / "model", document.astype(np.int64), monkeypatch, settings)
    for step, (state, measured) in enumerate(reference, 1):
        for name, value in measured.items():
            expected = float(torch.as_tensor(value).detach())
            assert lines[step - 1][name] == pytest.approx(expected, rel=1e-5, abs=1e-6), (step, name)
        saved = load_file(tmp_path / "run" / "checkpoints" / f"step-{step:08d}.safetensors")
        for name, value in state.items():
            np.testing.assert_allclose(saved[name].numpy().ravel(), value.detach().numpy().ravel(),
                                       rtol=1e-4 if name.endswith(".m") else 1e-5, atol=1e-6,
                                       err_msg=f"{name} after step {step}")
    # The noise reached every kind of gate, or this test would say little.
    assert any(0 < line["fractional_share"] < 1 for line in lines)
