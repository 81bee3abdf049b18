# SPDX-License-Identifier: MIT
"""The README's examples run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prulong import ModelShape, Pattern

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
README = (ROOT / "README.md").read_text()

needs_model = pytest.mark.skipif(not (MODEL / "model.safetensors").exists(), reason="run scripts/fetch_smollm2.py first")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def demo_folder(tmp_path):
    """A working folder as after scripts/demo.sh, as far as the examples care."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / MODEL.name).symlink_to(MODEL)
    shape = ModelShape("llama", 30, 3, 9, 64)
    Pattern.from_scores(shape, [list(map(float, range(3)))] * 30, 0.7, sink=16, window=128).save(tmp_path / "demo/masks")
    return tmp_path


@needs_model
def test_python_example(demo_folder):
    code = "".join(blocks("python"))
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "python_bindings"), HF_HUB_OFFLINE="1")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=demo_folder, env=environment)
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout


@needs_model
@pytest.mark.parametrize("index, name, printed", [(0, "generate_with_pattern", "7042 "),
                                                  (1, "forward_with_pattern", "next token: 7042\n")])
def test_cpp_examples(demo_folder, bin_folder, index, name, printed):
    source = (ROOT / "tests" / "readme" / f"{name}.cpp").read_text()
    assert blocks("cpp")[index].strip() == source.split("\n", 1)[1].strip()  # but for the licence line
    result = subprocess.run([(bin_folder / f"readme_{name}").resolve(), f"models/{MODEL.name}", "demo/masks"],
                            capture_output=True, text=True, cwd=demo_folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(printed)


def test_every_file_that_the_readme_links_to_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
