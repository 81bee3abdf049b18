# SPDX-License-Identifier: MIT
"""Programs under torchrun, as a user starts them on one machine."""

import os
import subprocess
import sys
from pathlib import Path


def command(ranks, *program, options=()):
    """torchrun's command line for a program of ours. It chooses a free port."""
    return [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", str(ranks),
            "--standalone", *options, *map(str, program)]


def environment():
    return dict(os.environ, OMP_NUM_THREADS="1", TORCH_CPP_LOG_LEVEL="ERROR")


def start(ranks, *program, options=()):
    return subprocess.Popen(command(ranks, *program, options=options), env=environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def workers(launcher):
    """The processes that a launcher runs now, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) != launcher.pid:
                continue
            variables = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):  # ended meanwhile
            continue
        for variable in variables:
            if variable.startswith(b"RANK="):
                found[int(variable[5:])] = int(folder.name)
    return found


def run(ranks, *program, options=(), timeout=100):
    """Runs to the end. Returns the finished process, with standard output and error in one text."""
    return subprocess.run(command(ranks, *program, options=options), env=environment(), timeout=timeout, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
