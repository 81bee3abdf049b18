# SPDX-License-Identifier: MIT
"""scripts/prepare_data.py in this process, with a tokenizer made here: fixtures for its tests."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "trainer" / "data")]
import make_data  # noqa: E402
import prepare_data  # noqa: E402
from preparation import recall, shared, text as text_module, writers  # noqa: E402

TEXT = "It was a fine day. \"Yes,\" said Mr. Green, \"very fine.\" They went out.\n\nNobody came.\n\n\nThe end came soon.\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_data.write_tokenizer(folder, begin_of_text=True)
    return folder


@pytest.fixture()
def tokenizer(model):
    return Tokenizer.from_file(str(model / "tokenizer.json"))


@pytest.fixture()
def words(tmp_path):
    """Small assets: prose and names of both splits."""
    folder = tmp_path / "assets"
    folder.mkdir()
    for name, content in {"train.txt": TEXT, "eval.txt": "A ship came in. It was old. They went out. Who knows?",
                          "adjectives.train.txt": "red\nold\n", "adjectives.eval.txt": "blue\nnew\n",
                          "nouns.train.txt": "apple\ndog\n", "nouns.eval.txt": "pear\ncat\ndog\n"}.items():
        (folder / name).write_text(content)
    return folder


def run(command, model, out, *arguments):
    return prepare_data.main([command, "--tokenizer", str(model), "--out", str(out), *map(str, arguments)])


def recall_arguments(words):
    return ["--train-prose", words / "train.txt", "--eval-prose", words / "eval.txt", "--words", words]


def documents_of(folder):
    tokens, offsets = np.load(folder / "tokens.npy"), np.load(folder / "documents.npy")
    return [tokens[a:b].tolist() for a, b in zip(offsets, offsets[1:])]
