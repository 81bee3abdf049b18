#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Generation of SmolLM2-135M on a CPU: the engine and prulong.apply beside transformers with DynamicCache and SDPA.

one     A prompt of --tokens tokens, prefilled --prefills times (and once to warm up), then decoded from: the engine with every head global and with
        70 % of the heads local, transformers, and transformers under prulong.apply with the same mask. In turns.
batch   --batch such prompts at once: the engine with every head global and with 70 % local, decoding in turns.

float32, sink 16, window 128, a random mask (which heads are local does not change what they cost). Each side has its own
process and the same threads; a turn decodes --steps tokens a sequence. Bytes of keys and values are those that the cache has
taken (for transformers: of its tensors) at their most; peak memory is the process's resident set at its most, weights and
activations included. Writes one JSON and a picture.

Usage: benchmarks/bench_generate.py [one] [batch] [--tokens 8192] [--out docs/bench/generate.json]   after scripts/fetch_smollm2.py
"""

import argparse
import inspect
import json
import statistics
import sys
import time
from pathlib import Path

import bench_record
from bench_train_step import Side

ROOT = bench_record.ROOT
sys.path.insert(0, str(ROOT / "python_bindings"))
SIDES = {
    "one": ["transformers", "engine", "engine, 70 % local", "apply, 70 % local"],
    "batch": ["engine", "engine, 70 % local"],
}
SPARSITY, SINK, WINDOW = 0.7, 16, 128


def peak_resident_gib() -> float:
    for line in bench_record.lines_of(Path("/proc/self/status").read_text()):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError("/proc/self/status names no VmHWM")


def cache_argument(model) -> str:
    """What a transformers model calls its cache: newer versions renamed it."""
    return "cache" if "cache" in inspect.signature(inspect.unwrap(model.forward)).parameters else "past_key_values"


class EngineSide:
    """The engine. Its prompts stay alive, so that decoding goes on where it stopped."""

    def __init__(self, a: argparse.Namespace, pattern):
        import prulong

        self.prulong = prulong
        self.engine = prulong.Engine(a.model, pattern, dtype="float32", device="cpu", allow_beyond_positions=True,
                                     tokenizer=None)
        self.engine.tokenizer  # read now, not within the first measurement
        self.ids = []

    def prefill(self, prompts: list[list[int]]) -> None:
        for id in self.ids:
            self.engine.cancel(id)
        endless = self.prulong.Sampling(max_new_tokens=4096, stop_tokens=[])
        self.ids = [self.engine.submit(prompt, endless) for prompt in prompts]
        started = set()
        while len(started) < len(prompts):
            started |= {id for id, _ in self.engine.step()[0]}

    def decode(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()

    def bytes(self) -> dict:
        stats = self.engine.stats()
        return {"kv_bytes": stats["allocated_kv_bytes"], "in_use_at_most": stats["peak_kv_bytes"],
                "full_kv_bytes": stats["peak_full_kv_bytes"]}


class TransformersSide:
    """transformers' model, greedily token by token, as its generate does it."""

    def __init__(self, a: argparse.Namespace, pattern):
        import torch
        import transformers

        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32,
                                                                       attn_implementation="sdpa").eval()
        self.new_cache = lambda: transformers.DynamicCache(config=self.model.config)
        self.applied = pattern is not None
        if self.applied:
            import prulong

            prulong.apply(self.model, pattern)
            self.new_cache = lambda: prulong.Cache(self.model)
        self.cache = None

    def run(self, tokens):
        with self.torch.no_grad():
            out = self.model(input_ids=tokens, use_cache=True, logits_to_keep=1, **{cache_argument(self.model): self.cache})
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def prefill(self, prompts: list[list[int]]) -> None:
        self.cache = self.new_cache()
        self.next = self.run(self.torch.tensor(prompts))

    def decode(self, steps: int) -> None:
        for _ in range(steps):
            self.next = self.run(self.next)

    def bytes(self) -> dict:
        if self.applied:
            held = self.cache.bytes()
            return {"kv_bytes": held["allocated"], "in_use_at_most": held["peak"], "full_kv_bytes": held["full"]}
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)
        return {"kv_bytes": held, "in_use_at_most": held, "full_kv_bytes": held}


def serve(a: argparse.Namespace) -> None:
    """One side's process: a line asks for work, a line of JSON answers."""
    import torch

    import prulong

    torch.set_num_threads(a.threads)
    config = json.loads((Path(a.model) / "config.json").read_text())
    layers, kv_heads, query_heads = (config[f"num_{name}"] for name in
                                     ("hidden_layers", "key_value_heads", "attention_heads"))
    generator = torch.Generator().manual_seed(1)
    pattern = None
    if "70 %" in a.serve:
        shape = prulong.ModelShape(config["model_type"], layers, kv_heads, query_heads,
                                   config.get("head_dim") or config["hidden_size"] // query_heads)
        scores = torch.rand(layers, kv_heads, generator=generator)
        pattern = prulong.Pattern.from_scores(shape, scores, SPARSITY, SINK, WINDOW)
    side = (EngineSide if a.serve.startswith("engine") else TransformersSide)(a, pattern)
    prompts = torch.randint(config["vocab_size"], (a.batch, a.tokens), generator=generator).tolist()
    work = {"prefill": lambda: side.prefill(prompts), "decode": lambda: side.decode(a.steps)}
    for line in sys.stdin:
        start = time.perf_counter()
        work[line.strip() or "decode"]()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, **side.bytes(), "peak_resident_gib": peak_resident_gib()}), flush=True)


