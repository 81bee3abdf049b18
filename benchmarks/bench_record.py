# SPDX-License-Identifier: MIT
"""What benchmarks share: what their JSON says beside the figures, and running programs of the checkout."""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from preparation.files import first_line, lines_of  # noqa: E402, F401 (benchmarks use both)


def _processor() -> str:
    for line in lines_of(Path("/proc/cpuinfo").read_text()):
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


def output(text: str) -> Path:
    """For argparse: the JSON file to write. A file that is there must be an earlier result, never an input."""
    path = Path(text)
    if path.suffix != ".json" or path.is_dir():
        raise argparse.ArgumentTypeError(f"a file to write expected, its name ending in .json, found {text!r}")
    if path.exists():
        try:
            content = json.loads(path.read_bytes())
            ours = all({"command", "commit", "hardware"} <= run.keys() for run in content.get("runs", [content]))
        except (ValueError, AttributeError, RecursionError):
            ours = False
        if not ours:
            raise argparse.ArgumentTypeError(f"{path}: exists and holds no result of a benchmark; name another file")
    return path


def write(path: Path, figures: dict) -> None:
    """Writes provenance and figures as one JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**provenance(), **figures}, indent=1) + "\n")
    shown = path.resolve()
    print(f"wrote {shown.relative_to(ROOT) if shown.is_relative_to(ROOT) else shown}", flush=True)


def built(folder: Path, name: str) -> Path:
    """A program of the build; ends the benchmark with one line where it is missing."""
    path = folder / name
    if not path.is_file():
        sys.exit(f"{Path(sys.argv[0]).name}: {path}: no such program; build it with scripts/setup.sh PRESET {name}, "
                 "or name another folder")
    return path


def run(*command, **options) -> subprocess.CompletedProcess:
    """Runs a program in the checkout; ends the benchmark with one line where it fails."""
    done = subprocess.run(list(map(str, command)), cwd=ROOT, **options)
    if done.returncode != 0:
        sys.exit(f"{Path(sys.argv[0]).name}: {command[0]} failed (exit status {done.returncode})")
    return done


def length_and_sequences(text: str) -> tuple[int, int]:
    """LENGTH:SEQUENCES, for argparse."""
    try:
        length, sequences = map(int, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"LENGTH:SEQUENCES expected, as 1024:6, found {text!r}") from None
    return length, sequences


def positive(text: str) -> int:
    """For argparse: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)
