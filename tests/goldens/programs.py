# SPDX-License-Identifier: MIT
"""Goldens of prulong-train, prulong-export and prulong-eval on the tiny world of the tests, and of the demo."""

import hashlib
import itertools
import json
import subprocess
import sys

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from build import ROOT, Build, Failure, metrics_of, pattern_of, tensors_of
from store import INTENDED

sys.path.insert(0, str(ROOT / "tests" / "python"))
import tiny_world  # noqa: E402

DEMO_THREADS = 2
RECALL = "{type: recall, path: world/kit, tasks: [codes], statements: 2, questions: 2}"
EVERY_TASK = ("{type: recall, path: world/kit, tasks: [codes, key_values, passkey, labels], statements: 2, "
              "questions: 2}, "
              "{type: recall, path: world/kit, tasks: [multi_values], statements: 8, questions: 2, seed: 3}")
TOKENS = "{type: tokens, path: world/tokens, weight: 2}"
TRAIN = f"""
model: {{path: world/model, dtype: float32}}
attention: {{sink: 4, window: 16}}
gates: {{init_mean: 1}}
sparsity: {{end: 0.5, warmup_ratio: 0.5}}
optimizer: {{lr_gates: 0.5, lr_multipliers: 1.0, lr_weights: 0.001}}
train: {{steps: 12, seq_len: 160, sequences_per_step: 2, loss_chunk: 64}}
data:
  train:
    - {RECALL}
    - {TOKENS}
  eval:
    - {RECALL}
eval: {{sequences: 2, every: 5}}
checkpoint: {{every: 2}}
run: {{dir: run}}
"""
EVAL = f"""
model: {{path: world/model, dtype: float32}}
attention: {{sink: 4, window: 16}}
data: [{EVERY_TASK}]
seq_len: 400
sequences: 6
methods:
  - {{type: full}}
  - {{type: pattern, path: mixed, label: mixed}}
  - {{type: pattern, path: mixed, sparsity: 0.8, label: mixed at 80 %}}
  - {{type: local}}
out: results.json
"""
PATTERN = {"format": "prulong-pattern", "version": 1,
           "model": {"type": "llama", "layers": tiny_world.LAYERS, "kv_heads": tiny_world.KV_HEADS, "query_heads": 4,
                     "head_dim": 16},
           "sink": 4, "window": 16, "sparsity": 0.5, "mask": [[1, 0], [0, 0], [1, 1]],
           "scores": [[2.5, -1.0], [0.25, -0.5], [3.0, 1.5]], "provenance": {}}
SHAPE = dict(vocab_size=tiny_world.VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
             num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None,
             eos_token_id=None, pad_token_id=None, rms_norm_eps=1e-5)
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "llama tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama llama3 rope": LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=None, head_dim=24),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
}


def _canonical(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_world(build: Build, add) -> None:
    """The inputs of all the rest: where these differ, nothing below says anything about the code."""
    work = build.work
    world = tiny_world.write_world(work / "world")
    prepare = ["text", "--tokenizer", str(world / "model"), "--out", str(work / "mds"), "--format", "mds",
               "--sample-tokens", "64", str(world / "book.txt")]
    assert tiny_world.prepare_data.main(prepare) == 0
    tokens = np.load(world / "tokens" / "tokens.npy")
    np.save(work / "flat.npy", tokens)
    tokens.tofile(work / "flat.bin")
    for file in ("kit/tokens.npy", "kit/offsets.npy", "tokens/tokens.npy", "tokens/documents.npy"):
        add(file, content=torch.from_numpy(np.load(world / file).astype(np.int64)))
    kit = json.loads((world / "kit" / "kit.json").read_text())
    add("kit/kit.json", **{key: _canonical(kit[key]) for key in ("prefix", "lists", "templates")})
    add("model", weights=load_file(world / "model" / "model.safetensors"))
    shards = sorted((work / "mds").glob("*.mds"))
    add("mds", shards=[hashlib.sha256(file.read_bytes()).hexdigest() for file in shards])

    (work / "mixed").mkdir()
    (work / "mixed" / "pattern.json").write_text(json.dumps(PATTERN))
    (work / "train.yaml").write_text(TRAIN)
    (work / "eval.yaml").write_text(EVAL)
    for name, config in FAMILIES.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():  # far from the small initial values, where differences would not show
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.dim() == 1 else 0.0))
        model.save_pretrained(work / "families" / name)
        add(name, weights=tensors_of(work / "families" / name))


