#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the compiler makes of every CUDA kernel: registers, shared memory, spills, notes that cost speed, instructions.

Compiles the .cu files of csrc for the GPU once more, with the flags of a build folder's compile_commands.json and ptxas -v, counts
the instructions with cuobjdump (of the CUDA toolkit, or of the pip package triton), and prints tables in Markdown. Exits with
1 if a kernel spills registers or ptxas serialises its matrix products.
"""

import argparse
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench_record import lines_of

ROOT = Path(__file__).resolve().parent.parent
# setmaxnreg ignored, wgmma serialised, a wait for wgmma put in by the compiler.
PAGE = ROOT / "docs/design/kernel_report.md"
COSTLY_NOTES = re.compile(r"\(C75\d\d\)")  # C7508, C7510, C7512, C7517 and their like
# Columns of the table of instructions: which start an instruction's name. The first that fits counts.
CLASSES = {
    "wgmma": r"HGMMA",
    "exp2": r"MUFU\.EX2",
    "FMA, mul, add": r"FFMA|FMUL|FADD",
    "max": r"FMNMX",
    "pack": r"F2F",
    "shared loads": r"LDS",
    "shared stores": r"STS",
    "bulk copies": r"UTMALDG|UTMASTG|UBLKCP|UBLKRED",
    "global": r"LDG|STG|LD\.|ST\.|ATOM|RED",
    "barriers": r"SYNCS|BAR|WARPGROUP|WARPSYNC",
}
INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)([^;]*);")


@dataclass
class Instruction:
    address: int
    name: str
    operands: str


@dataclass
class Kernel:
    source: str
    name: str
    registers: int = 0
    static_shared: int = 0
    spilled: int = 0  # bytes, stores and loads
    notes: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)  # none without cuobjdump

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
    for line in lines_of(report):
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


def find_disassembler() -> str | None:
    """cuobjdump of the PATH, of the toolkit, or of triton."""
    places = [Path("/usr/local/cuda/bin"), *sorted(Path("/usr/local").glob("cuda-*/bin"))]
    triton = importlib.util.find_spec("triton")
    places += [Path(place) / "backends/nvidia/bin" for place in triton.submodule_search_locations or []] if triton else []
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=":".join(map(str, places)))


def parse_instructions(listing: str) -> dict[str, list[Instruction]]:
    """Instructions by kernel, from what cuobjdump -sass printed."""
    kernels: dict[str, list[Instruction]] = {}
    instructions: list[Instruction] = []
    for line in lines_of(listing):
        if found := re.search(r"Function : (\S+)", line):
            instructions = kernels.setdefault(found[1], [])
        elif found := INSTRUCTION.match(line):
            instructions.append(Instruction(int(found[1], 16), found[2], found[3]))
    return kernels


def count_classes(instructions: list[Instruction]) -> dict[str, int]:
    """How many of each class there are, and under "all" how many in all. Padding after the kernel's end does not count."""
    counts = {"all": sum(i.name != "NOP" for i in instructions)} | dict.fromkeys(CLASSES, 0)
    for instruction in instructions:
        for name, pattern in CLASSES.items():
            if re.match(pattern, instruction.name):
                counts[name] += 1
                break
    return counts


def target_of(instruction: Instruction) -> int | None:
    """Where it jumps, or may jump."""
    found = re.findall(r"0x([0-9a-f]+)", instruction.operands) if instruction.name.startswith("BRA") else []
    return int(found[-1], 16) if found else None


def main_loop(instructions: list[Instruction]) -> list[Instruction]:
    """A step of a consumer: the smallest loop with matrix products, without what it can jump over that neither multiplies nor
    waits, as it does in most steps (masks, corrections). Empty if there is none."""
    smallest: list[Instruction] = []
    for jump in instructions:
        target = target_of(jump)
        if target is not None and target < jump.address:
            body = [i for i in instructions if target <= i.address <= jump.address]
            if any(i.name.startswith("HGMMA") for i in body) and (not smallest or len(body) < len(smallest)):
                smallest = body
    taken = []
    n = 0
    while n < len(smallest):
        taken.append(smallest[n])
        target = target_of(smallest[n]) or 0
        end = next((i for i in range(n + 1, len(smallest)) if smallest[i].address == target), n + 1)
        skipped = smallest[n + 1:end]
        n = n + 1 if any(i.name.startswith(("HGMMA", "SYNCS", "BAR")) for i in skipped) else end
    return taken


