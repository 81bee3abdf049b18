# SPDX-License-Identifier: MIT
"""Runs prulong_llama_logits, and transformers beside it."""

import os
import pathlib
import subprocess

import torch
import transformers
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMED = os.environ.get("PRULONG_BIN")  # as conftest.py's bin_folder
PLACES = [pathlib.Path(NAMED).resolve()] if NAMED else [ROOT / "build" / preset / "bin" for preset in ("cuda", "cpu")]
PROGRAM = next((p for p in PLACES if (p / "prulong_llama_logits").is_file()), PLACES[-1]) / "prulong_llama_logits"


def run_program(folder, out, documents, dtype="float32"):
    """What the C++ model computes of `documents`, lists of token ids, packed into one sequence; and what it printed."""
    ids = " / ".join(" ".join(str(token) for token in document) for document in documents).split()
    done = subprocess.run([PROGRAM, folder, out, dtype, *ids], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return load_file(out / "logits.safetensors"), done.stdout


def reference_logits(folder, documents, dtype=torch.float32):
    """transformers' logits of each document alone, one after another."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        return torch.cat([model(torch.tensor([document])).logits[0] for document in documents]).float()


def randomise(model):
    """Weights far from the small initial values, where errors would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.dim() == 1 else 0.0))
