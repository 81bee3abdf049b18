#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the tests of the transformers plug-in under several versions of transformers, each in an environment of its own.

An environment is a folder into which pip installs one version with what it needs; torch and pytest are those of the
interpreter that runs this. They are made in a temporary folder, or in --folder, where they stay and are found again.
Writes a JSON of what passed; exits with 1 if anything failed.

Usage: .venv/bin/python scripts/check_transformers.py [VERSION...] [--folder FOLDER] [--out FILE.json]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import bench_record  # noqa: E402

VERSIONS = ["4.56.2", "4.57.6", "5.2.0", "5.12.0", "5.19.0", "5.24.0"]
TESTS = [f"tests/python/test_transformers{part}.py" for part in ("", "_cache", "_refusals", "_hosts")]
PACKAGES = ("transformers", "tokenizers", "huggingface_hub", "safetensors", "numpy")


def environment(folder: Path) -> dict:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    # One thread: the tests are tiny, and threads that wait for each other cost more than they do.
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def install(version: str, folder: Path) -> None:
    """Fills `folder`, which appears whole or not at all."""
    if folder.is_dir():
        return
    part = folder.with_name(folder.name + ".part")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary", ":all:"]
    bench_record.run(*pip, "--target", part, f"transformers=={version}")
    part.rename(folder)


def packages(folder: Path) -> dict:
    code = f"from importlib.metadata import version\nfor name in {PACKAGES}: print(name, version(name))"
    done = bench_record.run(sys.executable, "-c", code, env=environment(folder), capture_output=True, text=True)
    return dict(line.split() for line in done.stdout.split("\n") if line)


def test(folder: Path, report: Path) -> dict:
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *TESTS]
    start = time.perf_counter()
    code = subprocess.run(command, cwd=ROOT, env=environment(folder)).returncode
    if code not in (0, 1):
        sys.exit(f"check_transformers: pytest did not run (exit status {code})")
    suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite").attrib
    failed = int(suite["failures"]) + int(suite["errors"])
    skipped = int(suite["skipped"])
    passed = int(suite["tests"]) - failed - skipped
    return {"passed": passed, "failed": failed, "skipped": skipped, "seconds": round(time.perf_counter() - start, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"default: {' '.join(VERSIONS)}")
    parser.add_argument("--folder", type=Path, help="where the environments are, one folder a version")
    parser.add_argument("--out", type=bench_record.output, default=ROOT / "docs/bench/transformers_versions.json")
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for version in arguments.versions or VERSIONS:
            place = folder / version
            install(version, place)
            found = packages(place)
            if found["transformers"] != version:
                sys.exit(f"check_transformers: {place} holds transformers {found['transformers']}: remove it")
            print(f"[check] transformers {version}", flush=True)
            results[version] = test(place, Path(temporary) / "report.xml") | {"packages": found}
    bench_record.write(arguments.out, {"tests": TESTS, "transformers": results})
    return 1 if any(result["failed"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
