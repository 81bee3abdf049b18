#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks who may include what: dependencies point one way, heavy headers stay in their place.

Prints one line per breach and exits with 1 if there is any.
"""

import argparse
import pathlib
import re
import sys

# A folder may include from itself and from these.
MAY_INCLUDE = {
    "common": set(),
    "common/config": {"common"},
    "csrc": {"common", "csrc/elementwise", "csrc/hopper"},
    "csrc/elementwise": set(),
    "csrc/hopper": {"csrc/elementwise"},
    "model": {"common", "common/config", "csrc"},
    "engine": {"common", "common/config", "csrc", "model"},
    "parallel": {"common", "common/config", "csrc", "model"},
    "trainer/data": {"common", "common/config"},
    "eval": {"common", "common/config", "csrc", "model", "engine", "parallel", "trainer/data"},
    "trainer": {"common", "common/config", "csrc", "model", "engine", "parallel", "trainer/data", "eval"},
    "python_bindings": {"common", "csrc", "model", "engine", "eval"},
}
# Kernels know no torch, so they cannot include what does; these files beside them are operators' code.
HOST_SIDE = re.compile(r"csrc/(hopper/(?:hopper_attention|paged_attention|planned_forward)|elementwise/fused_elementwise)\.")
SHARED_BY_KERNELS = ("csrc/tile.h", "csrc/host_device.h")
# Headers that only some files may name: (what, pattern of the include, which files may).
RESTRICTED = [
    ("torch in kernels", re.compile(r"(torch|ATen|c10)/"),
     lambda path: layer_of(path) not in ("csrc/elementwise", "csrc/hopper")),
    ("the whole of torch", re.compile(r"torch/(torch|extension|all)\.h"), lambda path: False),
    ("c10d, gloo or NCCL", re.compile(r"torch/csrc/distributed/|gloo/|nccl"),
     lambda path: path == "parallel/mesh.cpp" or path.startswith("parallel/standin/")),
    ("cxxopts", re.compile(r"cxxopts"), lambda path: path.endswith("_main.cpp")),
    ("spdlog", re.compile(r"spdlog/|fmt/"), lambda path: path == "common/run_log.cpp"),
    ("yaml-cpp", re.compile(r"yaml-cpp/"), lambda path: path == "common/config/config_io.cpp"),
    ("pybind11", re.compile(r"pybind11/"), lambda path: path.startswith("python_bindings/")),
    ("the whole of nlohmann in a header", re.compile(r"nlohmann/json\.hpp"), lambda path: path.endswith(".cpp")),
]
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def layer_of(path: str) -> str | None:
    """The innermost named layer that holds a path."""
    if HOST_SIDE.match(path):
        return "csrc"
    if path in SHARED_BY_KERNELS:
        return "csrc/elementwise"  # the lowest layer of kernels
    fitting = [layer for layer in MAY_INCLUDE if path.startswith(layer + "/")]
    return max(fitting, key=len) if fitting else None


def breaches(root: pathlib.Path):
    """Yields one line per forbidden include."""
    for layer_root in dict.fromkeys(layer.split("/")[0] for layer in MAY_INCLUDE):
        for file in sorted((root / layer_root).rglob("*")):
            if file.suffix not in {".h", ".cuh", ".cpp", ".cu"}:
                continue
            path = file.relative_to(root).as_posix()
            for header in INCLUDE.findall(file.read_text()):
                for what, pattern, allowed in RESTRICTED:
                    if pattern.match(header) and not allowed(path):
                        yield f"{path}: includes {header}: {what} may not be included here"
                target, own = layer_of(header), layer_of(path)
                if own and target and target != own and target not in MAY_INCLUDE[own]:
                    yield f"{path}: includes {header}: {own} may not depend on {target}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent,
                        metavar="ROOT", help="the checkout (default: this one)")
    root = parser.parse_args().root
    if not any((root / layer).is_dir() for layer in MAY_INCLUDE):
        parser.error(f"{root}: not a checkout: none of {', '.join(MAY_INCLUDE)} is there")
    found = list(breaches(root))
    print("\n".join(found) or "layers: no breach")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
