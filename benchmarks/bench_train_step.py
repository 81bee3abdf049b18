#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Masks training steps and masked forward passes of SmolLM2-135M on a CPU, beside PyTorch and transformers.

step     One training step, fresh gates (log_alpha 3) and 70 % of the gates saturated local, against the published way
         (benchmarks/bench_published.py: both branches of every head, full logits, by SDPA), in turns, each in its own process.
forward  A forward pass under a 70 % mask (prulong.apply) against the same transformers model with SDPA, in turns.
growth   Our step at rising lengths: time and memory.

Both sides keep all activations, have the same threads and dtype. On a CPU that multiplies bfloat16 in a slow loop, the
published way gets its matrix products and attention in float32, as ours does them ("wide"; --plain leaves them to PyTorch).
Processor time is that of all threads: what else runs on the machine changes it less than seconds. Peak memory is the peak
resident set of a side's process. Every part adds its cases to one JSON and draws the picture again.

Usage: benchmarks/bench_train_step.py [step] [forward] [growth] [--lengths ...] [--dtype ...]     after scripts/fetch_smollm2.py
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import bench_record

ROOT = bench_record.ROOT
GATES = {"fresh gates": ["--log-alpha", "3"], "70 % local": ["--local", "0.7"], "every head local": ["--local", "1"]}
PUBLISHED = "published"
LENGTHS = {"step": [1024, 4096], "forward": [512, 1024, 2048, 4096], "growth": [512, 1024, 2048, 4096, 8192]}
SPARSITY = 0.7


def thread_settings(threads: int) -> dict:
    """Threads that wait sleep: they neither take a core from the other side nor stall when something else has one."""
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}


class Side:
    """A process that makes a step for every line it is sent and answers with a line of JSON."""

    def __init__(self, command: list, threads: int):
        environment = {**os.environ, **thread_settings(threads)}
        self.process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def processor_s(self) -> float:
        """What all its threads have used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def step(self, what: str = "") -> dict:
        before = self.processor_s()
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args[:2]} stopped with exit status {self.process.wait()}")
        return {**json.loads(answer), "processor_s": self.processor_s() - before}

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def command(name: str, tokens: int, a: argparse.Namespace) -> list:
    common = ["--model", a.model, "--device", "cpu", "--dtype", a.dtype, "--sink", a.sink, "--window", a.window,
              "--on-request"]
    if name == PUBLISHED:
        wide = [] if a.plain or a.dtype == "float32" else ["--wide"]
        return [sys.executable, "benchmarks/bench_published.py", *common, "--cases", f"flash:{tokens}", "--keep", *wide]
    return [a.bin / "prulong_bench_step", *common, "--tokens", tokens, "--keep-all", *GATES[name]]


def alternate(names: list[str], tokens: int, a: argparse.Namespace) -> list[dict]:
    """Medians of each side's steps, taken in turns. An interrupt ends the case with the turns that it has."""
    sides = {name: Side(command(name, tokens, a), a.threads) for name in names}
    answers = {name: [] for name in names}
    try:
        for turn in range(a.warm_up + a.rounds):
            for name, side in sides.items():
                answer = side.step()
                print(f"  {tokens:,} {name}: {answer['step_s']:.2f} s, processor {answer['processor_s']:.2f} s",
                      file=sys.stderr, flush=True)
                if turn >= a.warm_up:
                    answers[name].append(answer)
    except KeyboardInterrupt:
        if not all(answers.values()):
            raise
    finally:
        for side in sides.values():
            side.stop()
    rows = []
    for name in names:
        seconds = [answer["step_s"] for answer in answers[name]]
        processor = [answer["processor_s"] for answer in answers[name]]
        row = {"side": name, "step_s": statistics.median(seconds), "all_step_s": seconds,
               "tokens_per_s": tokens / statistics.median(seconds), "processor_s": statistics.median(processor),
               "peak_resident_gib": max(answer["peak_resident_gib"] for answer in answers[name])}
        if "fractional_share" in answers[name][0]:
            row |= {key: statistics.mean(x[key] for x in answers[name]) for key in ("fractional_share", "local_share")}
        rows.append(row)
    return rows


