# SPDX-License-Identifier: MIT
"""prulong-train with several ranks on the tiny world: the fixture `spread`, and what tests ask about its runs."""

import pytest

import ranks
from train_program import metrics


@pytest.fixture
def spread(train, bin_folder, tmp_path):
    """Runs prulong-train with ranks: spread(count, *overrides); options of torchrun and the exit status by keyword."""

    def run(count, *overrides, code=0, options=()):
        done = ranks.run(count, bin_folder / "prulong-train", tmp_path / "train.yaml", *overrides, options=options)
        assert (done.returncode != 0) == (code != 0), done.stdout
        return done.stdout

    return run


def ours(text):
    """The lines that the program itself writes."""
    return [line for line in text.splitlines() if line.startswith("prulong-train: ")]


def plain(run):
    """What must not depend on the number of ranks."""
    own = ("step_s", "tokens_per_s", "tokens_per_s_per_rank", "ranks", "leader_bytes_sent")
    return [{k: v for k, v in line.items() if k not in own} for line in metrics(run)]
