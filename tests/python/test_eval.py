# SPDX-License-Identifier: MIT
"""prulong-eval on a tiny random Llama and tiny synthetic data, driven as a user would."""

import json
import os
import subprocess

import pytest
import yaml

import ranks
from prulong import ModelShape, Pattern
from tiny_world import KV_HEADS, LAYERS, tiny_model

SHAPE = ModelShape("llama", LAYERS, KV_HEADS, 4, 16)
SINK, WINDOW, SEQ_LEN, SEQUENCES, QUESTIONS = 4, 16, 160, 3, 2


@pytest.fixture
def compare(bin_folder, world, tmp_path):
    """Runs prulong-eval on a list of methods; returns the JSON's methods by label, or standard error if it fails."""
    config = tmp_path / "eval.yaml"
    config.write_text(f"""
model: {{path: {world}/model, dtype: float32}}
attention: {{sink: {SINK}, window: {WINDOW}}}
data:
  - {{type: recall, path: {world}/kit, tasks: [codes], statements: 2, questions: {QUESTIONS}}}
seq_len: {SEQ_LEN}
sequences: {SEQUENCES}
methods:
  - {{type: full}}
out: {tmp_path}/results.json
""")

    def run(*overrides, methods=None, code=0, command=config, count=1):
        if methods:
            overrides = (*overrides, f"methods={json.dumps(methods)}")
        (tmp_path / "results.json").unlink(missing_ok=True)
        program = [bin_folder / "prulong-eval", command, *overrides]
        result = subprocess.run(program if count == 1 else ranks.command(count, *program), capture_output=True, text=True,
                                env=dict(os.environ, OMP_NUM_THREADS="1"), cwd=tmp_path)
        assert result.returncode == code, result.stdout + result.stderr
        if code != 0:
            assert result.stdout == "" and not (tmp_path / "results.json").exists()
            assert result.stderr.startswith("prulong-eval: ") and result.stderr.count("\n") == 1, result.stderr
            return result.stderr
        run.table = result.stdout
        run.report = json.loads((tmp_path / "results.json").read_text())
        return {method["label"]: method for method in run.report["methods"]}

    return run


def save_pattern(folder, scores, sparsity, shape=SHAPE):
    Pattern.from_scores(shape, scores, sparsity, sink=SINK, window=WINDOW).save(folder)
    return str(folder)


def test_full_attention_is_a_pattern_of_global_heads(compare, tmp_path):
    zeros = [[0.0] * KV_HEADS] * LAYERS
    everything = save_pattern(tmp_path / "global", zeros, 0.0)
    nothing = save_pattern(tmp_path / "none", zeros, 1.0)
    rows = compare(methods=[{"type": "full"}, {"type": "pattern", "path": everything, "label": "all global"},
                            {"type": "local"}, {"type": "pattern", "path": nothing, "label": "none global"}])
    for one, other in (("full attention", "all global"), ("all heads local", "none global")):
        a, b = rows[one], rows[other]
        assert a["local_fraction"] == b["local_fraction"] and a["kv_kept"] == b["kv_kept"]
        assert a["answer_accuracy"] == b["answer_accuracy"] and a["answer_exact"] == b["answer_exact"]
        assert a["masks"][0]["answer_loss_nats"] == pytest.approx(b["masks"][0]["answer_loss_nats"], rel=1e-5)
    full, local = rows["full attention"]["masks"][0], rows["all heads local"]["masks"][0]
    assert abs(full["answer_loss_nats"] - local["answer_loss_nats"]) > 1e-5
    assert rows["full attention"]["kv_kept"] == 1
    assert rows["all heads local"]["kv_kept"] == pytest.approx((SINK + WINDOW) / SEQ_LEN)


def test_every_method_is_measured_on_the_same_answers(compare):
    rows = compare(methods=[{"type": "full"}, {"type": "local"}, {"type": "random", "sparsity": 0.5, "count": 2}])
    masks = [mask for row in rows.values() for mask in row["masks"]]
    assert len(masks) == 4
    assert {mask["answers"] for mask in masks} == {SEQUENCES * QUESTIONS}
    assert len({mask["answer_tokens"] for mask in masks}) == 1 and masks[0]["answer_tokens"] > SEQUENCES * QUESTIONS
    for mask in masks:
        assert 0 <= mask["answer_exact"] <= mask["answer_accuracy"] <= 1
        right = mask["answer_accuracy"] * mask["answer_tokens"]
        assert right == pytest.approx(round(right))
    assert compare("sequences=1")["full attention"]["masks"][0]["answers"] == QUESTIONS


def test_random_masks_come_from_their_seed(compare):
    random = {"type": "random", "sparsity": 0.5, "count": 4}
    def losses(**changes):
        (row,) = compare(methods=[random | changes]).values()
        assert row["local_fraction"] == 0.5 and len(row["masks"]) == row.get("count", len(row["masks"]))
        return [mask["answer_loss_nats"] for mask in row["masks"]]
    first = losses(seed=1)
    assert len(set(first)) > 1  # masks differ from each other
    assert losses(seed=1) == first
    assert losses(seed=1, count=2) == first[:2]
    assert losses(seed=2) != first