def _training_runs() -> dict[str, list[str]]:
    """Overrides of TRAIN by name."""
    runs = {}
    modes = {"masks": [], "weights": ["gates.pattern=mixed"], "both": []}
    for (mode, keys), dtype, preset, recompute in itertools.product(
            modes.items(), ("float32", "bfloat16"), ("default", "reference"), ("off", "on")):
        runs[f"{mode} {dtype} {preset} recompute {recompute}"] = [
            f"train.mode={mode}", f"model.dtype={dtype}", f"preset={preset}", f"train.recompute={recompute}", *keys]
    for mode, keys in modes.items():
        runs[f"{mode} one sequence a step"] = [f"train.mode={mode}", "train.sequences_per_step=1", *keys]
        runs[f"{mode} five sequences a step, answers"] = [f"train.mode={mode}", "train.sequences_per_step=5",
                                                          "train.loss_tokens=answers", f"data.train=[{RECALL}]", *keys]
    for name, source in {"recall": RECALL, "every recall task": EVERY_TASK, "tokens": TOKENS,
                         "npy": "{type: npy, path: flat.npy, end_token: 14}",
                         "raw": "{type: raw, path: flat.bin, dtype: uint16}", "mds": "{type: mds, path: mds}",
                         "five kinds": "{type: mds, path: mds, weight: 3}, {type: npy, path: flat.npy}, "
                                       f"{{type: raw, path: flat.bin, dtype: uint16}}, {TOKENS}, {EVERY_TASK}"}.items():
        runs[f"masks of {name}"] = [f"data.train=[{source}]", "train.seq_len=400"]
    runs["masks from a pattern"] = ["gates.pattern=mixed"]
    runs["masks sampled logarithmic"] = ["sparsity.estimate=sampled", "sparsity.schedule=logarithmic"]
    runs["masks without linear term"] = ["sparsity.linear_term=false", "train.seed=7", "optimizer.clip_norm=0.001"]
    for family in FAMILIES:
        runs[f"both {family}"] = [f"model.path=families/{family}", "train.mode=both", "train.recompute=on"]
    return runs


def record_training(build: Build, add) -> None:
    def results(run: str) -> dict:
        folder = build.work / run
        model = {"model": tensors_of(folder / "model")} if (folder / "model").exists() else {}
        return {"metrics": metrics_of(folder), **pattern_of(folder), **model}

    for number, (name, overrides) in enumerate(_training_runs().items()):
        build.run("prulong-train", "train.yaml", *overrides, f"run.dir=runs/{number}")
        add(name, **results(f"runs/{number}"))
    for mode in ("masks", "weights", "both"):
        keys = [f"train.mode={mode}", "train.steps=100", "gates.pattern=mixed", "eval.every=0"]
        build.train_in_two("train.yaml", *keys, run=f"runs/stopped-{mode}", step=4)
        add(f"{mode} stopped and resumed", **results(f"runs/stopped-{mode}"))