@dataclass
class LoopClocks:
    """Clocks of a multiprocessor for one turn of the main loop by all consumer warpgroups, at each unit's full rate."""
    issue: int  # one instruction per scheduler, of which there are four
    tensor: int  # 4,096 floating point operations
    exp2: int  # 16
    shared: int  # 128 bytes: the products' operands, and what the loop itself loads and stores

    @property
    def limiter(self) -> str:
        return max(("tensor cores", self.tensor), ("shared memory", self.shared), ("exp2", self.exp2),
                   ("issue", self.issue), key=lambda unit: unit[1])[0]

    @property
    def tensor_share(self) -> float:
        return self.tensor / max(self.issue, self.tensor, self.exp2, self.shared)


def loop_clocks(loop: list[Instruction], consumers: int) -> LoopClocks:
    """For `consumers` warpgroups, a warp of each on every scheduler."""
    flops = shared = exp2 = 0
    for i in loop:
        if found := re.match(r"HGMMA\.64x(\d+)x16", i.name):
            columns = int(found[1])
            flops += 2 * 64 * columns * 16
            from_registers = re.match(r"\s*R\d+, R\d+", i.operands) is not None
            shared += 32 * columns + (0 if from_registers else 32 * 64)
        elif i.name.startswith("LDS"):
            shared += 4 * 128  # by four warps, each of which reads few addresses, many times
        elif i.name.startswith("STS"):
            bits = re.search(r"\.(64|128)$", i.name)
            shared += 128 * (16 if ".M88.4" in i.name else int(bits[1]) // 8 if bits else 4)
        elif i.name.startswith("MUFU.EX2"):
            exp2 += 128
    return LoopClocks(*(round(consumers * clocks)
                        for clocks in (len(loop), flops / 4096, exp2 / 16, shared / 128)))


def compile_report(entry: dict, disassembler: str | None = None) -> list[Kernel]:
    """Compiles one entry of compile_commands.json for the GPU alone."""
    words = shlex.split(entry["command"])
    while "nvcc" not in Path(words[0]).name:  # a launcher
        words.pop(0)
    words[words.index("-c")] = "-cubin"
    with tempfile.TemporaryDirectory() as folder:
        words[words.index("-o") + 1] = f"{folder}/kernel.cubin"
        words = [word for word in words if not word.startswith("--generate-code")]  # portable kernels have several
        words += ["-gencode=arch=compute_90a,code=sm_90a", "-Xptxas", "-v"]
        done = subprocess.run(words, cwd=entry["directory"], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{entry['file']} does not compile:\n{done.stderr[-2000:]}")
        kernels = parse(Path(entry["file"]).name, done.stderr)
        if disassembler and kernels:
            listing = subprocess.run([disassembler, "-sass", f"{folder}/kernel.cubin"], capture_output=True, text=True,
                                     check=True).stdout
            instructions = parse_instructions(listing)
            for kernel in kernels:
                kernel.instructions = instructions.get(kernel.name, [])
    return kernels


def report(build: Path, disassembler: str | None = None) -> list[Kernel]:
    """All kernels of csrc as `build` compiles them; their instructions too, with a disassembler."""
    entries = [entry for entry in json.loads((build / "compile_commands.json").read_text())
               if entry["file"].endswith(".cu") and "/csrc/" in entry["file"] and "/tests/" not in entry["file"]]
    if not entries:
        raise RuntimeError(f"{build} compiles no CUDA source of csrc: run scripts/setup.sh")
    with ThreadPoolExecutor(2) as pool:
        return [kernel for kernels in pool.map(lambda entry: compile_report(entry, disassembler), entries)
                for kernel in kernels]


def readable(names: list[str]) -> list[str]:
    """Demangled, without namespaces and parameters."""
    try:
        text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    except OSError:
        return names
    text = re.sub(r"\((?:\w+::)*\w+\)(\d)", r"\1", text.replace("(anonymous namespace)::", ""))  # enumerators as numbers
    return [re.sub(r"prulong::kernels::|^void |\([^()]*\)$", "", name) for name in lines_of(text)]


# Shared memory that a launch asks for is in no listing: the sizes of csrc/hopper, said by themselves.
SIZES = """#include <cstdio>
#include "csrc/hopper/backward/backward_rows.h"
#include "csrc/hopper/backward/backward_shape.h"
#include "csrc/hopper/decode/decode_shape.h"
#include "csrc/hopper/forward/forward_shape.h"
using namespace prulong::kernels;
template <int kDim> void print() {
  using F = ForwardShape<ElementType::kBFloat16, kDim>;
  using B = BackwardShape<ElementType::kBFloat16, kDim>;
  using D = DecodeShape<ElementType::kBFloat16, kDim>;
  std::printf("forward::kernel %d %d %d\\n", kDim, F::kThreads, F::kSharedBytes);
  std::printf("decode::kernel %d %d %d\\n", kDim, D::kThreads, D::kSharedBytes);
  std::printf("backward::kernel %d %d %d\\n", kDim, B::kThreads, B::kSharedBytes);
  std::printf("backward::prepare %d %d %d\\n", kDim, kBackwardRowThreads, backward::kPrepareSharedBytes);
  std::printf("backward::finish %d %d %d\\n", kDim, kBackwardRowThreads, backward::kFinishSharedBytes<kDim>);
}
int main() { print<64>(); print<128>(); }
"""


def launch_sizes(build: Path) -> dict[tuple[str, int], tuple[int, int]]:
    """Threads and dynamic shared memory of the attention kernels, by name and head dim."""
    entries = json.loads((build / "compile_commands.json").read_text())
    entry = next(entry for entry in entries if entry["file"].endswith("/csrc/hopper/schedule.cpp"))
    words = [word for word in shlex.split(entry["command"]) if word.startswith(("-I", "-std"))]
    words += ["-isystem" + word for word in re.findall(r"-isystem (\S+)", entry["command"])]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sizes.cpp").write_text(SIZES)
        # What uses the device layer goes unused: there is nothing behind it here.
        subprocess.run(["c++", *words, "-ffunction-sections", "-Wl,--gc-sections", f"{folder}/sizes.cpp", "-o",
                        f"{folder}/sizes"], check=True)
        lines = lines_of(subprocess.run([f"{folder}/sizes"], capture_output=True, text=True, check=True).stdout)
    return {(name, int(dim)): (int(threads), int(shared)) for name, dim, threads, shared in map(str.split, lines)}


def sizes_of(name: str, sizes: dict[tuple[str, int], tuple[int, int]]) -> tuple[int, int]:
    """Threads and dynamic shared memory of a kernel by its readable name; zeros where launch_sizes does not know it."""
    dim = re.search(r"\b(64|128)\b", name)
    return sizes.get((name.split("<")[0], int(dim[1])), (0, 0)) if dim else (0, 0)


def row(cells: list) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def tables(kernels: list[Kernel], sizes: dict[tuple[str, int], tuple[int, int]]) -> str:
    """Of all kernels, and of the main loops of those with matrix products."""
    names = readable([kernel.name for kernel in kernels])
    counted = any(kernel.instructions for kernel in kernels)
    heads = ["source", "kernel", "registers", "shared bytes", "spills and notes", *(["all", *CLASSES] if counted else [])]
    lines = [row(heads), row(["---"] * len(heads))]
    for kernel, name in zip(kernels, names):
        counts = list(count_classes(kernel.instructions).values()) if counted else []
        lines.append(row([kernel.source, name, kernel.registers, kernel.static_shared + sizes_of(name, sizes)[1],
                          "; ".join(kernel.faults) or "none", *counts]))
    loops = [(kernel, name, main_loop(kernel.instructions)) for kernel, name in zip(kernels, names)]
    if any(loop for *_, loop in loops):
        heads = ["source", "instructions of a step", "issue", "tensor cores", "exp2", "shared memory", "limiter",
                 "tensor cores busy at most"]
        lines += ["", row(heads), row(["---"] * len(heads))]
        for kernel, name, loop in loops:
            threads, _ = sizes_of(name, sizes)
            if not loop or threads == 0:
                continue
            clocks = loop_clocks(loop, threads // 128 - 1)  # the first warpgroup loads
            lines.append(row([kernel.source, len(loop), clocks.issue, clocks.tensor, clocks.exp2, clocks.shared,
                              clocks.limiter, f"{clocks.tensor_share:.0%}"]))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?", default="build/cpu", help="build folder (default: build/cpu)")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    disassembler = find_disassembler()
    if arguments.write and disassembler is None:
        sys.exit("kernel_report: no cuobjdump: install the CUDA toolkit or the pip package triton")
    build = ROOT / arguments.build
    if not (build / "compile_commands.json").is_file():
        sys.exit(f"kernel_report: {arguments.build} is no build folder (it has no compile_commands.json): run scripts/setup.sh")
    kernels = report(build, disassembler)
    text = tables(kernels, launch_sizes(build))
    if arguments.write:
        before, after = PAGE.read_text().split("<!-- tables -->\n")[::2]
        PAGE.write_text(f"{before}<!-- tables -->\n{text}\n<!-- tables -->\n{after}")
    else:
        print(text)
    return 1 if any(kernel.faults for kernel in kernels) else 0


if __name__ == "__main__":
    sys.exit(main())
