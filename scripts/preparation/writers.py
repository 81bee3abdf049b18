# SPDX-License-Identifier: MIT
"""Folders of tokens, written document by document."""

import array
import hashlib
import json
from pathlib import Path

import numpy as np

from preparation.files import sha256_of


class TokenFile:
    """Appends tokens to a .npy file whose length is known only at the end."""

    HEADER_BYTES = 128

    def __init__(self, path: Path, dtype: np.dtype):
        self.dtype, self.count = dtype, 0
        self.file = path.open("wb")
        self.file.write(b"\0" * self.HEADER_BYTES)

    def append(self, ids: list[int]) -> None:
        self.file.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self.count += len(ids)

    def close(self) -> None:
        header = f"{{'descr': '{self.dtype.str}', 'fortran_order': False, 'shape': ({self.count},), }}".encode()
        length = self.HEADER_BYTES - 10
        self.file.seek(0)
        self.file.write(b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + header.ljust(length - 1) + b"\n")
        self.file.close()


class TokenFolder:
    """tokens.npy and documents.npy, for sources of type tokens."""

    FORMAT = "prulong-tokens"

    def __init__(self, folder: Path, dtype: np.dtype):
        self.folder, self.file, self.offsets = folder, TokenFile(folder / "tokens.npy", dtype), array.array("q", [0])

    @property
    def tokens(self) -> int:
        return self.file.count

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1

    def add_document(self, ids: list[int]) -> None:
        self.file.append(ids)
        self.offsets.append(self.file.count)

    def finish(self) -> dict[str, str]:
        """Completes the files. Returns their hashes."""
        self.file.close()
        np.save(self.folder / "documents.npy", np.frombuffer(self.offsets, dtype="<i8"))
        return {name: sha256_of(self.folder / name) for name in ("tokens.npy", "documents.npy")}


def encode_array(values: np.ndarray) -> bytes:
    """An array as MDS encodes "ndarray:TYPE": number of dimensions and width of the lengths, lengths, values."""
    width = next(width for width in range(4) if max(values.shape) < 1 << (8 << width))
    lengths = np.asarray(values.shape, dtype=f"<u{1 << width}")
    return bytes([values.ndim << 2 | width]) + lengths.tobytes() + values.tobytes()


class MdsFolder:
    """MosaicML MDS shards with ProLong's columns: samples of `sample_tokens` tokens (the last one is shorter), `indices`
    with the [start, end) of each document in them. A document that does not fit goes on in the next sample."""

    FORMAT = "prulong-mds"
    SHARD_BYTES = 1 << 26  # what the format's own writer takes

    def __init__(self, folder: Path, dtype: np.dtype, sample_tokens: int):
        self.folder, self.dtype, self.sample_tokens = folder, dtype, sample_tokens
        self.tokens = self.documents = 0
        self.config = {"version": 2, "format": "mds", "compression": None, "hashes": ["sha1"],
                       "size_limit": self.SHARD_BYTES, "column_names": ["indices", "input_ids", "length"],
                       "column_encodings": ["ndarray:uint32", f"ndarray:{dtype.name}", "uint64"],
                       "column_sizes": [None, None, 8]}
        self.head = json.dumps(self.config, sort_keys=True).encode()
        self.ids: list[np.ndarray] = []  # of the sample in the making
        self.ends: list[int] = [0]
        self.samples: list[bytes] = []  # of the shard in the making
        self.shard_bytes = 8 + len(self.head)
        self.shards: list[dict] = []

    def add_document(self, ids: list[int]) -> None:
        self.documents += 1
        self.tokens += len(ids)
        rest = np.asarray(ids, dtype=self.dtype)
        while len(rest):
            part, rest = np.split(rest, [self.sample_tokens - self.ends[-1]])
            self.ids.append(part)
            self.ends.append(self.ends[-1] + len(part))
            if self.ends[-1] == self.sample_tokens:
                self._end_sample()

    def finish(self) -> dict[str, str]:
        """Completes the files. Returns the hash of the index, which holds those of the shards."""
        if self.ids:
            self._end_sample()
        if self.samples:
            self._end_shard()
        index = self.folder / "index.json"
        index.write_text(json.dumps({"version": 2, "shards": self.shards}, sort_keys=True))
        return {index.name: sha256_of(index)}

    def _end_sample(self) -> None:
        spans = np.stack([self.ends[:-1], self.ends[1:]], axis=1).astype("<u4")
        columns = [encode_array(spans), encode_array(np.concatenate(self.ids))]
        sizes = np.asarray([len(column) for column in columns], dtype="<u4").tobytes()
        sample = sizes + b"".join(columns) + self.ends[-1].to_bytes(8, "little")
        if self.samples and self.shard_bytes + len(sample) + 4 > self.SHARD_BYTES:
            self._end_shard()
        self.samples.append(sample)
        self.shard_bytes += len(sample) + 4
        self.ids, self.ends = [], [0]

    def _end_shard(self) -> None:
        count = len(self.samples)
        start = 4 + 4 * (count + 1) + len(self.head)
        offsets = start + np.cumsum([0, *map(len, self.samples)])
        data = b"".join([np.asarray([count, *offsets], dtype="<u4").tobytes(), self.head, *self.samples])
        name = f"shard.{len(self.shards):05}.mds"
        (self.folder / name).write_bytes(data)
        raw = {"basename": name, "bytes": len(data), "hashes": {"sha1": hashlib.sha1(data).hexdigest()}}
        self.shards.append({**self.config, "samples": count, "raw_data": raw, "zip_data": None})
        self.samples, self.shard_bytes = [], 8 + len(self.head)
