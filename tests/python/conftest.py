# SPDX-License-Identifier: MIT
"""Makes `import prulong` find the checkout's package, finds the built programs, and writes a tiny model with data."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python_bindings"))


@pytest.fixture(scope="session")
def bin_folder() -> Path:
    """The folder of the programs: $PRULONG_BIN (tests run them from other folders), or that of a preset's build."""
    named = os.environ.get("PRULONG_BIN")
    places = [Path(named).resolve()] if named else [ROOT / "build" / preset / "bin" for preset in ("cuda", "cpu")]
    for place in places:
        if (place / "prulong-export").is_file():
            return place
    pytest.fail(f"prulong-export is not built (looked in {', '.join(map(str, places))}): run scripts/setup.sh")


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A folder with model, kit and tokens (tiny_world.py); tests leave it as it is."""
    from tiny_world import write_world  # imports torch and transformers, which not every run needs

    return write_world(tmp_path_factory.mktemp("world"))
