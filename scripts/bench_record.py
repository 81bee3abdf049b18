# SPDX-License-Identifier: MIT
"""What every benchmark's JSON says beside its figures: command, commit, hardware, versions."""

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _gpu() -> dict:
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        return {"gpu": subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _commit() -> str:
    """The commit of the code that ran; results and docs may differ from it. PRULONG_COMMIT names it for a bare copy."""
    if "PRULONG_COMMIT" in os.environ:
        return os.environ["PRULONG_COMMIT"]
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    changed = git("status", "--porcelain", "--", ".", ":!docs", ":!README.md")
    return git("rev-parse", "HEAD") + (" with local changes" if changed else "")


def provenance() -> dict:
    """Facts about this run."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "numpy")}
    return {
        "command": shlex.join([Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]]),
        "commit": _commit(),
        "hardware": {"processor": _processor(), "threads": len(os.sched_getaffinity(0)), **_gpu()},
        "versions": {"python": platform.python_version(), **versions},
    }


def write(path: Path, figures: dict) -> None:
    """Writes provenance and figures as one JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**provenance(), **figures}, indent=1) + "\n")
    shown = path.resolve()
    print(f"wrote {shown.relative_to(ROOT) if shown.is_relative_to(ROOT) else shown}", flush=True)
