# SPDX-License-Identifier: MIT
"""No program writes onto one of its inputs, whatever name leads there, nor puts a file where a folder is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prulong import ModelShape, Pattern
from tiny_world import KV_HEADS, LAYERS, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench_record  # noqa: E402

SHAPE = ModelShape("llama", LAYERS, KV_HEADS, 4, 16)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def place(world, tmp_path):
    """A copy of the tiny world with a pattern and configurations in it, to try to destroy."""
    folder = tmp_path / "place"
    shutil.copytree(world, folder)
    Pattern.from_scores(SHAPE, [[float(3 * i + j) for j in range(KV_HEADS)] for i in range(LAYERS)], 0.5, 4, 16).save(
        folder / "pattern")
    source = "tasks: [codes], statements: 2, questions: 2"
    (folder / "train.yaml").write_text(f"""# my own words
model: {{path: {folder}/model, dtype: float32}}
attention: {{sink: 4, window: 16}}
train: {{steps: 1, seq_len: 160, sequences_per_step: 1}}
data:
  train: [{{type: tokens, path: {folder}/tokens}}, {{type: recall, path: {folder}/kit, {source}}}]
gates: {{pattern: {folder}/pattern}}
run: {{dir: {folder}/run}}
""")
    (folder / "eval.yaml").write_text(f"""# my own words
