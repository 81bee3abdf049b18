# SPDX-License-Identifier: MIT
"""Programs under torchrun, as a user starts them on one machine."""

import os
import subprocess
import sys


def command(ranks, *program, options=()):
    """torchrun's command line for a program of ours. It chooses a free port."""
    return [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", str(ranks),
            "--standalone", *options, *map(str, program)]


def environment():
    return dict(os.environ, OMP_NUM_THREADS="1", TORCH_CPP_LOG_LEVEL="ERROR")


def run(ranks, *program, options=(), timeout=100):
    """Runs to the end. Returns the finished process, with standard output and error in one text."""
    return subprocess.run(command(ranks, *program, options=options), env=environment(), timeout=timeout, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
