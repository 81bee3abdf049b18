# SPDX-License-Identifier: MIT
"""benchmarks/bench_kernels.py reads what the kernels' programs print; stand-ins print it here, for no GPU is needed to read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORWARD = """D 128
  ok   global     relative error 1.95e-03, largest 8.32e-03 at row 260 head 3, lse 1.13e-06, not finite 0, of 4126 rows
all correct
D 128 causal 4096               section 0: 0.247 ms 556 TFLOP/s  section 1: 0.281 ms 490 TFLOP/s
D 128 8192 of 131072, global    27.546 ms 619 TFLOP/s
D  64 local 4096                0.109 ms 305 TFLOP/s
"""
BACKWARD = """all correct
causal                       D 128   4096 tokens:    0.932 ms = prepare 0.057 + main 0.837 + finish 0.037   369 TFLOP/s \
(main alone 411)
local                        D 128  32768 tokens:    5.052 ms = prepare 0.383 + main 4.394 + finish 0.274
local / causal: 0.127
D 64, gates 0.5, additions in order: 4.003 ms instead of 1.451  same bits
"""
PROFILE = """==PROF== Profiling "kernel": 0%....50%....100% - 33 passes
    Section: GPU Speed Of Light Throughput
    ----------------------- ----------- ------------
    Metric Name             Metric Unit Metric Value
    ----------------------- ----------- ------------
    SM Frequency                    Ghz         1.70
    Elapsed Cycles                cycle    5,433,880
    OPT   Est. Speedup: 43.41%
"""


@pytest.fixture
def programs(tmp_path):
    def program(name, printed):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}END\n")
        path.chmod(0o755)
    program("bench_forward", FORWARD)
    program("bench_backward", BACKWARD)
    return program


def run(tmp_path, path=os.environ["PATH"]):
    return subprocess.run([sys.executable, ROOT / "benchmarks/bench_kernels.py", "--bin", tmp_path / "bin",
                           "--out", tmp_path / "kernels.json"], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PATH": path})


def test_every_figure_is_recorded(tmp_path, programs):
    programs("ncu", PROFILE)
    result = run(tmp_path, f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "kernels.json").read_text())
    assert figures["command"].startswith("benchmarks/bench_kernels.py") and figures["commit"]
    assert figures["forward"]["rows"] == [
        {"head_dim": 128, "case": "causal 4096", "ms": 0.247, "tflops": 556, "section": 0},
        {"head_dim": 128, "case": "causal 4096", "ms": 0.281, "tflops": 490, "section": 1},
        {"head_dim": 128, "case": "8192 of 131072, global", "ms": 27.546, "tflops": 619},
        {"head_dim": 64, "case": "local 4096", "ms": 0.109, "tflops": 305}]
    assert figures["backward"]["rows"] == [
        {"case": "causal", "head_dim": 128, "tokens": 4096, "ms": 0.932, "prepare_ms": 0.057, "main_ms": 0.837,
         "finish_ms": 0.037, "tflops": 369, "main_tflops": 411},
        {"case": "local", "head_dim": 128, "tokens": 32768, "ms": 5.052, "prepare_ms": 0.383, "main_ms": 4.394,
         "finish_ms": 0.274},
        {"case": "deterministic", "head_dim": 64, "gates": 0.5, "ms": 4.003, "ms_in_any_order": 1.451}]
    for direction in ("forward", "backward"):
        assert figures[direction]["profile_causal_16384"] == {"SM Frequency": "1.70 Ghz", "Elapsed Cycles": "5,433,880 cycle"}


def test_a_program_that_times_nothing_is_refused(tmp_path, programs):
    programs("bench_backward", "all correct\n")
    result = run(tmp_path)
    assert result.returncode == 1 and "bench_backward: lines with times expected" in result.stderr
    assert not (tmp_path / "kernels.json").exists()


def test_a_missing_program_is_named(tmp_path, programs):
    (tmp_path / "bin" / "bench_forward").unlink()
    result = run(tmp_path)
    assert result.returncode == 1 and "bench_forward: no such program" in result.stderr