model: {{path: {folder}/model, dtype: float32}}
data: [{{type: recall, path: {folder}/kit, {source}}}]
seq_len: 160
sequences: 1
methods: [{{type: pattern, path: {folder}/pattern}}]
""")
    return folder


@pytest.fixture
def refused(bin_folder, place):
    """Runs a program and expects one line of refusal, exit status 2 (of a bad configuration), and nothing changed."""
    def check(message, program, *arguments, code=2):
        before = contents(place)
        result = subprocess.run([bin_folder / program, *map(str, arguments)], capture_output=True, text=True,
                                env=dict(os.environ, OMP_NUM_THREADS="1"))
        assert result.returncode == code, result.stdout + result.stderr
        assert message in result.stderr and result.stderr.count("\n") == 1
        assert contents(place) == before
    return check


@pytest.mark.parametrize("name", ["eval.yaml", "model/config.json", "model/model.safetensors", "model/tokenizer.json",
                                  "kit/kit.json", "kit/tokens.npy", "kit/offsets.npy", "pattern/pattern.json"])
def test_results_do_not_replace_what_was_read(refused, place, name):
    target = place / name
    os.link(target, place / "hard")
    (place / "soft").symlink_to(target)
    for out in (target, place / "hard", place / "soft", place / "model" / ".." / name):
        refused(f"out: would write onto {out}, which is the input", "prulong-eval", place / "eval.yaml", f"out={out}")


def test_results_are_a_file(refused, place):
    refused("a folder; name a file for out", "prulong-eval", place / "eval.yaml", f"out={place}/kit", code=1)
    os.mkfifo(place / "pipe")
    refused("a folder, a pipe or a device; name another place", "prulong-eval", place / "eval.yaml", f"out={place}/pipe")


def test_results_beside_inputs_are_written_again_and_again(bin_folder, place):
    for out in ("model/results.json", "kit/results.json", "pattern/results.json"):
        for _ in range(2):
            subprocess.run([bin_folder / "prulong-eval", place / "eval.yaml", f"out={place}/{out}"], check=True,
                           capture_output=True)


@pytest.mark.parametrize("name, key", [
    ("config.yaml", "train.yaml"), ("run.json", "model/config.json"), ("metrics.jsonl", "tokens/data.json"),
    ("log.txt", "kit/kit.json"), ("pattern.json", "pattern/pattern.json"), ("masks.tsv", "tokens/tokens.npy"),
    ("model/config.json", "model/config.json"), ("checkpoints/step-00000001.json", "kit/tokens.npy"),
])
def test_a_run_does_not_write_onto_what_it_reads(refused, place, name, key):
    (place / "run" / name).parent.mkdir(parents=True)
    os.link(place / key, place / "run" / name)
    message = f"run.dir: would write onto {place}/run/{name}, which is the input {place}/{key}"
    refused(message, "prulong-train", place / "train.yaml")
    refused(f"which is the input {place}/{key}", "prulong-train", place / "train.yaml",
            f"run.dir={place}/kit/../run")


def test_a_run_beside_its_configuration_keeps_that(bin_folder, refused, place):
    shutil.copy(place / "train.yaml", place / "config.yaml")
    refused(f"which is the input {place}/config.yaml", "prulong-train", place / "config.yaml", f"run.dir={place}")
    subprocess.run([bin_folder / "prulong-train", place / "train.yaml"], check=True, capture_output=True)
    written = (place / "run" / "config.yaml").read_text()
    # The run's own configuration goes on with it, for it stays as it is; changed, it would not.
    for _ in range(2):
        subprocess.run([bin_folder / "prulong-train", place / "run" / "config.yaml"], check=True, capture_output=True)
        assert (place / "run" / "config.yaml").read_text() == written
    refused(f"which is the input {place}/run/config.yaml", "prulong-train", place / "run" / "config.yaml",
            "checkpoint.keep=7")


def test_a_run_from_a_pattern_or_model_in_its_folder_is_refused(refused, place):
    shutil.copytree(place / "pattern", place / "run")
    refused("which is the input", "prulong-train", place / "train.yaml", f"gates.pattern={place}/run")
    (place / "run" / "checkpoints").mkdir()
    shutil.copy(place / "run" / "pattern.json", place / "run" / "checkpoints" / "step-00000001.json")
    refused("which is the input", "prulong-train", place / "train.yaml",
            f"gates.pattern={place}/run/checkpoints/step-00000001.json")
    shutil.copytree(place / "model", place / "run" / "model")
    refused("which is the input", "prulong-train", place / "train.yaml", f"model.path={place}/run/model")


@pytest.mark.parametrize("name, make, message, code", [
    ("pattern.json", Path.mkdir, "a file is to be written to", 2), ("config.yaml", Path.mkdir, "a file is to be", 2),
    ("checkpoints", Path.touch, "holds a file checkpoints, where a folder will be written", 1),
    ("model", Path.touch, "holds a file model, where a folder will be written", 1),
    (".", lambda run: (run.rmdir(), run.touch()), "run: cannot be created", 1),
])
def test_files_and_folders_do_not_take_each_others_place(refused, place, name, make, message, code):
    (place / "run").mkdir()
    make(place / "run" / name)
    refused(message, "prulong-train", place / "train.yaml", code=code)


def test_an_export_keeps_its_input(refused, place):
    pattern = place / "pattern"
    for out in (pattern, place / "kit" / ".." / "pattern"):
        for source in (pattern, pattern / "pattern.json", place / "kit" / ".." / "pattern"):
            refused("is or holds the input itself", "prulong-export", source, "--out", out)
    for written in ("pattern.json", "masks.tsv"):
        for source in ("pattern/pattern.json", "model/config.json"):
            out = place / f"out-{written}-{Path(source).parent}"
            out.mkdir()
            os.link(place / source, out / written)
            refused(f"--out: would write onto {out}/{written}, which is the input {place}/{source}", "prulong-export",
                    pattern, "--model", place / "model", "--out", out)
    shutil.copytree(pattern, place / "table")
    table = place / "table" / "masks.tsv"
    common = [table, "--model", place / "model", "--sink", 4, "--window", 16]
    refused("is or holds the input itself", "prulong-export", *common, "--out", place / "table")
    (place / "folder" / "masks.tsv").mkdir(parents=True)
    refused("a folder, a pipe or a device", "prulong-export", *common, "--out", place / "folder")


def script(name, *arguments):
    return subprocess.run([sys.executable, ROOT / name, *map(str, arguments)], capture_output=True, text=True)


def test_a_picture_does_not_replace_what_it_shows(place):
    (place / "results.json").write_text(json.dumps({"methods": [], "seq_len": 1}))
    (place / "pattern" / "link.png").symlink_to("pattern.json")
    for out in ("pattern/pattern.json", "pattern/link.png", "results.json", "kit/../results.json"):
        before = contents(place)
        result = script("scripts/plot_demo.py", place / "pattern" / "pattern.json", place / "results.json", place / out)
        assert result.returncode == 1 and "is the input" in result.stderr and result.stderr.count("\n") == 1
        assert contents(place) == before


BENCHMARKS = [path for path in (ROOT / "benchmarks").glob("bench_*.py") if '"--out"' in path.read_text()]


def test_every_benchmark_checks_where_it_writes():
    assert len(BENCHMARKS) >= 7
    for path in BENCHMARKS:
        assert '"--out", type=bench_record.output' in path.read_text(), path


@pytest.mark.parametrize("name", ["bench_data.py", "bench_kernels.py"])  # the others load much before they read arguments
def test_a_benchmark_replaces_its_own_results_only(place, name):
    (place / "notes.txt").write_text("mine")
    (place / "list.json").write_text("[1]")
    (place / "link.json").symlink_to("model/config.json")
    for out in ("model/config.json", "kit/kit.json", "link.json", "list.json", "notes.txt", "model", "new.png"):
        before = contents(place)
        result = script(f"benchmarks/{name}", "--out", place / out)
        assert result.returncode == 2 and str(place / out) in result.stderr
        assert contents(place) == before


def test_a_benchmark_writes_again_over_what_it_wrote(tmp_path):
    out = bench_record.output(str(tmp_path / "new.json"))
    for content in ({"command": "", "commit": "", "hardware": {}, "x": 1},
                    {"runs": [{"command": "", "commit": "", "hardware": {}}]}):
        out.write_text(json.dumps(content))
        assert bench_record.output(str(out)) == out
