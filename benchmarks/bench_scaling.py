#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a second process is worth: masks training steps of prulong-train by one rank and by two, one thread each, in turns.

data      Two sequences a step: one rank takes both, two ranks take one each.
context   One sequence of 4,096 tokens a step: one rank has it all, two ranks a half each (parallel.context=2).

Efficiency is one rank's time over twice that of two. "ceiling" is what the machine itself leaves of it: two runs of one rank at the
same time, beside one alone (shared memory and caches, whatever else runs). Steps are timed by the leader, medians after the first.

Usage: benchmarks/bench_scaling.py [data] [context]     after scripts/fetch_smollm2.py; on a machine that does nothing else
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import bench_record

ROOT = bench_record.ROOT
sys.path.insert(0, str(ROOT / "tests" / "python"))
TOKENS = {"data": {"tiny": 4096, "smollm2": 1024}, "context": {"tiny": 4096, "smollm2": 4096}}
VOCAB = 400


def prepare(folder: Path, smollm2: Path) -> dict[str, Path]:
    """A tiny model, token ids that both models know, and the models by name."""
    import tiny_world
    tiny_world.tiny_model(max_position_embeddings=8192).save_pretrained(folder / "tiny")
    np.save(folder / "tokens.npy", np.random.default_rng(1).integers(0, VOCAB, (64, 4096), dtype=np.int32))
    return {"tiny": folder / "tiny", "smollm2": smollm2}


def start(ranks: int, part: str, model: Path, tokens: int, run: Path, a: argparse.Namespace) -> subprocess.Popen:
    config = run.with_suffix(".yaml")
    config.write_text(f"""
model: {{path: {model}, dtype: float32, device: cpu}}
attention: {{sink: 16, window: 128}}
gates: {{init_mean: {a.log_alpha}}}
train: {{steps: {a.warm_up + a.steps}, seq_len: {tokens}, sequences_per_step: {2 if part == "data" else 1}}}
data: {{train: [{{type: npy, path: {run.parent}/tokens.npy}}]}}
checkpoint: {{every: 0}}
run: {{dir: {run}}}
parallel: {{context: {ranks if part == "context" else 1}}}
""")
    program = [bench_record.built(a.bin, "prulong-train"), config]
    if ranks > 1:
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node",
                   str(ranks), *program]
    return subprocess.Popen(list(map(str, program)), cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
                            stderr=subprocess.PIPE, text=True)


def times(process: subprocess.Popen, run: Path, a: argparse.Namespace) -> list[float]:
    _, text = process.communicate()
    if process.returncode != 0:
        sys.exit(f"bench_scaling.py: {text}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().rstrip("\n").split("\n")]
    return [line["step_s"] for line in lines if line["step"] > a.warm_up]


def case(part: str, name: str, model: Path, tokens: int, folder: Path, a: argparse.Namespace) -> dict:
    sides = {"one rank": [], "two ranks": [], "two runs": []}
    for turn in range(a.rounds):
        for side, found in sides.items():
            runs = [folder / f"{part}-{name}-{turn}-{len(found)}-{side.replace(' ', '-')}-{i}"
                    for i in range(2 if side == "two runs" else 1)]
            processes = [start(2 if side == "two ranks" else 1, part, model, tokens, run, a) for run in runs]
            for process, run in zip(processes, runs):
                found += times(process, run, a)
    median = {side: statistics.median(found) for side, found in sides.items()}
    row = {"part": part, "model": name, "tokens": tokens, "step_s": median, "all_step_s": sides,
           "efficiency": median["one rank"] / (2 * median["two ranks"]), "ceiling": median["one rank"] / median["two runs"]}
    print(f"{part}, {name}, {tokens:,} tokens: {median['one rank']:.3f} s by one rank, {median['two ranks']:.3f} s by two: "
          f"efficiency {row['efficiency']:.2f} (ceiling {row['ceiling']:.2f})", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="data|context", help="default: both")
    parser.add_argument("--models", nargs="+", choices=["tiny", "smollm2"], default=["tiny", "smollm2"])
    parser.add_argument("--smollm2", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct", metavar="FOLDER")
    parser.add_argument("--bin", type=Path, default=ROOT / "build" / "cpu" / "bin", metavar="FOLDER")
    parser.add_argument("--log-alpha", type=float, default=4, help="every gate's at the start")
    parser.add_argument("--warm-up", type=bench_record.positive, default=1, metavar="STEPS")
    parser.add_argument("--steps", type=bench_record.positive, default=3, help="a side measures in a turn")
    parser.add_argument("--rounds", type=bench_record.positive, default=2, help="turns")
    parser.add_argument("--out", type=bench_record.output, default=ROOT / "docs" / "bench" / "scaling.json", metavar="JSON")
    a = parser.parse_args()
    for part in a.parts:
        if part not in TOKENS:
            parser.error(f"expected data or context, found {part!r}")
    parts = a.parts or list(TOKENS)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        models = prepare(folder, a.smollm2)
        rows = [case(part, name, models[name], TOKENS[part][name], folder, a) for part in parts for name in a.models]
    ratios = {f"{row['part']}_{row['model']}": round(row["efficiency"], 3) for row in rows}
    bench_record.write(a.out, {"ratios": ratios, "rows": rows})


if __name__ == "__main__":
    main()
