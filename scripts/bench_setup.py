#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How long building takes: all of it without a compiler cache, one changed file, and a set-up that finds everything done.

Removes build/cpu first; the Python environment stays. Writes docs/bench/setup.json.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import bench_record

ROOT = bench_record.ROOT
FOLDER = ROOT / "build" / "cpu"
CHANGED = ROOT / "trainer" / "trainer.cpp"


def seconds(*command) -> float:
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env=dict(os.environ, CCACHE_DISABLE="1"))
    return round(time.perf_counter() - start, 1)


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    figures = {"set_up_with_clean_build_s": seconds("scripts/setup.sh")}
    CHANGED.touch()
    figures["one_changed_file_s"] = seconds("cmake", "--build", FOLDER)
    figures["changed_file"] = CHANGED.relative_to(ROOT).as_posix()
    figures["second_set_up_s"] = seconds("scripts/setup.sh")
    bench_record.write(ROOT / "docs" / "bench" / "setup.json", figures)


if __name__ == "__main__":
    main()
