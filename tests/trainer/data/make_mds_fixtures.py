#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes tests/trainer/data/fixtures/mds with the real mosaicml-streaming package: small shards of every kind that the
reader takes, and expected.txt, what that package itself reads back from them.

The package replaces torch, so it must never meet the project's own environment. In a throw-away one:
  python3 -m venv /tmp/streaming && /tmp/streaming/bin/pip install mosaicml-streaming==0.13.0
  /tmp/streaming/bin/python tests/trainer/data/make_mds_fixtures.py
"""

import json
import shutil
from pathlib import Path

import numpy as np
import streaming
from streaming.base.format import reader_from_json
from streaming.base.util import merge_index

OUT = Path(__file__).resolve().parent / "fixtures" / "mds"

# set -> (columns, type of the tokens, samples, what MDSWriter gets beside). `indices` is there or not, as in ProLong's
# packed and unpacked data.
SETS = {
    "prolong": ({"domain": "str", "indices": "ndarray:uint32", "input_ids": "ndarray:uint32", "length": "uint64"},
                "uint32", 9, {"size_limit": 900}),
    "zstd": ({"domain": "str", "indices": "ndarray:uint32", "input_ids": "ndarray:uint16", "length": "int"},
             "uint16", 12, {"size_limit": 900, "compression": "zstd:7", "hashes": ["sha1", "xxh3_64"]}),
    "self_described": ({"indices": "ndarray", "input_ids": "ndarray"}, "int64", 5,
                       {"size_limit": 700, "hashes": ["blake2b", "sha3_256", "xxh128", "xxh32", "xxh64"]}),
    "fixed_shape": ({"indices": "ndarray:int64:2,2", "input_ids": "ndarray:int32:40"}, "int32", 4,
                    {"hashes": ["sha256"]}),
    "bytes": ({"tokens": "bytes"}, "int64", 4, {"compression": "zstd"}),
    "unsigned64": ({"input_ids": "ndarray:uint64"}, "uint64", 3, {}),
}


def make_sample(rng: np.random.Generator, columns: dict[str, str], dtype: str, index: int) -> dict:
    """Random tokens below 30,000, in documents of random length that leave the last tokens out."""
    fixed = columns.get("input_ids", "").count(":") == 2
    length = 40 if fixed else int(rng.integers(30, 70)) if index != 1 else 300  # 300: a wider length word
    tokens = rng.integers(0, 30000, length).astype(dtype)
    cuts = np.sort(rng.choice(np.arange(1, length), 3 if fixed else 4, replace=False))
    bounds = [0, *cuts.tolist()][:3] if fixed else [0, *cuts.tolist()]
    spans = np.array(list(zip(bounds, bounds[1:])), dtype=(columns.get("indices", "").split(":") + ["uint16"])[1])
    sample = {"input_ids": tokens, "tokens": tokens.tobytes(), "indices": spans, "domain": f"domain/{index}",
              "length": length if columns.get("length") == "int" else np.uint64(length)}
    return {name: sample[name] for name in columns}


def write_set(folder: Path, columns: dict[str, str], dtype: str, samples: int, options: dict, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with streaming.MDSWriter(columns=columns, out=str(folder), **options) as writer:
        for index in range(samples):
            writer.write(make_sample(rng, columns, dtype, index))


def read_set(folder: Path, dtype: str) -> list[list[list[int]]]:
    """[sample][document] tokens, by the package's own readers."""

    samples = []
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        reader = reader_from_json(str(folder), None, shard)
        compressed = not (folder / reader.raw_data.basename).exists()
        if compressed:
            data = streaming.base.compression.decompress(reader.compression,
                                                         (folder / reader.zip_data.basename).read_bytes())
            (folder / reader.raw_data.basename).write_bytes(data)
        for index in range(len(reader)):
            sample = reader[index]
            tokens = sample["input_ids"] if "input_ids" in sample else np.frombuffer(sample["tokens"], dtype)
            spans = sample.get("indices", [[0, len(tokens)]])
            samples.append([tokens[a:b].tolist() for a, b in spans])
        if compressed:
            (folder / reader.raw_data.basename).unlink()
    return samples


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    for seed, (name, (columns, dtype, samples, options)) in enumerate(SETS.items()):
        write_set(OUT / name, columns, dtype, samples, options, seed)
    columns, dtype, samples, options = SETS["prolong"]
    for part in range(2):  # as several processes write one set
        write_set(OUT / "merged" / f"part{part}", columns, dtype, 4, options, 100 + part)
    merge_index(str(OUT / "merged"))
    for part in range(2):
        (OUT / "merged" / f"part{part}" / "index.json").unlink()
    lines = [f"# Written by make_mds_fixtures.py with mosaicml-streaming {streaming.__version__}: set, sample, tokens of "
             "one document."]
    for name in [*SETS, "merged"]:
        for index, documents in enumerate(read_set(OUT / name, SETS.get(name, SETS["prolong"])[1])):
            lines += [" ".join(map(str, [name, index, *document])) for document in documents]
    (OUT / "expected.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
