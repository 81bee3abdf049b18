#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Times the Hopper kernels alone on one GPU and profiles one causal case of each; bench_attention.py has the peers.

Builds bench_forward and bench_backward in build/cuda if they are not there, runs both, which check their results first, and
ncu where it is found. Writes docs/bench/kernels.json, the source of the figures in docs/design/{forward,backward}_kernel.md.

Usage: benchmarks/bench_kernels.py [--bin FOLDER] [--out FILE]
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bench_record

METRICS = ["sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active",
           "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active",
           "sm__inst_issued.avg.pct_of_peak_sustained_active"]


def forward_rows(text: str) -> list[dict]:
    """From lines as `D 128 causal 4096   section 0: 0.247 ms 556 TFLOP/s  section 1: ...` (one figure or several)."""
    rows = []
    for line in bench_record.lines_of(text):
        head = re.match(r"D +(\d+) (.+?)  ", line)
        figures = re.findall(r"(?:(\w+) (\d+): )?([\d.]+) ms (\d+) TFLOP/s", line)
        if not head or not figures:
            continue
        for setting, value, ms, tflops in figures:
            row = {"head_dim": int(head[1]), "case": head[2].strip(), "ms": float(ms), "tflops": int(tflops)}
            rows.append({**row, setting: int(value)} if setting else row)
    return rows


def backward_rows(text: str) -> list[dict]:
    """From lines as `causal  D 128   4096 tokens:  0.932 ms = prepare 0.057 + main 0.837 + finish 0.037  369 TFLOP/s ...`
    and `D 128, gates 1, additions in order: 4.351 ms instead of 2.237 ...`."""
    rows = []
    for line in bench_record.lines_of(text):
        if timed := re.match(r"(\w+) +D +(\d+) +(\d+) tokens: +([\d.]+) ms = prepare ([\d.]+) \+ main ([\d.]+) \+ "
                             r"finish ([\d.]+)(?: +(\d+) TFLOP/s \(main alone (\d+)\))?", line):
            row = {"case": timed[1], "head_dim": int(timed[2]), "tokens": int(timed[3]), "ms": float(timed[4]),
                   "prepare_ms": float(timed[5]), "main_ms": float(timed[6]), "finish_ms": float(timed[7])}
            rows.append({**row, "tflops": int(timed[8]), "main_tflops": int(timed[9])} if timed[8] else row)
        elif ordered := re.match(r"D (\d+), gates ([\d.]+), additions in order: ([\d.]+) ms instead of ([\d.]+)", line):
            rows.append({"case": "deterministic", "head_dim": int(ordered[1]), "gates": float(ordered[2]),
                         "ms": float(ordered[3]), "ms_in_any_order": float(ordered[4])})
    return rows


def profile_rows(text: str) -> dict[str, str]:
    """ncu's metrics, as printed: name to value with unit."""
    rows = {}
    for line in bench_record.lines_of(text):
        if found := re.fullmatch(r"    (\S.*?) {2,}(?:(\S+) +)?(-?[\d,.]+)\s*", line):
            rows[found[1]] = f"{found[3]} {found[2] or ''}".strip()
    return rows


def profile(program: Path) -> dict[str, str]:
    command = ["ncu", "--clock-control", "none", "-k", "kernel", "--launch-skip", "1", "--launch-count", "1",
               "--section", "SpeedOfLight", "--section", "MemoryWorkloadAnalysis", "--metrics", ",".join(METRICS)]
    return profile_rows(bench_record.run(*command, program, "once", stdout=subprocess.PIPE, text=True).stdout)


def measure(program: Path, read) -> dict:
    print(f"{program.name} ...", flush=True)
    printed = bench_record.run(program, stdout=subprocess.PIPE, text=True).stdout
    rows = read(printed)
    if not rows:
        sys.exit(f"bench_kernels.py: {program}: lines with times expected, found none in:\n{printed}")
    for row in rows:
        print("  " + " ".join(f"{key}={value}" for key, value in row.items()))
    return {"rows": rows, **({"profile_causal_16384": profile(program)} if shutil.which("ncu") else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, help="folder of the two programs (default: build/cuda/bin, built first)")
    parser.add_argument("--out", type=bench_record.output, default=bench_record.ROOT / "docs/bench/kernels.json")
    args = parser.parse_args()
    if args.bin is None:
        if not (bench_record.ROOT / "build/cuda/CMakeCache.txt").is_file():
            sys.exit("bench_kernels.py: build/cuda: no configured build; run scripts/gpu_slice.sh build first")
        bench_record.run("cmake", "--build", "build/cuda", "--target", "bench_forward", "bench_backward",
                         stdout=subprocess.DEVNULL)
    folder = args.bin or bench_record.ROOT / "build/cuda/bin"
    bench_record.write(args.out, {
        "forward": measure(bench_record.built(folder, "bench_forward"), forward_rows),
        "backward": measure(bench_record.built(folder, "bench_backward"), backward_rows)})


if __name__ == "__main__":
    main()
