#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How long building and testing take: all of it without a compiler cache, one changed file, a set-up that finds everything
done, and scripts/test.sh after that.

Removes build/cpu first, so --clean must be said; the Python environment stays. Writes docs/bench/setup.json.

Usage: benchmarks/bench_setup.py --clean
"""

import argparse
import os
import shutil
import subprocess
import time

import bench_record

ROOT = bench_record.ROOT
FOLDER = ROOT / "build" / "cpu"
CHANGED = ROOT / "model" / "llama.cpp"  # every program is linked anew


def seconds(*command) -> float:
    start = time.perf_counter()
    bench_record.run(*command, stdout=subprocess.DEVNULL, env=dict(os.environ, CCACHE_DISABLE="1"))
    return round(time.perf_counter() - start, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", action="store_true", required=True, help="yes, remove build/cpu")
    parser.parse_args()
    if (ROOT / "build").is_symlink():  # another checkout's
        parser.error(f"{ROOT / 'build'} is a link; this removes a build folder of its own checkout only")
    shutil.rmtree(FOLDER, ignore_errors=True)
    figures = {"set_up_with_clean_build_s": seconds("scripts/setup.sh")}
    CHANGED.touch()
    figures["one_changed_file_s"] = seconds("cmake", "--build", FOLDER)
    figures["changed_file"] = CHANGED.relative_to(ROOT).as_posix()
    figures["second_set_up_s"] = seconds("scripts/setup.sh")
    figures["tests_s"] = seconds("scripts/test.sh")
    bench_record.write(ROOT / "docs" / "bench" / "setup.json", figures)


if __name__ == "__main__":
    main()
