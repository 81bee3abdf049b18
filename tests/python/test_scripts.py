# SPDX-License-Identifier: MIT
"""Every script says what it does when asked, and does nothing else; shell scripts refuse what they do not know."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
PROGRAMS = sorted(path for folder in (SCRIPTS, SCRIPTS.parent / "benchmarks") for path in folder.iterdir()
                  if path.is_file() and path.read_text().startswith("#!"))


def run(script, option):
    command = [sys.executable if script.suffix == ".py" else "bash", script, option]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda path: path.name)
def test_help(script):
    result = run(script, "--help")
    assert result.returncode == 0 and len(result.stdout) > 60 and result.stderr == ""


@pytest.mark.parametrize("name", ["check_format.sh", "demo.sh", "fuzz_readers.sh", "gpu_check.sh", "gpu_slice.sh",
                                  "setup.sh"])
def test_shell_scripts_refuse_unknown_arguments(name):
    result = run(SCRIPTS / name, "--no-such-option")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "--no-such-option" in result.stderr
