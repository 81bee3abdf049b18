# SPDX-License-Identifier: MIT
"""Importing the package where the library is not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import prulong
from prulong import _library


def import_copy(tmp_path, **environment):
    """`import prulong` in a fresh process, from a copy of the package outside any checkout."""
    package = tmp_path / "elsewhere" / "python_bindings" / "prulong"
    shutil.copytree(Path(prulong.__file__).parent, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = "import prulong, torch; print(prulong.__file__, torch.ops.prulong.masked_attention)"
    environment = {**os.environ, "PYTHONPATH": str(package.parent), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)


def test_not_built(tmp_path):
    result = import_copy(tmp_path, PRULONG_OPS_LIBRARY="")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: libprulong_ops.so is not built (looked at ")
    assert "scripts/setup.sh" in last and "PRULONG_OPS_LIBRARY" in last


def test_named_library_that_is_not_there(tmp_path):
    result = import_copy(tmp_path, PRULONG_OPS_LIBRARY=str(tmp_path / "none.so"))
    assert "ImportError: PRULONG_OPS_LIBRARY names" in result.stderr


def test_named_library_that_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "text.so").write_text("text")
    monkeypatch.setenv("PRULONG_OPS_LIBRARY", str(tmp_path / "text.so"))
    with pytest.raises(ImportError, match="text.so does not load into torch"):
        _library.load()


def test_named_library(tmp_path):
    result = import_copy(tmp_path, PRULONG_OPS_LIBRARY=str(_library.find()))
    assert result.returncode == 0, result.stderr
    assert "elsewhere" in result.stdout and "prulong.masked_attention" in result.stdout