def record_export(build: Build, add) -> None:
    work = build.work
    build.run("prulong-train", "train.yaml", "run.dir=trained")
    (work / "duo").mkdir()
    (work / "duo" / "full_attention_heads.tsv").write_text("0.5\t1.0\n-1e-4\t1.0\n0.25\t0.75\n")
    (work / "duo" / "config.json").write_text('{"sink_size": 128, "recent_size": 256, "lr": 0.02}')
    (work / "table.tsv").write_text("1.0\t0.0\n0.0\t0.0\n1.0\t1.0\n")
    cases = {f"run at {sparsity}": ["trained", "--sparsity", sparsity] for sparsity in (0, 0.1, 0.3, 0.75, 0.9, 1)}
    cases |= {"run as it is": ["trained"],
              "run with other sizes": ["trained", "--sink", 2, "--window", 9],
              "pattern": ["mixed/pattern.json", "--model", "world/model"],
              "DuoAttention folder": ["duo", "--model", "world/model", "--sparsity", 0.5],
              "table": ["table.tsv", "--model", "world/model", "--sink", 128, "--window", 1024]}
    for number, (case, arguments) in enumerate(cases.items()):
        done = build.run("prulong-export", *arguments, "--out", f"exported/{number}")
        add(case, text=done.stdout, **pattern_of(work / "exported" / str(number)))


def record_eval(build: Build, add) -> None:
    def results(*overrides) -> dict:
        done = build.run("prulong-eval", "eval.yaml", *overrides)
        report = json.loads((build.work / "results.json").read_text())
        return {"methods": report["methods"], "table": done.stdout}

    add("every task float32", **results())
    add("every task bfloat16", **results("model.dtype=bfloat16"))
    add("long local", **results("attention.sink=0", "attention.window=100", f"data=[{RECALL}]", "seq_len=512"))
    add("qwen3", **results("model.path=families/qwen3", "methods=[{type: full}, {type: local}]"))
    add(INTENDED, **results("methods=[{type: random, sparsity: 0.5, count: 3, seed: 5}]"))


def record_logits(build: Build, add) -> None:
    torch.manual_seed(1)
    documents = [torch.randint(tiny_world.VOCAB, (length,)).tolist() for length in (200, 1, 33)]
    mixed, zero_one = torch.rand(3, 2) * 0.9 + 0.05, torch.tensor(PATTERN["mask"], dtype=torch.float32)
    for family, dtype in itertools.product(FAMILIES, ("float32", "bfloat16")):
        for name, gates in (("gates", mixed), ("mask", zero_one)):
            case = f"{family} {dtype} {name}"
            add(case, **build.logits(f"logits/{case}", f"families/{family}", dtype, documents, gates, 2, 9))


def record_demo(build: Build, add) -> None:
    """The steps of scripts/demo.sh with seed 1, after its set-up."""
    work, model = build.work, ROOT / "models" / "SmolLM2-135M-Instruct"
    if not model.is_dir():
        raise Failure(f"{model}: no such folder; fetch it with scripts/fetch_smollm2.py")
    if not (work / "models").exists():
        (work / "models").symlink_to(ROOT / "models")
    command = [sys.executable, ROOT / "scripts" / "prepare_data.py", "recall", "--tokenizer", f"models/{model.name}",
               "--out", "demo/kit", "--overwrite"]
    subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
    add("kit", tokens=torch.from_numpy(np.load(work / "demo" / "kit" / "tokens.npy").astype(np.int64)))

    def run(program: str, *arguments) -> str:
        return build.run(program, *arguments, threads=DEMO_THREADS).stdout

    def methods(name: str) -> list:
        return json.loads((work / "demo" / name).read_text())["methods"]

    configs = ROOT / "configs"
    table = run("prulong-eval", configs / "demo_eval.yaml", "methods=[{type: full}]", "out=demo/full.json")
    add("full attention", table=table, methods=methods("full.json"))
    run("prulong-train", configs / "demo.yaml", "train.seed=1", "data.train.0.seed=1", "run.dir=demo/run-1")
    add("training", metrics=metrics_of(work / "demo" / "run-1"), **pattern_of(work / "demo" / "run-1"))
    text = run("prulong-export", "demo/run-1", "--sparsity", 0.7, "--out", "demo/masks")
    add("export", text=text, **pattern_of(work / "demo" / "masks"))
    table = run("prulong-eval", configs / "demo_eval.yaml")
    random = [method for method in methods("results.json") if method["type"] == "random"]
    add("comparison", methods=[method for method in methods("results.json") if method["type"] != "random"],
        table=[line for line in table.splitlines() if "random" not in line])
    add(INTENDED, methods=random)
