# SPDX-License-Identifier: MIT
"""prulong-export, driven as a user would; its files are read back through Python."""

import json
import os
import random
import subprocess

import pytest

from prulong import ModelShape, Pattern

SHAPE = ModelShape("llama", 4, 2, 4, 8)


@pytest.fixture
def export(bin_folder, tmp_path):
    def run(*arguments, code=0):
        result = subprocess.run(
            [bin_folder / "prulong-export", *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path
        )
        assert result.returncode == code, result.stdout + result.stderr
        if code == 0:
            assert result.stderr == ""
            return result.stdout
        assert result.stdout == ""
        assert result.stderr.startswith("prulong-export: ") and result.stderr.count("\n") == 1
        return result.stderr

    return run


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": SHAPE.layers,
        "num_attention_heads": SHAPE.query_heads,
        "num_key_value_heads": SHAPE.kv_heads,
        "head_dim": SHAPE.head_dim,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def run_folder(tmp_path):
    """A training run as the trainer leaves it, as far as export cares."""
    generator = random.Random(1)
    scores = [[generator.gauss(0, 3) for _ in range(2)] for _ in range(4)]
    run = tmp_path / "run"
    run.mkdir()
    Pattern.from_scores(SHAPE, scores, 0.5, 4, 16, {"seed": "1", "data": "\u00e9t\u00e9"}).save(run)
    (run / "metrics.jsonl").write_text("")
    return run


def test_help_names_every_option(export):
    text = export("--help")
    for word in ("INPUT", "--out", "--sparsity", "--model", "--sink", "--window", "--help", "--version", "Exit status"):
        assert word in text


def test_a_run_exports_at_its_own_and_any_other_sparsity(export, run_folder, tmp_path):
    trained = Pattern.load(run_folder / "pattern.json")
    text = export(run_folder, "--out", "same")
    assert "training run, pattern.json" in text and "0.5 asked, 0.5 reached: 4 of 8 heads are local" in text
    assert str(trained) in text
    assert Pattern.load(tmp_path / "same") == trained
    assert (tmp_path / "same" / "masks.tsv").read_text() == trained.to_tsv()
    for sparsity in (0, 0.1, 0.3, 0.75, 0.9, 1):
        out = f"at{sparsity}"
        export(run_folder, "--sparsity", sparsity, "--out", out)
        expected = Pattern.from_scores(
            SHAPE, trained.scores, sparsity, trained.sink, trained.window, trained.provenance
        )
        assert Pattern.load(tmp_path / out) == expected
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("at")) == [
        "at0",
        "at0.1",
        "at0.3",
        "at0.75",
        "at0.9",
        "at1",
    ]


def test_python_reads_what_the_program_wrote_and_back(export, run_folder, tmp_path):
    export(run_folder, "--out", "first")
    Pattern.load(tmp_path / "first").save(tmp_path / "second")
    export(tmp_path / "second", "--out", "third")
    export(tmp_path / "second" / "pattern.json", "--out", "fourth")
    for name in ("pattern.json", "masks.tsv"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "third" / name).read_bytes()
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "fourth" / name).read_bytes()


def test_without_out_nothing_is_written(export, run_folder, tmp_path):
    before = sorted(os.listdir(tmp_path))
    assert "wrote      nothing" in export(run_folder)
    assert sorted(os.listdir(tmp_path)) == before


def test_sink_and_window_can_be_changed_and_that_is_recorded(export, run_folder, tmp_path):
    export(run_folder, "--window", 8, "--sink", 4, "--out", "changed")
    changed = Pattern.load(tmp_path / "changed")
    assert (changed.sink, changed.window) == (4, 8)
    assert changed.provenance["window_changed_at_export"] == "from 16"
    assert "sink_changed_at_export" not in changed.provenance


