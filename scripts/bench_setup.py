#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How long building takes: all of it without a compiler cache, one changed file, and a set-up that finds everything done.

Run after scripts/setup.sh, in the environment of that run. Writes docs/bench/setup.json.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import bench_record

ROOT = bench_record.ROOT
FOLDER = ROOT / "build" / "bench"
CHANGED = ROOT / "trainer" / "trainer.cpp"


def seconds(*command) -> float:
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env=dict(os.environ, CCACHE_DISABLE="1"))
    return round(time.perf_counter() - start, 1)


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    toolkit = Path(shutil.which("nvcc")).resolve().parent.parent
    figures = {
        "configure_s": seconds("cmake", "--preset", "cpu", "-B", FOLDER, f"-DCUDAToolkit_ROOT={toolkit}"),
        "clean_build_s": seconds("cmake", "--build", FOLDER),
    }
    CHANGED.touch()
    figures["one_changed_file_s"] = seconds("cmake", "--build", FOLDER)
    figures["changed_file"] = CHANGED.relative_to(ROOT).as_posix()
    figures["second_setup_s"] = seconds("scripts/setup.sh")
    shutil.rmtree(FOLDER)
    bench_record.write(ROOT / "docs" / "bench" / "setup.json", figures)


if __name__ == "__main__":
    main()
