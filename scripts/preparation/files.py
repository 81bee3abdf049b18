# SPDX-License-Identifier: MIT
"""What scripts that write data folders share, without a library to load."""

import hashlib
from pathlib import Path


class DataError(Exception):
    """One line for the user."""


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
