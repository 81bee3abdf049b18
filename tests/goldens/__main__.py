# SPDX-License-Identifier: MIT
"""Records what a build computes, and compares another build with it to the bit.

Goldens are made through what stays when code moves: the programs' command lines, the files they write, the operators
torch.ops.prulong.* and the Python package. They are equal only on the same kind of processor with the same torch, so no
test depends on them: record with the build before a change of structure, compare with the build after it.

  python tests/goldens record  --build build/cpu --out FOLDER   writes FOLDER/goldens.json and FOLDER/arrays.safetensors
  python tests/goldens compare --build build/cpu FOLDER         or a goldens.json alone: then differences of arrays are
                                                                estimated from some elements

Parts: world (the inputs of the next four), train, export, eval, logits (every family, tiny), operators (50 shapes),
smollm2 (logits of the real model, with and without a pattern) and demo (the steps of scripts/demo.sh; some minutes).
Cases named "random masks" may differ. One thread but for the demo, which takes two. Exit status 1 where something
differs.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: bits must not depend on the machine's load
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch  # noqa: E402
from transformers.utils import logging  # noqa: E402

import numerics  # noqa: E402
import programs  # noqa: E402
from build import ROOT, Build, Failure  # noqa: E402
from store import Goldens, compare  # noqa: E402

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench_record  # noqa: E402

PARTS = {"world": programs.write_world, "train": programs.record_training, "export": programs.record_export,
         "eval": programs.record_eval, "logits": programs.record_logits, "operators": numerics.record_operators,
         "smollm2": numerics.record_smollm2, "demo": programs.record_demo}
NEED_WORLD = ("train", "export", "eval", "logits")


def processor() -> str:
    """The name alone says too little on virtual machines."""
    facts = re.findall(r"^(cpu family|model|stepping|model name)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    fields = dict(facts)
    numbers = ", ".join(f"{key} {value}" for key, value in sorted(fields.items()) if key != "model name")
    return f"{fields.get('model name', platform.processor())} ({numbers}; {torch.backends.cpu.get_cpu_capability()})"


def measure(build_folder: Path, only: list[str]) -> Goldens:
    """Everything, or the parts named and what they need."""
    chosen = [part for part in PARTS if part in only or part == "world" and set(only) & set(NEED_WORLD)]
    with tempfile.TemporaryDirectory(prefix="goldens-") as work:
        build = Build(build_folder, Path(work))
        facts = bench_record.provenance()
        facts["hardware"]["processor"] = processor()
        facts["programs"] = build.run("prulong-train", "--version").stdout.strip()
        found = Goldens(facts)
        for part in chosen:
            found.record(part, lambda add, part=part: PARTS[part](build, add))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/goldens", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for name, text in (("record", "keep what a build computes"), ("compare", "compare a build with what was kept")):
        action = actions.add_parser(name, help=text)
        action.add_argument("--build", type=Path, default=ROOT / "build" / "cpu", metavar="DIR",
                            help="build folder with bin and lib (default: build/cpu of this checkout)")
        action.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                            help="parts to take (default: all)")
        if name == "record":
            action.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
        else:
            action.add_argument("goldens", type=Path, metavar="FOLDER",
                                help="folder that record wrote, or its goldens.json")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # newer versions rename arguments that older ones need
    try:
        if arguments.action == "record":
            measure(arguments.build, arguments.only).write(arguments.out)
            print(f"wrote {arguments.out}")
            return 0
        before = Goldens.read(arguments.goldens)
        if before.facts["hardware"]["processor"] != processor():
            print(f"another processor: bits may differ for that alone: {before.facts['hardware']['processor']} then, "
                  f"{processor()} now")
        after = measure(arguments.build, arguments.only)
        if before.facts["versions"] != after.facts["versions"]:
            print(f"other versions: {before.facts['versions']} then, {after.facts['versions']} now")
        return 0 if compare(before, after) else 1
    except (Failure, OSError, subprocess.CalledProcessError) as error:
        print(f"tests/goldens: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
