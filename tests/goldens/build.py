# SPDX-License-Identifier: MIT
"""The programs of a build, run in a folder of their own so that no path of this machine gets into what they write."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("step_s", "tokens_per_s")


class Failure(Exception):
    """One line for whoever started the recording."""


class Build:
    """What a build folder holds, and the working folder of all its programs."""

    def __init__(self, folder: Path, work: Path):
        self.folder, self.work = folder.resolve(), work
        for file in ("bin/prulong-train", "bin/prulong-export", "bin/prulong-eval", "bin/prulong_llama_logits",
                     "lib/libprulong_ops.so"):
            if not (self.folder / file).is_file():
                raise Failure(f"{folder}: expected {file} in it, found none; build it with scripts/setup.sh cpu")

    @property
    def operators(self) -> Path:
        return self.folder / "lib" / "libprulong_ops.so"

    def _environment(self, threads: int) -> dict:
        # A copied build folder has its own library, not the one of the checkout where it was built.
        return dict(os.environ, OMP_NUM_THREADS=str(threads), LD_LIBRARY_PATH=str(self.operators.parent))

    def run(self, program: str, *arguments, threads: int = 1) -> subprocess.CompletedProcess:
        command = [str(self.folder / "bin" / program), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.work, capture_output=True, text=True, env=self._environment(threads))
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Failure(f"{program} {' '.join(command[1:])[:300]}: exit status {done.returncode}: {last}")
        return done

    def train_in_two(self, *arguments, run: str, step: int) -> None:
        """prulong-train, asked to stop once it has a checkpoint of a step, and then told to go on."""
        command = [self.folder / "bin" / "prulong-train", *arguments, f"run.dir={run}"]
        process = subprocess.Popen(command, cwd=self.work, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                   env=self._environment(1))
        checkpoints = self.work / run / "checkpoints"
        while process.poll() is None and not any(int(p.stem[5:]) >= step for p in checkpoints.glob("step-*.json")):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate()
        if process.returncode != 0 or "stopped by a signal" not in text:
            raise Failure(f"prulong-train: a stop by SIGTERM expected, found: {(text.splitlines() or ['nothing'])[-1]}")
        if "going on after step" not in self.run("prulong-train", *arguments, f"run.dir={run}").stderr:
            raise Failure(f"prulong-train: {run} started anew instead of going on")

    def logits(self, name: str, model: str, dtype: str, documents: list[list[int]], gates: torch.Tensor,
               sink: int, window: int) -> dict:
        """What prulong_llama_logits computes of packed documents: logits and the gates' gradients."""
        out = self.work / name
        out.mkdir(parents=True)
        save_file({"gates": gates, "locality": torch.tensor([sink, window])}, out / "gates.safetensors")
        ids = " / ".join(" ".join(map(str, document)) for document in documents).split()
        self.run("prulong_llama_logits", model, name, dtype, *ids)
        found = {**load_file(out / "logits.safetensors"), **load_file(out / "gradients.safetensors")}
        return {"logits": found["logits"], "greedy": found["greedy"], "loss": found["loss"].item(),
                "gate_gradients": found["gates"].tolist(), "saved_model": tensors_of(out / "model")}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def metrics_of(run: Path) -> dict:
    """metrics.jsonl by column, without the times; null where a line has no such key."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = sorted({key for line in lines for key in line} - set(TIMES))
    return {key: [line.get(key) for line in lines] for key in keys}


def pattern_of(folder: Path) -> dict:
    """pattern.json without where it comes from (versions, hash of the configuration), and the table beside it."""
    pattern = json.loads((folder / "pattern.json").read_text())
    del pattern["provenance"]
    return {"pattern": pattern, "masks_tsv": (folder / "masks.tsv").read_text()}