def test_duo_attention_folder(export, model, tmp_path):
    duo = tmp_path / "duo"
    duo.mkdir()
    rows = [[0.5, 1.0], [-1e-4, 1.0], [0.25, 1.0], [0.75, 0.0]]
    (duo / "full_attention_heads.tsv").write_text("".join("\t".join(f"{x:.18e}" for x in row) + "\n" for row in rows))
    (duo / "config.json").write_text('{"sink_size": 128, "recent_size": 256, "lr": 0.02}')
    text = export(duo, "--model", model, "--sparsity", 0.5, "--out", "out")
    assert "DuoAttention folder" in text and "sink 128, window 256" in text
    assert Pattern.load(tmp_path / "out") == Pattern.from_duo_attention(duo, SHAPE, 0.5)

    assert "3 heads tie at the cut with score 1; 2 of them stay global" in export(
        duo, "--model", model, "--sparsity", 0.75
    )
    assert "--model" in export(duo, "--sparsity", 0.5, code=2)
    assert "a score per head, not a mask" in export(duo, "--model", model, code=2)
    (duo / "full_attention_heads.tsv").write_text("1\t0\n")
    assert "1 rows of 2, but the model has 4 layers" in export(duo, "--model", model, "--sparsity", 0.5, code=1)


def test_table(export, model, tmp_path):
    table = tmp_path / "masks_sp0.5.tsv"
    table.write_text("1.0\t0.0\n0.0\t0.0\n1.0\t1.0\n0.0\t1.0\n")
    sizes = ("--sink", 128, "--window", 1024)
    export(table, "--model", model, *sizes, "--out", "out")
    expected = Pattern.from_tsv(table, SHAPE, 128, 1024)
    assert Pattern.load(tmp_path / "out") == expected
    export(table, "--model", model, *sizes, "--sparsity", 0.5, "--out", "again")
    assert Pattern.load(tmp_path / "again") == expected
    assert "a mask, not a ranking" in export(table, "--model", model, *sizes, "--sparsity", 0.75, code=1)
    # The same holds for a pattern made of that table.
    assert "a mask, not a ranking" in export("out", "--sparsity", 0.25, "--out", "no", code=1)
    assert not (tmp_path / "no").exists()
    export("out", "--sparsity", 0)  # all or none needs no ranking
    assert "--sink and --window" in export(table, "--model", model, "--sink", 4, code=2)
    table.write_text("1.0\t0.0\n0.0\n")
    assert "masks_sp0.5.tsv:2: 1 columns" in export(table, "--model", model, *sizes, code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no INPUT"),
        (("a", "b"), "'b' is one too many"),
        (("run", "--sparsty", "0.5"), "sparsty"),
        (("run", "--sparsity", "0.5x"), "--sparsity: expected a number, found '0.5x'"),
        (("run", "--sparsity", "1.5"), "--sparsity: expected a number from 0 to 1, found 1.5"),
        (("run", "--sparsity", "nan"), "--sparsity: expected a number from 0 to 1"),
        (("run", "--sink=-1"), "--sink: expected at least 0, found -1"),
        (("run", "--window", "0"), "--window: expected at least 1, found 0"),
        (("run", "--window", "1.5"), "--window: expected an integer, found '1.5'"),
        (("run", "--out", ""), "--out"),
        (("run", "--out"), "out"),
        (("run", "--out", "./run/"), "is or holds the input itself"),
        (("run/pattern.json", "--out", "run"), "is or holds the input itself"),
    ],
)
def test_a_wrong_command_line_exits_with_2(export, run_folder, arguments, message):
    assert message in export(*arguments, code=2)


def test_bad_files_exit_with_1(export, run_folder, model, tmp_path):
    assert "no such file or folder" in export("absent", code=1)
    (tmp_path / "empty").mkdir()
    assert "holds no pattern.json" in export("empty", code=1)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    assert "layers 4 in the pattern, 5 in the model" in export(run_folder, "--model", model, code=1)
    assert "taken" in export(run_folder, "--out", _file(tmp_path / "taken"), code=1)
    damaged = (run_folder / "pattern.json").read_text().replace('"window": 16', '"window": 0')
    (run_folder / "pattern.json").write_text(damaged)
    assert 'pattern.json: "window" is 0; expected an integer of at least 1' in export(run_folder, "--out", "no", code=1)
    assert not (tmp_path / "no").exists()


def _file(path):
    path.write_text("text")
    return path
