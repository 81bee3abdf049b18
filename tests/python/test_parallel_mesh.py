# SPDX-License-Identifier: MIT
"""The C++ tests of parallel/ with several ranks."""

import pytest

import ranks


@pytest.mark.parametrize("count", [1, 2, 4])
def test_collectives(count, bin_folder):
    done = ranks.run(count, bin_folder / "test_parallel", "[ranks]")
    assert done.returncode == 0 and done.stdout.count("All tests passed") == count, done.stdout
