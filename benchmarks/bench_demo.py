#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The demo's claims in full: three training seeds, accuracy against sparsity, at three lengths.

Trains configs/demo.yaml with each seed (runs that are there already are kept), measures each mask on unseen prose, names and
codes, and writes docs/bench/demo.json and docs/bench/demo.png. About an hour on two cores. Needs what scripts/demo.sh makes:
programs, model and recall kit.

Usage: benchmarks/bench_demo.py [--seeds 1 2 3] [--lengths 1024:6 2048:2 4096:1]      LENGTH:SEQUENCES
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)

import bench_record  # noqa: E402

ROOT = bench_record.ROOT
BIN = ROOT / "build" / "cpu" / "bin"
WORK = ROOT / "demo" / "bench"
TRAINED = 0.7
SPARSITIES = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
COLOURS = {1024: "#1f5fa8", 2048: "#2f8f5b", 4096: "#a05fb4"}


def train(seed: int) -> Path:
    folder = WORK / f"run-{seed}"
    bench_record.run(BIN / "prulong-train", "configs/demo.yaml", f"train.seed={seed}", f"data.train.0.seed={seed}",
                     f"run.dir={folder}")
    return folder


def measure(name: str, length: int, sequences: int, methods: list[str]) -> list[dict]:
    out = WORK / f"{name}-{length}.json"
    bench_record.run(BIN / "prulong-eval", "configs/demo_eval.yaml", f"seq_len={length}", f"sequences={sequences}",
                     f"methods=[{', '.join(methods)}]", f"out={out}")
    return json.loads(out.read_text())["methods"]


def training_record(folder: Path) -> dict:
    lines = [json.loads(line) for line in bench_record.lines_of((folder / "metrics.jsonl").read_text())]
    return {"steps": len(lines), "seconds_per_step": sorted(line["step_s"] for line in lines)[len(lines) // 2],
            "final_sparsity": lines[-1]["sparsity"], "final_loss_nats": lines[-1]["loss_nats"]}


def draw(results: dict, out: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for length, at_length in results["lengths"].items():
        colour = COLOURS.get(int(length), "#333333")
        full = at_length["full"]["answer_accuracy"]
        for i, rows in enumerate(at_length["learned"].values()):
            xs, ys = [0.0], [100 * full]
            for row in rows:
                xs.append(row["local_fraction"])
                ys.append(100 * row["answer_accuracy"])
            axes.plot(xs, ys, color=colour, linewidth=1.4, alpha=0.8, marker="o", markersize=3,
                      label=f"learned, {int(length):,} tokens" if i == 0 else None)
        random = at_length["random"]
        axes.plot([random["local_fraction"]], [100 * random["answer_accuracy"]], color=colour, marker="D",
                  linestyle="none", label=f"random masks, {int(length):,}")
        axes.plot([1.0], [100 * at_length["local"]["answer_accuracy"]], color=colour, marker="v", linestyle="none")
    axes.set_xlabel("sparsity: share of KV heads that are local")
    axes.set_ylabel("answer tokens right, %")
    axes.set_ylim(0, 100)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.set_title("SmolLM2-135M-Instruct, three training seeds; triangles: all heads local", fontsize=10)
    figure.savefig(out, dpi=140)
    print(f"wrote {out.relative_to(ROOT)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--lengths", type=bench_record.length_and_sequences, nargs="+", metavar="LENGTH:SEQUENCES",
                        default=[(1024, 6), (2048, 2), (4096, 1)])
    arguments = parser.parse_args()
    for program in ("prulong-train", "prulong-eval"):
        bench_record.built(BIN, program)
    WORK.mkdir(parents=True, exist_ok=True)
    runs = {seed: train(seed) for seed in arguments.seeds}
    results = {"trained_sparsity": TRAINED, "training": {seed: training_record(run) for seed, run in runs.items()},
               "lengths": {}}
    for length, sequences in arguments.lengths:
        full, random, local = measure("baselines", length, sequences,
                                      ["{type: full}", f"{{type: random, count: 5, sparsity: {TRAINED}}}", "{type: local}"])
        learned = {seed: measure(f"learned-{seed}", length, sequences,
                                 [f"{{type: pattern, path: {run}, sparsity: {s}}}" for s in SPARSITIES])
                   for seed, run in runs.items()}
        results["lengths"][length] = {"sequences": sequences, "full": full, "random": random, "local": local,
                                      "learned": learned}
        bench_record.write(ROOT / "docs" / "bench" / "demo.json", results)  # what there is, after each length
    draw(json.loads(json.dumps(results)), ROOT / "docs" / "bench" / "demo.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
