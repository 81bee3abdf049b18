#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the compiler says about every CUDA kernel: registers, shared memory, spills, and notes that cost speed.

Compiles csrc/kernels/*.cu for the GPU once more, with the flags of a build folder's compile_commands.json and ptxas -v, and
prints a table in Markdown. Exits with 1 if a kernel spills registers or ptxas serialises its matrix products.

Usage: scripts/kernel_report.py [BUILD]      BUILD: build/cpu by default
"""

import json
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# setmaxnreg ignored, wgmma serialised, a wait for wgmma put in by the compiler.
COSTLY_NOTES = re.compile(r"\(C75\d\d\)")  # C7508, C7510, C7512, C7517 and their like


@dataclass
class Kernel:
    source: str
    name: str
    registers: int = 0
    static_shared: int = 0
    spilled: int = 0  # bytes, stores and loads
    notes: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        spills = [f"spills {self.spilled} bytes"] if self.spilled else []
        return spills + self.notes


def parse(source: str, report: str) -> list[Kernel]:
    """The kernels of one source, from what ptxas -v printed. A note goes to the kernel that it names, else to the one being
    compiled."""
    kernels: dict[str, Kernel] = {}
    current = None
    notes = []
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            current = kernels.setdefault(found[1], Kernel(source, found[1]))
        if current and (found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)):
            current.spilled += int(found[1]) + int(found[2])
        if current and (found := re.search(r"Used (\d+) registers", line)):
            current.registers = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            current.static_shared = int(shared[1]) if shared else 0
        if COSTLY_NOTES.search(line):
            notes.append((line.strip(), current))
    for line, at in notes:
        named = re.search(r"function '(\w+)'", line)
        kernel = kernels.get(named[1]) if named else at
        if kernel is None:
            kernel = kernels.setdefault("", Kernel(source, named[1] if named else "?"))
        kernel.notes.append(line)
    return list(kernels.values())


def compile_report(entry: dict) -> list[Kernel]:
    """Compiles one entry of compile_commands.json for the GPU alone."""
    words = shlex.split(entry["command"])
    while "nvcc" not in Path(words[0]).name:  # a launcher
        words.pop(0)
    words[words.index("-c")] = "-cubin"
    with tempfile.TemporaryDirectory() as folder:
        words[words.index("-o") + 1] = f"{folder}/kernel.cubin"
        words = [re.sub(r"code=\[.*\]", "code=sm_90a", word) for word in words] + ["-Xptxas", "-v"]
        done = subprocess.run(words, cwd=entry["directory"], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{entry['file']} does not compile:\n{done.stderr[-2000:]}")
    return parse(Path(entry["file"]).name, done.stderr)


def report(build: Path) -> list[Kernel]:
    """All kernels of csrc/kernels as `build` compiles them."""
    entries = [entry for entry in json.loads((build / "compile_commands.json").read_text())
               if entry["file"].endswith(".cu") and "/csrc/kernels/" in entry["file"] and "/tests/" not in entry["file"]]
    if not entries:
        raise RuntimeError(f"{build} compiles no CUDA source of csrc/kernels: run scripts/setup.sh")
    with ThreadPoolExecutor(2) as pool:
        return [kernel for kernels in pool.map(compile_report, entries) for kernel in kernels]


def readable(names: list[str]) -> list[str]:
    """Demangled, without namespaces and parameters."""
    try:
        text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    except OSError:
        return names
    text = re.sub(r"\((?:\w+::)*\w+\)(\d)", r"\1", text.replace("(anonymous namespace)::", ""))  # enumerators as numbers
    return [re.sub(r"prulong::kernels::|^void |\([^()]*\)$", "", name) for name in text.splitlines()]


def main() -> int:
    kernels = report(ROOT / (sys.argv[1] if len(sys.argv) > 1 else "build/cpu"))
    print("| source | kernel | registers | static shared memory | spills and notes |")
    print("| --- | --- | --- | --- | --- |")
    for kernel, name in zip(kernels, readable([kernel.name for kernel in kernels])):
        print(f"| {kernel.source} | {name} | {kernel.registers} | {kernel.static_shared} | "
              f"{'; '.join(kernel.faults) or 'none'} |")
    return 1 if any(kernel.faults for kernel in kernels) else 0


if __name__ == "__main__":
    sys.exit(main())
