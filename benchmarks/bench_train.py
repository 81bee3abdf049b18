#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Masks training steps of Llama-3.1-8B's shape on one GPU: prulong beside the published method, in the same run.

Random bf16 weights, one document. Ours with fresh gates (log_alpha 3, where 19 % of draws are fractional: the default
of 4 has 8 %; and 0, where most are) and with 70 % of the gates saturated local, as late in training. Prints a table and writes JSON after each case.

Usage: benchmarks/bench_train.py [--lengths 32768 65536] [--bin build/cuda/bin] [--out docs/bench/train_gpu.json]
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import bench_record

ROOT = bench_record.ROOT
GATES = {"log_alpha 3": ["--log-alpha", "3"], "log_alpha 0": ["--log-alpha", "0"], "70 % local": ["--local", "0.7"]}


def run(name: str, command: list, seconds: int) -> list[dict]:
    """The JSON lines that a program prints; what goes wrong becomes a result too."""
    print(f"{name}: {' '.join(map(str, command))}", file=sys.stderr, flush=True)
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", **os.environ}
    try:
        done = subprocess.run(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=seconds,
                              env=environment)
        lines, error = done.stdout, f"exit status {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired as expired:
        lines = expired.stdout or ""
        lines, error = lines.decode() if isinstance(lines, bytes) else lines, f"not done in {seconds} s"
    except OSError as failed:
        lines, error = "", str(failed)
    results = [json.loads(line) for line in bench_record.lines_of(lines) if line.startswith("{")]
    return results if results else [{"error": error}]


def row(name: str, result: dict, peer: dict | None) -> str:
    if "error" in result:
        return f"{name:34} {result['error']}"
    text = f"{name:34} {result['step_s']:8.3f} s {result['tokens_per_s']:9,.0f} tokens/s"
    if "peak_allocated_gib" in result:
        text += f" {result['peak_allocated_gib']:6.1f} GiB ({result['peak_reserved_gib']:.1f} reserved)"
    if peer:
        text += f"  {result['tokens_per_s'] / peer['tokens_per_s']:.2f}x"
        if "peak_allocated_gib" in result:
            text += f" at {result['peak_allocated_gib'] / peer['peak_allocated_gib']:.2f}x memory"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32768, 65536])
    parser.add_argument("--gates", nargs="+", choices=GATES, default=list(GATES))
    parser.add_argument("--attention", nargs="+", choices=("prulong", "cudnn", "flash"), default=["prulong"],
                        help="ours: our kernels, or without them PyTorch's")
    parser.add_argument("--keep-attention", type=int, default=24, help="layers of ours that keep their attention's results")
    parser.add_argument("--peers", nargs="*", default=["flash", "cudnn"], help="the published method's")
    parser.add_argument("--bin", type=Path, default=ROOT / "build" / "cuda" / "bin")
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--limit", type=int, default=150, help="seconds for one of our cases; the peers get four times that")
    parser.add_argument("--out", type=bench_record.output, default=ROOT / "docs" / "bench" / "train_gpu.json")
    a = parser.parse_args()
    program = bench_record.built(a.bin, "prulong_bench_step")
    common = ["--model", a.model, "--device", a.device, "--steps", a.steps, "--warm-up", a.warm_up]
    results = {"model": a.model, "layers_that_keep_attention": a.keep_attention, "ours": [], "published": []}
    rows, failed = [], False
    if a.peers:
        cases = [f"{backend}:{length}" for length in a.lengths for backend in a.peers]
        results["published"] = run("published", [sys.executable, "benchmarks/bench_published.py", *common, "--cases", *cases],
                                   4 * a.limit)
        bench_record.write(a.out, results)
    for length in a.lengths:
        peers = [p for p in results["published"] if p.get("tokens") == length]
        best = max((p for p in peers if "error" not in p), key=lambda p: p["tokens_per_s"], default=None)
        rows += [row(f"{length:,} published, {p['full_attention']}", p, None) for p in peers]
        for gates in a.gates:
            for attention in a.attention:
                command = [program, *common, "--tokens", length, "--attention", attention,
                           "--keep-attention", a.keep_attention, *GATES[gates]]
                (result,) = run(f"{length:,} {gates}", command, a.limit)
                results["ours"].append({"gates": gates, "full_attention": attention, "tokens": length, **result})
                failed |= "error" in result
                rows.append(row(f"{length:,} prulong, {gates}, {attention}", result, best))
                print(rows[-1], flush=True)
                bench_record.write(a.out, results)
    print("\n".join(["", *rows]), flush=True)
    return int(failed or any("error" in p for p in results["published"]))


if __name__ == "__main__":
    sys.exit(main())
