#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measures how fast training sequences are read, against numpy's memmap on the same tokens, and how fast a set of many
shards opens. Everything lies in the page cache; one thread each; seconds are processor time, so that other programs do
not count; medians of runs that take turns.
Writes docs/bench/data.json (--out elsewhere).

  cmake --build --preset cpu --target bench_reading && .venv/bin/python benchmarks/bench_data.py
"""

import argparse
import ctypes
import ctypes.util
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

import bench_record
from preparation.writers import MdsFolder, TokenFolder  # noqa: E402

ROOT = bench_record.ROOT
SEQ_LEN = 65536
DOCUMENT = 5000  # tokens
MANY_SHARDS = 20000


def write_data(folder: Path, tokens: np.ndarray) -> dict[str, tuple[str, Path]]:
    """The same tokens in every format: name -> (type, path)."""
    (folder / "raw").mkdir()
    tokens.tofile(folder / "raw" / "tokens.bin")
    (folder / "npy").mkdir()
    np.save(folder / "npy" / "tokens.npy", tokens)
    writers = {}
    for name, writer, arguments in (("tokens", TokenFolder, ()), ("mds with sha1", MdsFolder, (SEQ_LEN,)),
                                    ("mds", MdsFolder, (SEQ_LEN,))):
        (folder / name).mkdir()
        dtype = np.dtype("<u2" if name == "tokens" else "<u4")  # ProLong's shards are uint32
        writers[name] = writer(folder / name, dtype, *arguments)
        for start in range(0, len(tokens), DOCUMENT):
            writers[name].add_document(tokens[start:start + DOCUMENT])
        data = {"format": writer.FORMAT, "version": 1, "vocab_size": 65536, "tokens": len(tokens),
                "documents": writers[name].documents, "sha256": writers[name].finish()}
        (folder / name / "data.json").write_text(json.dumps(data))
    drop_hashes(folder / "mds")
    shutil.copytree(folder / "mds", folder / "mds, zstd")
    compress(folder / "mds, zstd")
    return {"raw uint16": ("raw", folder / "raw"), "npy uint16": ("npy", folder / "npy"),
            "token folder uint16": ("tokens", folder / "tokens"), "mds uint32": ("mds", folder / "mds"),
            "mds uint32, sha1 checked": ("mds", folder / "mds with sha1"), "mds uint32, zstd": ("mds", folder / "mds, zstd")}


def edit_index(folder: Path, edit) -> None:
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        edit(shard)
    (folder / "index.json").write_text(json.dumps(index))


def drop_hashes(folder: Path) -> None:
    edit_index(folder, lambda shard: shard["raw_data"].update(hashes={}))


def compress(folder: Path) -> None:
    """Replaces shards by zstd-compressed ones, through the C library: Python has no module of it."""
    library = ctypes.CDLL(ctypes.util.find_library("zstd"))
    library.ZSTD_compressBound.restype = library.ZSTD_compress.restype = ctypes.c_size_t
    library.ZSTD_compressBound.argtypes = [ctypes.c_size_t]
    library.ZSTD_compress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]

    def edit(shard: dict) -> None:
        raw = folder / shard["raw_data"]["basename"]
        data = raw.read_bytes()
        buffer = ctypes.create_string_buffer(library.ZSTD_compressBound(len(data)))
        size = library.ZSTD_compress(buffer, len(buffer), data, len(data), 3)
        raw.with_name(raw.name + ".zstd").write_bytes(buffer.raw[:size])
        raw.unlink()
        shard.update(compression="zstd:3", zip_data={"basename": raw.name + ".zstd", "bytes": size, "hashes": {}})

    edit_index(folder, edit)


def read_ours(program: Path, kind: str, path: Path, sequences: int) -> dict:
    command = [str(program), kind, str(path), str(SEQ_LEN), str(sequences)]
    return json.loads(bench_record.run(*command, stdout=subprocess.PIPE, text=True).stdout)


def read_numpy(path: Path, sequences: int) -> float:
    """Processor seconds to copy the file's sequences in random order, as a loader in Python does."""
    order = np.random.default_rng(0).permutation(sequences)
    start = time.process_time()
    tokens = np.memmap(path, dtype="<u2", mode="r")
    for n in order:
        tokens[n * SEQ_LEN:(n + 1) * SEQ_LEN].astype(np.int32)
    return time.process_time() - start


def median_rates(sources: dict, program: Path, raw: Path, sequences: int, runs: int) -> dict:
    """tokens/s of every source and of numpy: medians, and the ratio of each pair of neighbouring runs."""
    rates = {name: [] for name in ["numpy memmap uint16", *sources]}
    for _ in range(runs + 1):  # the first one warms up
        rates["numpy memmap uint16"].append(sequences * SEQ_LEN / read_numpy(raw, sequences))
        for name, (kind, path) in sources.items():
            result = read_ours(program, kind, path, sequences)
            rates[name].append(result["tokens"] / (result["open_s"] + result["read_s"]))
    rates = {name: values[1:] for name, values in rates.items()}
    numpy_rates = rates["numpy memmap uint16"]
    return {name: {"tokens_per_s": round(statistics.median(values)),
                   "to_numpy": round(statistics.median(a / b for a, b in zip(values, numpy_rates)), 3)}
            for name, values in rates.items()}


def open_many(program: Path, source: Path, folder: Path, runs: int) -> dict:
    """Processor seconds to open an index of many shards and read the first sequence, of which each holds one."""
    shutil.copytree(source, folder)
    index = json.loads((folder / "index.json").read_text())
    index["shards"] = index["shards"][:1] * MANY_SHARDS
    (folder / "index.json").write_text(json.dumps(index))
    results = [read_ours(program, "mds", folder, 1) for _ in range(runs)]
    return {"shards": MANY_SHARDS, "index_bytes": (folder / "index.json").stat().st_size,
            "open_s": statistics.median(r["open_s"] for r in results),
            "first_sequence_s": statistics.median(r["read_s"] for r in results)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=bench_record.positive, default=512, help="of 65,536 tokens in an epoch (default: %(default)s)")
    parser.add_argument("--runs", type=bench_record.positive, default=7, help="per source (default: %(default)s)")
    parser.add_argument("--bin", type=Path, default=Path(os.environ.get("PRULONG_BIN", ROOT / "build" / "cpu" / "bin")))
    parser.add_argument("--out", type=bench_record.output, default=ROOT / "docs" / "bench" / "data.json")
    args = parser.parse_args()
    program = bench_record.built(args.bin.resolve(), "bench_reading")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Tokens as frequent as words are: zstd has something to do.
        tokens = np.minimum(np.random.default_rng(0).zipf(1.2, args.sequences * SEQ_LEN), 49999).astype("<u2")
        sources = write_data(folder, tokens)
        figures = {"sequences": args.sequences, "seq_len": SEQ_LEN, "runs": args.runs,
                   "reading": median_rates(sources, program, folder / "raw" / "tokens.bin", args.sequences, args.runs),
                   "opening": open_many(program, sources["mds uint32"][1], folder / "many", args.runs)}
    print(json.dumps(figures, indent=1))
    bench_record.write(args.out.resolve(), figures)


if __name__ == "__main__":
    main()
