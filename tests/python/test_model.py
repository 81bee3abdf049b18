# SPDX-License-Identifier: MIT
"""The C++ model against transformers, through prulong_llama_logits."""

import json
import os
import subprocess

import pytest
import torch
import transformers

from safetensors.torch import load_file, save_file

from llama_program import PROGRAM, ROOT, randomise, reference_logits, run_program

SMOLLM2 = ROOT / "models" / "SmolLM2-135M-Instruct"

LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def tiny_checkpoint(folder, *, tied=False, rope=None, theta=10000.0, head_dim=None, shard="5GB", old_layout=False):
    """Saves a random model with the installed transformers; old_layout rewrites config.json as 4.x had it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=131,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-5,
        rope_theta=theta,
        rope_scaling=dict(rope) if rope else None,
    )
    model = transformers.LlamaForCausalLM(config)
    randomise(model)
    model.save_pretrained(folder, max_shard_size=shard)
    if old_layout:
        file = folder / "config.json"
        saved = json.loads(file.read_text())
        saved.pop("rope_parameters", None)
        saved["rope_theta"] = theta
        saved["rope_scaling"] = {("type" if key == "rope_type" else key): value for key, value in rope.items()} if rope else None
        saved["torch_dtype"] = saved.pop("dtype", "float32")
        saved["transformers_version"] = "4.40.0"
        file.write_text(json.dumps(saved))


CASES = {
    "plain": {},
    "tied": {"tied": True},
    "sharded": {"shard": "60KB"},
    "sharded_tied": {"shard": "60KB", "tied": True},
    "head_dim": {"head_dim": 16},
    "theta": {"theta": 500000.0},
    "linear": {"rope": LINEAR},
    "llama3": {"rope": LLAMA3, "theta": 500000.0},
    "old_plain": {"old_layout": True, "theta": 25000.0},
    "old_linear": {"old_layout": True, "rope": LINEAR},
    "old_llama3": {"old_layout": True, "rope": LLAMA3, "theta": 500000.0},
}


@pytest.mark.parametrize("case", CASES)
def test_random_checkpoints_match_transformers(case, tmp_path):
    tiny_checkpoint(tmp_path / "model", **CASES[case])
    if "shard" in CASES[case]:
        assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    torch.manual_seed(1)
    documents = [torch.randint(131, (length,)).tolist() for length in (200, 1, 33)]
    found, _ = run_program(tmp_path / "model", tmp_path / "out", documents)
    expected = reference_logits(tmp_path / "model", documents)
    torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-4)
    assert torch.equal(found["greedy"], found["logits"].argmax(-1))
    # What we save, transformers loads, with the same result (but for sums that depend on the weights' alignment).
    torch.testing.assert_close(reference_logits(tmp_path / "out" / "model", documents), expected, rtol=0, atol=1e-5)


def test_bfloat16_is_as_near_to_float32_as_transformers(tmp_path):
    tiny_checkpoint(tmp_path / "model")
    documents = [list(range(100))]
    found, _ = run_program(tmp_path / "model", tmp_path / "out", documents, dtype="bfloat16")
    exact = reference_logits(tmp_path / "model", documents)
    theirs = reference_logits(tmp_path / "model", documents, torch.bfloat16)
    error = (found["logits"] - exact).square().mean().sqrt()
    assert error <= 1.5 * (theirs - exact).square().mean().sqrt()
    saved = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert saved.get("dtype", saved.get("torch_dtype")) == "bfloat16"


@pytest.mark.skipif(not SMOLLM2.exists(), reason="models/SmolLM2-135M-Instruct is not there: run scripts/fetch_smollm2.py")
def test_smollm2_matches_transformers_and_loads_fast(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(SMOLLM2)
    text = "The secret code of the quiet harbour is 48213. The capital of France is"
    documents = [tokenizer(text)["input_ids"], tokenizer("Once upon a time")["input_ids"]]
    found, printed = run_program(SMOLLM2, tmp_path / "out", documents)
    exact = reference_logits(SMOLLM2, documents, torch.float64)
    error, theirs = ((logits - exact).abs().max() for logits in (found["logits"], reference_logits(SMOLLM2, documents)))
    # Logits reach 35 and come of 30 layers: on some processors those of transformers are as far from exact ones.
    assert error <= max(1e-4, 2 * theirs), f"ours {error:.2e}, that of transformers {theirs:.2e}"
    assert tokenizer.decode(found["greedy"][len(documents[0]) - 1]).strip() == "Paris"
    for dtype in ("float32", "bfloat16"):  # the file is in the cache now; the best of three
        times = [run_program(SMOLLM2, tmp_path / "out", [[1]], dtype)[1] for _ in range(3)]
        assert min(float(line.split()[1]) for line in times) <= 1.0


def stored_otherwise(folder, change):
    """Rewrites model.safetensors by a function of its tensors."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def split(folder, place, index):
    """Cuts model.safetensors into two shards at a place, with an index of them that `index` changes."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"one.safetensors": names[:9], f"{place}two.safetensors": names[9:]}
    for file, part in parts.items():
        (folder / file).parent.mkdir(exist_ok=True)
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    weight_map = index({name: file for file, part in parts.items() for name in part})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def head_only(tensors):
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    return tensors


LAYOUTS = {  # what transformers reads as it reads model.safetensors
    "the tied matrix as the head": (True, lambda f: stored_otherwise(f, head_only)),
    "the tied matrix twice": (True, lambda f: stored_otherwise(
        f, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})),
    "names without model.": (True, lambda f: stored_otherwise(
        f, lambda t: {name.removeprefix("model."): tensor for name, tensor in t.items()})),
    "tensors that nobody needs": (False, lambda f: stored_otherwise(
        f, lambda t: t | {"score.weight": torch.ones(2, 48), "steps": torch.ones(1, dtype=torch.int32),
                          "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})),
    "shards in a folder": (False, lambda f: split(f, "part/", lambda m: m)),
    "an index that lists more": (False, lambda f: split(f, "", lambda m: m | {"score.weight": "one.safetensors"})),
    "an index that lists less": (False, lambda f: split(
        f, "", lambda m: {n: file for n, file in m.items() if "mlp" not in n or "layers.1" in n})),
    "an index beside the file": (False, lambda f: (f / "model.safetensors.index.json").write_text("{}")),
    "NaN in the configuration": (False, lambda f: (f / "config.json").write_text(
        (f / "config.json").read_text().rstrip()[:-1] + ', "extra": [NaN, -Infinity]}')),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_transformers_loads_is_loaded_alike(layout, tmp_path):
    tied, change = LAYOUTS[layout]
    tiny_checkpoint(tmp_path / "model", tied=tied)
    documents = [list(range(40))]
    change(tmp_path / "model")
    found, _ = run_program(tmp_path / "model", tmp_path / "out", documents)
    expected = reference_logits(tmp_path / "model", documents)
    torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(reference_logits(tmp_path / "out" / "model", documents), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama", "is_causal": false}'),
         '"is_causal" is false; only true is supported'),
        (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors"),
        (lambda folder: os.truncate(folder / "model.safetensors", 50000), "model.safetensors: the header describes"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5), "model.safetensors: a safetensors file has at least"),
    ],
)
def test_damaged_folders_end_with_one_line(damage, message, tmp_path):
    tiny_checkpoint(tmp_path / "model")
    damage(tmp_path / "model")
    done = subprocess.run([PROGRAM, tmp_path / "model", tmp_path / "out", "float32", "1"], capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_token_outside_the_vocabulary(tmp_path):
    tiny_checkpoint(tmp_path / "model")
    arguments = [PROGRAM, tmp_path / "model", tmp_path / "out", "float32", "1", "2", "131"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 1
    assert "token 131 at position 2 is outside the model's vocabulary of 131" in done.stderr