def step(tokens: int, a: argparse.Namespace) -> list[dict]:
    rows = alternate([PUBLISHED, "fresh gates", "70 % local"], tokens, a)
    for row in rows[1:]:
        row["tokens_per_s_ratio"] = row["tokens_per_s"] / rows[0]["tokens_per_s"]
        row["fastest_ratio"] = min(rows[0]["all_step_s"]) / min(row["all_step_s"])
        row["processor_ratio"] = rows[0]["processor_s"] / row["processor_s"]
        row["peak_resident_ratio"] = row["peak_resident_gib"] / rows[0]["peak_resident_gib"]
        print(f"{tokens:,} tokens, {row['side']}: {row['step_s']:.2f} s, {row['tokens_per_s_ratio']:.2f} x tokens/s "
              f"(fastest {row['fastest_ratio']:.2f}, processor {row['processor_ratio']:.2f}), "
              f"{row['peak_resident_gib']:.2f} GiB, {row['peak_resident_ratio']:.2f} x memory", flush=True)
    return rows


class Forward:
    """The same weights twice, with transformers' SDPA and with a mask; both attention functions timed."""

    def __init__(self, a: argparse.Namespace):
        os.environ.update(thread_settings(a.threads))
        sys.path.insert(0, str(ROOT / "python_bindings"))
        import torch
        import transformers
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        import bench_published
        import prulong
        torch.set_num_threads(a.threads)
        self.torch, self.attention_s = torch, 0.0
        self.models = {}
        for name in ("SDPA", "70 % mask"):
            model = transformers.LlamaForCausalLM.from_pretrained(a.model, dtype=getattr(torch, a.dtype),
                                                                  attn_implementation="sdpa").eval()
            if a.dtype == "bfloat16" and not a.plain:
                bench_published.widen(model)
            self.models[name] = model
        shape = prulong.ModelShape.of(model.config)
        count = shape.layers * shape.kv_heads
        order = [i * 97 % count for i in range(count)]  # spread over the layers
        scores = [[float(order[layer * shape.kv_heads + h]) for h in range(shape.kv_heads)]
                  for layer in range(shape.layers)]
        prulong.apply(model, prulong.Pattern.from_scores(shape, scores, SPARSITY, a.sink, a.window))
        for kind in ("sdpa", "prulong"):
            ALL_ATTENTION_FUNCTIONS.register(kind, self.timed(ALL_ATTENTION_FUNCTIONS[kind]))

    def timed(self, function):
        def attention(*arguments, **options):
            start = time.perf_counter()
            result = function(*arguments, **options)
            self.attention_s += time.perf_counter() - start
            return result
        return attention

    def measure(self, tokens: int, a: argparse.Namespace) -> list[dict]:
        ids = self.torch.randint(self.models["SDPA"].config.vocab_size, (1, tokens))
        times = {name: ([], []) for name in self.models}
        for turn in range(a.warm_up + a.rounds):
            for name, model in self.models.items():
                self.attention_s, start = 0.0, time.perf_counter()
                with self.torch.inference_mode():
                    model(ids, use_cache=False, logits_to_keep=1)
                if turn >= a.warm_up:
                    times[name][0].append(time.perf_counter() - start)
                    times[name][1].append(self.attention_s)
        rows = [{"side": name, "forward_s": statistics.median(whole), "attention_s": statistics.median(attention),
                 "all_forward_s": whole, "all_attention_s": attention} for name, (whole, attention) in times.items()]
        for key in ("forward_s", "attention_s"):
            rows[1][f"{key[:-2]}_ratio"] = rows[1][key] / rows[0][key]
        print(f"{tokens:,} tokens, forward under a 70 % mask: {rows[1]['forward_s']:.2f} s, {rows[1]['forward_ratio']:.2f} x "
              f"SDPA's, attention {rows[1]['attention_ratio']:.2f} x", flush=True)
        return rows


