#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How long building and testing take.

--clean: all of it without a compiler cache, one changed file, a set-up that finds everything done; removes build/cpu first,
the Python environment stays. Writes docs/bench/setup.json. --tests: scripts/test.sh in a checkout that is set up. Writes
docs/bench/tests.json.

Usage: benchmarks/bench_setup.py --clean | --tests
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


def time_tests() -> None:
    bench_record.write(ROOT / "docs" / "bench" / "tests.json", {"tests_s": seconds("scripts/test.sh")})


def time_building() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    figures = {"set_up_with_clean_build_s": seconds("scripts/setup.sh")}
    CHANGED.touch()
    figures["one_changed_file_s"] = seconds("cmake", "--build", FOLDER)
    figures["changed_file"] = CHANGED.relative_to(ROOT).as_posix()
    figures["second_set_up_s"] = seconds("scripts/setup.sh")
    bench_record.write(ROOT / "docs" / "bench" / "setup.json", figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--clean", action="store_true", help="time building; yes, remove build/cpu")
    what.add_argument("--tests", action="store_true", help="time all tests")
    arguments = parser.parse_args()
    if (ROOT / "build").is_symlink():  # another checkout's
        parser.error(f"{ROOT / 'build'} is a link; this works on a build folder of its own checkout only")
    time_tests() if arguments.tests else time_building()


if __name__ == "__main__":
    main()
