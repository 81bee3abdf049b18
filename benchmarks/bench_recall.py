#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Masks for SmolLM2 trained at 4,096 tokens, at several sparsities, and its recall with them at several lengths.

As the demo (configs/demo.yaml), at lengths that a GPU allows. Each mask is compared with the model as it is, with random masks
of the same sparsity and with all heads local. The runs train side by side; finished ones are kept.

Usage: benchmarks/bench_recall.py [--bin build/cuda/bin] [--sparsities 0.5 0.7 0.8] [--lengths 1024:16 8192:2]   LENGTH:SEQUENCES
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import bench_record

ROOT = bench_record.ROOT
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
RANDOM_MASKS = 5


def train_all(a, work: Path) -> dict[float, dict]:
    """Trains one run per sparsity, all at once. Returns what each run's log says."""
    running, start = {}, time.monotonic()
    for sparsity in a.sparsities:
        command = [a.bin / "prulong-train", "configs/demo.yaml", f"sparsity.end={sparsity}", f"train.seq_len={a.train_length}",
                   f"data.train.0.path={work}/kit", f"train.steps={a.steps}", f"train.sequences_per_step={a.sequences_per_step}",
                   f"checkpoint.every={a.steps}", f"run.dir={work}/run-{sparsity}"]
        with (work / f"train-{sparsity}.log").open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4")}
            running[sparsity] = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=log, env=environment)
    records = {}
    for sparsity, process in running.items():
        if process.wait() != 0:
            last = bench_record.lines_of((work / f"train-{sparsity}.log").read_text())[-1:]
            print(f"training to {sparsity}: FAILED: {' '.join(last)}", flush=True)
            continue
        lines = [json.loads(line) for line in bench_record.lines_of((work / f"run-{sparsity}" / "metrics.jsonl").read_text())]
        steps = [line for line in lines if "step_s" in line]
        seconds = sorted(line["step_s"] for line in steps)
        records[sparsity] = {"steps": len(steps), "median_step_s": seconds[len(seconds) // 2],
                             "first_loss_nats": steps[0]["loss_nats"], "final_loss_nats": steps[-1]["loss_nats"],
                             "final_sparsity": steps[-1]["sparsity"]}
        print(f"training to {sparsity}: {json.dumps(records[sparsity])}", flush=True)
    print(f"all runs trained after {time.monotonic() - start:.0f} s", flush=True)
    return records


def measure(a, work: Path, length: int, sequences: int, trained: list[float]) -> list[dict]:
    methods = ["{type: full}", "{type: local}"]
    for s in trained:
        methods += [f"{{type: pattern, path: {work}/run-{s}, sparsity: {s}, label: learned {s}}}",
                    f"{{type: random, count: {RANDOM_MASKS}, sparsity: {s}}}"]
    out = work / f"recall-{length}.json"
    command = [a.bin / "prulong-eval", "configs/demo_eval.yaml", f"data.0.path={work}/kit", f"seq_len={length}",
               f"sequences={sequences}", f"methods=[{', '.join(methods)}]", f"out={out}"]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    rows = json.loads(out.read_text())["methods"]
    for row in rows:
        print(f"{length:6,} tokens  {row.get('label', row.get('type', '')):22} answer tokens right "
              f"{100 * row['answer_accuracy']:5.1f} %", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / "build" / "cuda" / "bin")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.7, 0.8])
    parser.add_argument("--lengths", type=bench_record.length_and_sequences, nargs="+", metavar="LENGTH:SEQUENCES",
                        default=[(1024, 16), (2048, 12), (4096, 8), (8192, 4)])
    parser.add_argument("--train-length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sequences-per-step", type=int, default=2)
    parser.add_argument("--out", type=bench_record.output, default=ROOT / "docs" / "bench" / "recall_gpu.json")
    a = parser.parse_args()
    for program in ("prulong-train", "prulong-eval"):
        bench_record.built(a.bin, program)
    work = a.out.resolve().parent / "recall"
    work.mkdir(parents=True, exist_ok=True)
    bench_record.run(sys.executable, "scripts/prepare_data.py", "recall", "--tokenizer", MODEL, "--out", work / "kit",
                     "--overwrite")
    records = train_all(a, work)
    results = {"train_length": a.train_length, "sequences_per_step": a.sequences_per_step, "training": records, "lengths": {}}
    failed = len(records) < len(a.sparsities)
    for length, sequences in a.lengths:
        try:
            methods = measure(a, work, length, sequences, list(records))
        except subprocess.CalledProcessError:  # it said why
            failed = True
            continue
        results["lengths"][length] = {"sequences": sequences, "methods": methods}
        bench_record.write(a.out, results)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
