# SPDX-License-Identifier: MIT
"""Finds and loads libprulong_ops.so, which registers torch.ops.prulong.*."""

from __future__ import annotations

import os
from pathlib import Path

_NAME = "libprulong_ops.so"


def find() -> Path:
    """The library: $PRULONG_OPS_LIBRARY, then beside this file, then build/cuda and build/cpu of the checkout."""
    named = os.environ.get("PRULONG_OPS_LIBRARY")
    if named:
        if not Path(named).is_file():
            raise ImportError(f"PRULONG_OPS_LIBRARY names {named}, which is not a file")
        return Path(named)
    package = Path(__file__).resolve().parent
    checkout = package.parent.parent
    places = [package / _NAME, *(checkout / "build" / preset / "lib" / _NAME for preset in ("cuda", "cpu"))]
    for place in places:
        if place.is_file():
            return place
    raise ImportError(
        f"{_NAME} is not built (looked at {', '.join(map(str, places))}): run scripts/setup.sh in the checkout, "
        "or set PRULONG_OPS_LIBRARY to the library"
    )


def load() -> Path:
    """Loads the library into torch and returns where it was found."""
    path = find()
    import torch  # after find: without the library the answer comes at once

    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"{path} does not load into torch {torch.__version__} (it was built against another?): {error}"
        ) from error
    return path