def draw(runs: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure
    lines: dict[str, list] = {}
    for run in runs:
        for row in run["rows"]:
            if run["dtype"] == "bfloat16" and not run["plain"] and (
                    run["part"] == "growth" or (run["part"] == "step" and row["side"] in (PUBLISHED, "fresh gates"))):
                lines.setdefault(row["side"], []).append((run["tokens"], row["step_s"], row["peak_resident_gib"]))
    if not lines:
        return
    figure = Figure(figsize=(10, 4))
    axes = figure.subplots(1, 2)
    for name, points in lines.items():
        points.sort()
        for axis, at in zip(axes, (1, 2)):
            axis.loglog([p[0] for p in points], [p[at] for p in points], marker="o", label=name)
    local = lines.get("every head local")
    if local:  # in proportion to the first point
        axes[0].loglog([local[0][0], local[-1][0]], [local[0][1], local[0][1] * local[-1][0] / local[0][0]], "k:",
                       label="linear")
    for axis, what in zip(axes, ("seconds of one training step", "peak resident memory, GiB")):
        ticks = LENGTHS["growth"]
        axis.set(xlabel="tokens", title=what, xticks=ticks, xticklabels=[f"{t:,}" for t in ticks])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    figure.suptitle("SmolLM2-135M on a CPU: one masks training step, bfloat16")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def record(out: Path, run: dict) -> None:
    """Adds a run to the JSON, in place of an earlier one of the same case, and draws the picture."""
    runs = json.loads(out.read_text())["runs"] if out.exists() else []
    case = ("part", "tokens", "dtype", "plain")
    runs = [r for r in runs if any(r[key] != run[key] for key in case)] + [{**bench_record.provenance(), **run}]
    runs.sort(key=lambda r: [str(r[key]).rjust(8) for key in case])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    draw(runs, out.with_suffix(".png"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="step, forward, growth; all of them by default")
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens; by default each part's own")
    parser.add_argument("--gates", nargs="+", choices=GATES, default=["70 % local", "every head local"], help="growth")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--plain", action="store_true", help="PyTorch's own bfloat16 products, however slow")
    parser.add_argument("--sink", type=int, default=16, help="tokens (configs/demo.yaml)")
    parser.add_argument("--window", type=int, default=128, help="tokens (configs/demo.yaml)")
    parser.add_argument("--threads", type=bench_record.positive, default=2)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--rounds", type=bench_record.positive, default=5)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--bin", type=Path, default=ROOT / "build" / "cpu" / "bin")
    parser.add_argument("--out", type=bench_record.output, default=ROOT / "docs" / "bench" / "train_step.json")
    a = parser.parse_args()
    if set(a.parts) - set(LENGTHS):
        parser.error(f"parts are {', '.join(LENGTHS)}, found {' '.join(a.parts)}")
    if not (Path(a.model) / "config.json").is_file():
        sys.exit(f"bench_train_step.py: {a.model}: no such model folder; run scripts/fetch_smollm2.py or give --model")
    flags = Path("/proc/cpuinfo").read_text().split()
    facts = {"bfloat16_instructions": "avx512_bf16" in flags or "amx_bf16" in flags, "threads": a.threads,
             "sink": a.sink, "window": a.window, "dtype": a.dtype, "plain": a.plain}
    for part in a.parts or LENGTHS:
        measure = Forward(a).measure if part == "forward" else step if part == "step" else functools.partial(alternate, a.gates)
        for tokens in a.lengths or LENGTHS[part]:
            record(a.out, {"part": part, "tokens": tokens, **facts, "rows": measure(tokens, a),
                           "load_average_after": os.getloadavg()[0]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