def measure(part: str, a: argparse.Namespace) -> dict:
    batch = a.batch if part == "batch" else 1
    warm_up, prefills = (0, 1) if part == "batch" else (1, a.prefills)  # decoding warms up by one turn
    common = ["--model", a.model, "--tokens", a.tokens, "--batch", batch, "--steps", a.steps, "--threads", a.threads]
    sides = {name: Side([sys.executable, "benchmarks/bench_generate.py", *common, "--serve", name], a.threads)
             for name in SIDES[part]}
    answers = {name: {"prefill": [], "decode": []} for name in sides}
    try:
        for work, turns in (("prefill", warm_up + prefills), ("decode", 1 + a.rounds)):
            for turn in range(turns):
                for name, side in sides.items():
                    answers[name][work].append(side.step(work))
                    print(f"  {part}, {name}: {work} {answers[name][work][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    finally:
        for side in sides.values():
            side.stop()
    rows = {}
    for name, works in answers.items():
        prefill_s = [answer["seconds"] for answer in works["prefill"][warm_up:]]
        prefill = statistics.median(prefill_s)
        decode = statistics.median(answer["seconds"] for answer in works["decode"][1:])
        last = works["decode"][-1]
        rows[name] = {
            "prefill_s": prefill, "all_prefill_s": prefill_s,
            "prompt_tokens_per_s": batch * a.tokens / prefill,
            "decode_s": decode / a.steps, "all_decode_s": [answer["seconds"] / a.steps for answer in works["decode"][1:]],
            "decode_tokens_per_s": batch * a.steps / decode,
            "kv_bytes": last["kv_bytes"], "kv_bytes_in_use_at_most": last["in_use_at_most"],
            "kv_bytes_of_full": last["kv_bytes"] / last["full_kv_bytes"],
            "peak_resident_gib": last["peak_resident_gib"],
        }
        print(f"{part}, {name}: prompt {rows[name]['prompt_tokens_per_s']:.0f} tokens/s, decode "
              f"{rows[name]['decode_tokens_per_s']:.2f} tokens/s, keys and values {last['kv_bytes'] / 2**20:.0f} MiB "
              f"({100 * rows[name]['kv_bytes_of_full']:.1f} %), {last['peak_resident_gib']:.2f} GiB", flush=True)
    return rows


def ratios(results: dict) -> dict:
    """What is compared: how many times as fast the first is as the second."""
    found = {}

    def add(name: str, part: str, figure: str, ours: str, peer: str) -> None:
        if {ours, peer} <= results.get(part, {}).keys():
            found[name] = results[part][ours][figure] / results[part][peer][figure]

    masked = "engine, 70 % local"
    add("decode_engine_of_transformers", "one", "decode_tokens_per_s", "engine", "transformers")
    add("decode_70_local_of_transformers", "one", "decode_tokens_per_s", masked, "transformers")
    add("prefill_engine_of_transformers", "one", "prompt_tokens_per_s", "engine", "transformers")
    add("prefill_70_local_of_transformers", "one", "prompt_tokens_per_s", masked, "transformers")
    add("decode_apply_70_local_of_transformers", "one", "decode_tokens_per_s", "apply, 70 % local", "transformers")
    add("decode_batch_70_local_of_engine", "batch", "decode_tokens_per_s", masked, "engine")
    return found


def draw(results: dict, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = results["one"]
    names = list(rows)
    figures = [("prompt_tokens_per_s", "prompt tokens/s"), ("decode_tokens_per_s", "new tokens/s"),
               ("kv_bytes", "keys and values, MiB")]
    figure, axes = plt.subplots(1, len(figures), figsize=(10, 2.6), layout="constrained", sharey=True)
    for ax, (key, title) in zip(axes, figures):
        values = [rows[name][key] / (2**20 if key == "kv_bytes" else 1) for name in names]
        bars = ax.barh(names, values, color=["#999999" if name == "transformers" else "#1f5fa8" for name in names])
        ax.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values], padding=3, fontsize=8)
        ax.set_title(title, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlim(0, 1.18 * max(values))
    axes[0].invert_yaxis()
    figure.savefig(out, dpi=140)
    print(f"wrote {out.relative_to(ROOT) if out.is_relative_to(ROOT) else out}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *SIDES], metavar="PART", help="one, batch; default: both")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--tokens", type=bench_record.positive, default=8192)
    parser.add_argument("--batch", type=bench_record.positive, default=8)
    parser.add_argument("--prefills", type=bench_record.positive, default=3)
    parser.add_argument("--rounds", type=bench_record.positive, default=7)
    parser.add_argument("--steps", type=bench_record.positive, default=8)
    parser.add_argument("--threads", type=bench_record.positive, default=2)
    parser.add_argument("--out", type=bench_record.output, default=ROOT / "docs/bench/generate.json")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.serve:
        serve(a)
        return 0
    results = {}
    for part in a.parts or SIDES:
        results[part] = measure(part, a)
    bench_record.write(a.out, {"tokens": a.tokens, "batch": a.batch, "sparsity": SPARSITY, "sink": SINK, "window": WINDOW,
                               "ratios": ratios(results), **results})
    if "one" in results:
        draw(results, a.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
