# SPDX-License-Identifier: MIT
"""scripts/check_layers.py finds each kind of breach, and none in this tree."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def check(root=None):
    """Exit status and lines of output."""
    command = [sys.executable, ROOT / "scripts" / "check_layers.py", *([root] if root else [])]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stderr == ""
    return result.returncode, result.stdout.splitlines()


def plant(root, path, *headers):
    """A file with these includes, quotes or brackets included."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("// SPDX-License-Identifier: MIT\n#pragma once\n" + "".join(f"#include {h}\n" for h in headers))


def test_this_tree_has_no_breach():
    assert check() == (0, ["layers: no breach"])


LEGAL = {
    "csrc/hopper/kernel.cuh": ['"csrc/hopper/plan.h"', '"csrc/tile.h"', "<cuda_runtime.h>", "<cstdint>"],
    "csrc/attention.cpp": ['"csrc/hopper/plan.h"', "<ATen/core/Tensor.h>", "<torch/library.h>"],
    "csrc/hopper/hopper_attention.cpp": ['"csrc/hopper/plan.h"', "<ATen/core/Tensor.h>"],
    "model/llama.cpp": ['"csrc/attention.h"', "<nlohmann/json.hpp>"],
    "trainer/data/source.cpp": ['"common/error.h"'],
    "trainer/trainer.cpp": ['"trainer/data/source.h"', '"model/llama.h"', '"eval/held_out.h"', '"csrc/attention.h"'],
    "trainer/train_main.cpp": ["<cxxopts.hpp>", '"trainer/trainer.h"'],
    "common/run_log.cpp": ["<spdlog/spdlog.h>", "<fmt/core.h>"],
    "common/config/config_io.cpp": ["<yaml-cpp/parser.h>"],
    "eval/compare.cpp": ['"eval/held_out.h"', '"trainer/data/source.h"', '"model/llama.h"'],
    "python_bindings/module.cpp": ["<pybind11/pybind11.h>", '"eval/compare.h"', '"model/llama.h"', "<csrc/attention.h>"],
}


def test_what_is_allowed_passes(tmp_path):
    for path, headers in LEGAL.items():
        plant(tmp_path, path, *headers)
    assert check(tmp_path) == (0, ["layers: no breach"])


@pytest.mark.parametrize("path, header", [
    ("csrc/hopper/kernel.cuh", "<torch/library.h>"),
    ("csrc/tile.h", "<ATen/core/Tensor.h>"),
    ("csrc/hopper/device/copy.cu", "<c10/util/Half.h>"),
    ("csrc/attention.cpp", "<torch/torch.h>"),
    ("model/llama.h", "<torch/extension.h>"),
    ("trainer/trainer.cpp", "<torch/all.h>"),
    ("trainer/trainer.cpp", "<cxxopts.hpp>"),
    ("trainer/trainer.cpp", "<spdlog/spdlog.h>"),
    ("eval/compare.cpp", "<fmt/format.h>"),
    ("trainer/config.cpp", "<yaml-cpp/yaml.h>"),
    ("csrc/attention.cpp", "<pybind11/pybind11.h>"),
    ("model/pattern.h", "<nlohmann/json.hpp>"),
    ("csrc/hopper/kernel.cuh", '"csrc/attention.h"'),
    ("csrc/hopper/device/copy.h", '"model/llama.h"'),
    ("csrc/attention.cpp", '"model/llama.h"'),
    ("model/llama.cpp", '"trainer/trainer.h"'),
    ("model/llama.cpp", '"trainer/data/source.h"'),
    ("model/llama.cpp", '"eval/compare.h"'),
    ("model/llama.cpp", '"csrc/hopper/plan.h"'),
    ("trainer/data/source.cpp", '"trainer/config.h"'),
    ("trainer/data/source.cpp", '"csrc/attention.h"'),
    ("eval/compare.cpp", '"trainer/trainer.h"'),
    ("common/error.cpp", '"model/llama.h"'),
    ("trainer/data/source.cpp", '"model/llama.h"'),
    ("trainer/trainer.cpp", '"csrc/hopper/plan.h"'),
    ("csrc/attention.cpp", "<model/llama.h>"),  # found by the same search path as with quotes
    ("python_bindings/module.cpp", '"trainer/trainer.h"'),
    ("python_bindings/module.cpp", "<csrc/hopper/plan.h>"),
    ("eval/compare.cpp", '"python_bindings/module.h"'),
])
def test_a_planted_breach_is_found(tmp_path, path, header):
    for legal, headers in LEGAL.items():
        plant(tmp_path, legal, *headers)
    plant(tmp_path, path, "<vector>", *LEGAL.get(path, []), header)
    status, lines = check(tmp_path)
    assert status == 1 and len(lines) == 1
    assert lines[0].startswith(f"{path}: includes {header[1:-1]}: ")


def test_every_breach_has_its_line_and_odd_spellings_are_seen(tmp_path):
    plant(tmp_path, "model/a.h", "<nlohmann/json.hpp>", '"trainer/trainer.h"')
    (tmp_path / "model" / "b.cpp").write_text('  #  include "eval/compare.h"\n// #include "trainer/trainer.h"\n')
    (tmp_path / "model" / "notes.md").write_text('#include "eval/compare.h"\n')
    status, lines = check(tmp_path)
    assert status == 1 and [line.split(":")[0] for line in lines] == ["model/a.h", "model/a.h", "model/b.cpp"]