def test_a_pattern_is_rounded_anew(compare, tmp_path):
    scores = [[float(layer + LAYERS * head) for head in range(KV_HEADS)] for layer in range(LAYERS)]
    path = save_pattern(tmp_path / "pattern", scores, 0.5)
    third = save_pattern(tmp_path / "third", scores, 1 / 3)
    rows = compare(methods=[{"type": "pattern", "path": path, "label": "own"},
                            {"type": "pattern", "path": path, "label": "anew", "sparsity": 1 / 3},
                            {"type": "pattern", "path": third, "label": "third"}])
    assert rows["own"]["local_fraction"] == 0.5
    assert rows["anew"]["local_fraction"] == pytest.approx(1 / 3)
    assert rows["anew"]["masks"] == rows["third"]["masks"] != rows["own"]["masks"]


def test_table_and_json_say_the_same(compare):
    rows = compare(methods=[{"type": "full"}, {"type": "random", "sparsity": 0.5, "count": 3, "label": "dice"}])
    lines = compare.table.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["method", "full attention", "dice"]
    assert f"{100 * rows['full attention']['answer_accuracy']:.1f} %" in lines[1] and lines[1].endswith("100.0 %")
    dice = [mask["answer_accuracy"] for mask in rows["dice"]["masks"]]
    assert rows["dice"]["answer_accuracy"] == pytest.approx(sum(dice) / 3)
    assert f"{100 * sum(dice) / 3:.1f} % ({100 * min(dice):.1f} to {100 * max(dice):.1f})" in lines[2]
    assert lines[2].endswith(f"{100 * rows['dice']['kv_kept']:.1f} %")
    report = compare.report
    assert report["sequences"] == SEQUENCES and report["seq_len"] == SEQ_LEN and report["model"].endswith("/model")
    assert report["device"] == "cpu" and report["dtype"] == "float32"
    assert report["machine"]["threads"] == "1" and report["machine"]["cpu"]
    assert {"prulong", "torch", "commit"} <= report["versions"].keys()
    assert yaml.safe_load(report["config"])["methods"][1] == {"type": "random", "label": "dice", "sparsity": 0.5,
                                                              "count": 3, "seed": 0}


def test_an_override_with_commas_is_one_argument(compare, world):
    plain = compare()["full attention"]["masks"]
    both = compare("data.0.tasks=[passkey, codes]", "sequences=8")["full attention"]["masks"][0]
    assert yaml.safe_load(compare.report["config"])["data"][0]["tasks"] == ["passkey", "codes"]
    assert 8 < both["answers"] < 16  # a passkey is one answer, codes are two
    item = f"{{type: recall, path: {world}/kit, statements: 2, questions: 2}}"
    assert compare(f"data.0={item}")["full attention"]["masks"] == plain


@pytest.mark.parametrize("overrides, code, expected", [
    (["methods.0.type=fulll"], 2, "expected full, local, pattern or random"),
    (["methods.0.typ=full"], 2, "methods[].type"),
    (["methods=[]"], 2, "at least one method"),
    (["methods.0.type=random"], 2, "methods.0.sparsity: expected a number in [0, 1]"),
    (["data=[{type: tokens, path: tokens}]"], 2, "expected recall"),
    (["data=[]"], 2, "at least one source"),
    (["data.0.questions=3"], 2, "at most statements"),
    (["sequences=0"], 2, "sequences"),
    (["data.0.statements=60"], 2, "statements"),
    (["seq_len=20"], 2, "seq_len 20 is too short"),
    (["model.path=nowhere"], 1, "nowhere"),
    (["data.0.path=nowhere"], 1, "nowhere"),
    (["methods.0={type: pattern, path: nowhere}"], 1, "nowhere"),
    (["out=nowhere/results.json"], 1, "nowhere/results.json"),
    (["nonsense"], 2, "key=value"),
])
def test_bad_configurations_end_with_one_line(compare, overrides, code, expected):
    assert expected in compare(*overrides, code=code)


def test_files_that_do_not_fit_are_refused(compare, tmp_path):
    other = ModelShape("llama", LAYERS + 1, KV_HEADS, 4, 16)
    path = save_pattern(tmp_path / "other", [[0.0] * KV_HEADS] * (LAYERS + 1), 0.5, other)
    assert "layers" in compare(methods=[{"type": "full"}, {"type": "pattern", "path": path}], code=1)
    tiny_model(vocab_size=300).save_pretrained(tmp_path / "small")
    assert "vocabulary of 400 tokens, the model has 300" in compare(f"model.path={tmp_path}/small", code=1)
    (tmp_path / "bad.yaml").write_text("model: {path: x}\nsequence: 3\n")
    assert "bad.yaml:2" in compare(code=2, command=tmp_path / "bad.yaml")
    assert "missing.yaml" in compare(code=2, command=tmp_path / "missing.yaml")


def test_help_and_version(bin_folder):
    def run(*arguments):
        return subprocess.run([bin_folder / "prulong-eval", *arguments], capture_output=True, text=True)
    text = run("--help").stdout
    assert "configs/eval.md" in text and "Exit status" in text
    assert run("--version").stdout.startswith("prulong ")
    result = run()
    assert result.returncode == 2 and "expected CONFIG.yaml" in result.stderr and result.stderr.count("\n") == 1


def test_ranks_share_the_sequences(compare):
    methods = [{"type": "full"}, {"type": "random", "sparsity": 0.5, "count": 2}]
    alone, table = compare(methods=methods), compare.table
    for count in (2, 4):  # one of four has nothing to do
        assert compare(methods=methods, count=count) == alone
        assert compare.table == table
