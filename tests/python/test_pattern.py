# SPDX-License-Identifier: MIT
"""prulong.Pattern: rounding, files, imports, refusals."""

import copy
import dataclasses
import json
import os
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prulong import ModelShape, Pattern, global_heads


def shape(layers, kv_heads):
    return ModelShape("llama", layers, kv_heads, 2 * kv_heads, 16)


def mask_of(scores, sparsity):
    return [int(value) for value in Pattern.from_scores(shape(1, len(scores)), [scores], sparsity, 0, 1).mask[0]]


VALID = {
    "format": "prulong-pattern",
    "version": 1,
    "model": {"type": "llama", "layers": 2, "kv_heads": 2, "query_heads": 4, "head_dim": 8},
    "sink": 4,
    "window": 32,
    "sparsity": 0.5,
    "mask": [[1, 0], [0, 1]],
    "scores": [[2.5, -1], [0.125, 3e2]],
    "provenance": {"seed": "7"},
}
VALID_TEXT = json.dumps(VALID)


# The same values as in tests/model/test_pattern.cpp.
@pytest.mark.parametrize(
    ("sparsity", "heads", "expected"),
    [
        (0, 90, 90),
        (1, 90, 0),
        (0.7, 90, 27),
        (0.7, 256, 77),
        (0.5, 5, 3),
        (0.1, 5, 5),
        (0.3, 5, 4),
        (0.9, 5, 0),
        (0.5, 1, 1),
        (0.75, 2, 1),
        (0.95, 90, 5),
        (0.25, 6, 5),
    ],
)
def test_rounding_is_to_nearest_with_halves_away_from_zero(sparsity, heads, expected):
    assert global_heads(sparsity, heads) == expected


def test_best_scores_stay_global_and_ties_go_to_the_earlier_head():
    assert mask_of([0.1, 3, -2, 0.5], 0.5) == [0, 1, 0, 1]
    assert mask_of([1, 1, 1, 1], 0.5) == [1, 1, 0, 0]
    assert mask_of([0, 1, 0.5, 1, 0.5], 0.4) == [0, 1, 1, 1, 0]
    assert mask_of([-0.0, 0.0], 0.5) == [1, 0]
    assert mask_of([5, 4], 0) == [1, 1]
    assert mask_of([5, 4], 1) == [0, 0]


def test_integers_of_numpy_are_integers(tmp_path):
    pattern = Pattern.from_scores(shape(1, 2), [[1, 2]], 0.5, np.int64(4), np.int32(32))
    pattern.save(tmp_path / "p.json")
    assert Pattern.load(tmp_path / "p.json") == pattern


@pytest.mark.parametrize(
    "values",
    [
        [[1, 0], [0, 1]],
        ((True, False), (False, True)),
        np.eye(2),
        np.eye(2, dtype=np.float32),
        np.eye(2, dtype=bool),
        torch.eye(2),
        torch.eye(2, dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor([1, 0]), torch.tensor([0, 1])],
        [[np.float32(1), np.int8(0)], [torch.tensor(0.0), np.bool_(True)]],
        (row for row in ([1, 0], [0, 1])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_matrices_of_any_kind_are_stored_as_tuples(values):
    values = list(values) if not hasattr(values, "tolist") else values
    pattern = Pattern(shape(2, 2), 4, 8, 0.5, values, values)
    assert pattern.scores == ((1.0, 0.0), (0.0, 1.0)) and pattern.mask == ((True, False), (False, True))
    assert {type(value) for row in pattern.scores for value in row} == {float}
    assert {type(value) for row in pattern.mask for value in row} == {bool}
    assert Pattern.from_scores(shape(2, 2), values, 0.5, 4, 8) == pattern


def test_a_pattern_is_a_plain_value(tmp_path):
    pattern = Pattern.from_scores(shape(1, 2), [[1, 2]], np.float32(0.5), np.int64(4), np.int32(8), {"seed": "7"})
    assert (type(pattern.sink), type(pattern.window), type(pattern.sparsity)) == (int, int, float)
    assert pickle.loads(pickle.dumps(pattern)) == pattern and copy.deepcopy(pattern) == pattern
    assert type(pattern) is Pattern and type(pattern.model) is ModelShape and type(pattern.provenance) is dict
    fields = "model sink window sparsity scores mask provenance".split()
    assert [field.name for field in dataclasses.fields(Pattern)] == fields
    assert dataclasses.asdict(pattern)["model"] == dataclasses.asdict(shape(1, 2))
    assert repr(pattern) == (
        "Pattern(model=ModelShape(type='llama', layers=1, kv_heads=2, query_heads=4, head_dim=16), sink=4, window=8, "
        "sparsity=0.5, scores=((1.0, 2.0),), mask=((False, True),), provenance={'seed': '7'})"
    )
    assert pattern != dataclasses.replace(pattern, provenance={})
    pattern.provenance["steps"] = 100  # an ordinary dict: what it holds is checked when it is used
    with pytest.raises(ValueError, match="the value of provenance 'steps' must be a text, found 100; use str()"):
        pattern.save(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_text_of_any_bytes_is_kept_and_paths_may_hold_them(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    pattern = Pattern.from_scores(shape(1, 1), [[1]], 0, 4, 8, {"data": folder.name})
    assert pattern.provenance["data"] == folder.name
    pattern.save(folder)
    assert Pattern.load(folder).provenance["data"] == "caf\ufffd"
    (folder / "pattern.json").write_text("{}")
    with pytest.raises(ValueError, match="not a pattern file") as error:
        Pattern.load(folder)
    assert str(folder).replace("\udce9", "\\xe9") in str(error.value)  # what does not print is escaped


def test_scores_may_be_a_tensor():
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    pattern = Pattern.from_scores(shape(2, 2), scores, 0.5, 4, 8)
    assert pattern.mask == ((False, False), (True, True))
    assert pattern.mask_tensor().tolist() == [[False, False], [True, True]]
    assert (pattern.heads, pattern.global_count, pattern.local_fraction) == (4, 2, 0.5)
    assert pattern.to_tsv() == "0.0\t0.0\n1.0\t1.0\n"
    assert str(pattern) == "layer  KV head 0 on the left; # global, . local\n    1  ##\n    0  ..\n"
    assert hash(pattern) == hash(dataclasses.replace(pattern))
    with pytest.raises(dataclasses.FrozenInstanceError):
        pattern.sink = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [[1, float("nan")], [0, 0]]}, "layer 0, head 1 is not a finite number"),
        ({"scores": [[1, float("inf")], [0, 0]]}, "not a finite number"),
        ({"scores": [[1, 2]]}, "expected scores of 2 layers x 2 KV heads, found 1 rows of 2"),
        ({"scores": [[1, 2], [3]]}, "found 2 rows of 1/2"),
        ({"scores": []}, "found 0 rows of 0"),
        ({"scores": [1, 2]}, r"expected scores as rows \(layers\) of values \(KV heads\).*, found 1"),
        ({"scores": torch.ones(4)}, "expected scores as rows"),
        ({"scores": torch.tensor(1.0)}, "expected scores as rows"),
        ({"scores": None}, "expected scores as rows .*, found None"),
        ({"scores": ["12", "34"]}, "expected scores as rows .*, found '12'"),
        ({"scores": np.zeros((2, 2, 1))}, r"layer 0, head 0 is not a finite number: \[0.0\]"),
        ({"scores": [[1, "2"], [3, 4]]}, "layer 0, head 1 is not a finite number: '2'"),
        ({"scores": [[1, None], [3, 4]]}, "layer 0, head 1 is not a finite number: None"),
        ({"scores": [[1, 10**400], [3, 4]]}, "layer 0, head 1 is not a finite number: 1000"),
        ({"sparsity": "0.5"}, "sparsity must be a number from 0 to 1, found '0.5'"),
        ({"provenance": ["x"]}, "provenance must be texts by key"),
        ({"sparsity": 1.5}, "sparsity must be from 0 to 1, found 1.5"),
        ({"sparsity": float("nan")}, "sparsity must be from 0 to 1"),
        ({"sink": -1}, "sink must be at least 0"),
        ({"window": 0}, "window must be at least 1"),
        ({"sink": 4.0}, "sink must be an integer below 2\\*\\*63, found 4.0"),
        ({"sink": True}, "sink must be an integer"),
        ({"window": 2**63}, "window must be an integer"),
        ({"model": ModelShape("llama", 2.0, 2, 4, 16)}, "layers must be an integer"),
        ({"model": ModelShape(5, 2, 2, 4, 16)}, "the model's type must be a text, found 5"),
        ({"provenance": {"steps": 100}}, "provenance 'steps' must be a text, found 100"),
        ({"provenance": {5: "x"}}, "provenance 5 must be a text"),
    ],
)
def test_from_scores_refuses_what_makes_no_mask(change, message):
    arguments = {"model": shape(2, 2), "scores": [[1, 2], [3, 4]], "sparsity": 0.5, "sink": 0, "window": 1} | change
    with pytest.raises(ValueError, match=message) as error:
        Pattern.from_scores(**arguments)
    assert "\n" not in str(error.value)


def test_a_saved_pattern_reads_back_exactly(tmp_path):
    generator = random.Random(3)
    scores = [[generator.gauss(0, 1) * 10 ** generator.gauss(0, 20) for _ in range(3)] for _ in range(4)]
    scores[0] = [0.1, -5e-324, 1.7976931348623157e308]
    pattern = Pattern.from_scores(shape(4, 3), scores, 0.7, 128, 1024, {"data": 'a "quoted"\n\u00e9', "seed": "42"})
    pattern.save(tmp_path / "new" / "folder")
    assert Pattern.load(tmp_path / "new" / "folder") == pattern
    assert Pattern.load(tmp_path / "new" / "folder" / "pattern.json") == pattern
    assert (tmp_path / "new" / "folder" / "masks.tsv").read_text() == pattern.to_tsv()
    assert sorted(os.listdir(tmp_path / "new")) == ["folder"]
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["masks.tsv", "pattern.json"]

    other = dataclasses.replace(pattern, window=7)
    other.save(tmp_path / "new" / "folder")
    assert Pattern.load(tmp_path / "new" / "folder") == other != pattern

    (tmp_path / "taken").write_text("text")
    with pytest.raises(ValueError, match="not a folder"):
        pattern.save(tmp_path / "taken")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"sink": 4', '"sinks": 4', 'unknown key "sinks"'),
        ('"sink": 4, ', "", '"sink" is missing; expected an integer of at least 0'),
        ('"sink": 4', '"sink": 4, "sink": 5', 'key "sink" stands there twice'),
        ('"sink": 4', '"sink": -1', '"sink" is -1; expected an integer of at least 0'),
        ('"sink": 4', '"sink": 4.0', '; expected an integer'),
        ('"sink": 4', '"sink": true', '; expected an integer'),
        ('"sink": 4', '"sink": 18446744073709551615', '; expected an integer'),
        ('"window": 32', '"window": 0', '"window" is 0; expected an integer of at least 1'),
        ("0.5", "1.5", '"sparsity" is 1.5; expected a number from 0 to 1'),
        ("0.5", "NaN", '"sparsity" is NaN; expected a number from 0 to 1'),
        ("[2.5, -1]", "[2.5, -Infinity]", r'"scores\[0\]\[1\]" is -Infinity; expected a finite number'),
        ('"version": 1', '"version": 2', '"version" is 2; this program reads version 1'),
        ('"version": 1', '"version": true', '"version" is '),
        ("prulong-pattern", "other", "not a pattern file"),
        ('"type": "llama"', '"type": ""', '"model.type" is '),
        ('"head_dim": 8', '"head_dim": 8, "rope": 1', 'unknown key "model.rope"'),
        ('"layers": 2', '"layers": 3', r'; expected 3 rows \(layers\) of 2'),
        ('"query_heads": 4', '"query_heads": 3', "query_heads 3 is not a multiple of kv_heads 2"),
        ("[1, 0]", "[1, 0, 1]", r'; expected 2 values'),
        ("[1, 0]", "[1, 2]", r'"mask\[0\]\[1\]" is 2; expected 0 or 1'),
        ("[1, 0]", "[1, false]", r'"mask\[0\]\[1\]" is false; expected 0 or 1'),
        ("[2.5, -1]", '[2.5, "x"]', r'"scores\[0\]\[1\]" is "x"; expected a finite number'),
        ("[2.5, -1]", "[2.5, 1e999]", "not valid JSON: a number out of range"),
        ("[2.5, -1]", "[2.5, " + "9" * 400 + "]", "not valid JSON: a number out of range"),
        ("[2.5, -1]", "[2.5, " + "9" * 5000 + "]", "not valid JSON"),
        ('{"seed": "7"}', "[]", '; expected an object'),
        ('"7"', "7", '"provenance.seed" is 7; expected a text'),
        ('"7"', '"', "not valid JSON"),
        ("[1, 0]", "[" * 100000, "nested deeper than 32 levels"),
    ],
)
def test_a_bad_file_is_refused_by_file_and_key(tmp_path, old, new, message):
    assert old in VALID_TEXT
    file = tmp_path / "bad.json"
    file.write_text(VALID_TEXT.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        Pattern.load(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_damaged_files_never_do_worse_than_a_refusal(tmp_path):
    file = tmp_path / "damaged.json"
    content = VALID_TEXT.encode()
    generator = random.Random(5)
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError):
            Pattern.load(file)
    for _ in range(500):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        file.write_bytes(damaged)
        try:
            Pattern.load(file)
        except ValueError:
            pass


def test_files_that_cannot_be_read_or_written_are_the_systems_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: there is no such file; check the path") as error:
        Pattern.load(tmp_path / "none")
    assert error.value.errno == 2
    with pytest.raises(FileNotFoundError, match="pattern.json: there is no such file"):
        Pattern.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="full_attention_heads.tsv"):
        Pattern.from_duo_attention(tmp_path, shape(1, 1), 0.5)
    pattern = Pattern.from_scores(shape(1, 1), [[1]], 0, 4, 8)
    with pytest.raises(FileNotFoundError, match="create its folder"):
        pattern.save_json(tmp_path / "none" / "p.json")
    with pytest.raises(IsADirectoryError):
        pattern.save_json(tmp_path)
    (tmp_path / "taken").write_text("text")
    with pytest.raises(NotADirectoryError):
        pattern.save(tmp_path / "taken" / "under")
    assert sorted(os.listdir(tmp_path)) == ["taken"]


def test_processes_may_save_one_folder_at_once(tmp_path):
    savers = []
    for head in range(3):
        scores = [[float(head == other) for other in range(4)]]
        pattern = Pattern.from_scores(shape(1, 4), scores, 0.75, 4, 8)
        savers.append(os.fork())
        if savers[-1] == 0:
            try:
                for _ in range(50):
                    pattern.save(tmp_path / "out")
            except BaseException:
                os._exit(1)
            os._exit(0)
    assert [os.waitpid(saver, 0)[1] for saver in savers] == [0, 0, 0]
    assert (tmp_path / "out" / "masks.tsv").read_text() == Pattern.load(tmp_path / "out").to_tsv()
    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["masks.tsv", "pattern.json"]


def test_a_pattern_for_another_model_is_refused_by_what_differs():
    pattern = Pattern.from_scores(shape(4, 2), [[1, 1]] * 4, 0, 4, 16)
    config = SimpleNamespace(
        model_type="llama",
        num_hidden_layers=4,
        num_key_value_heads=2,
        num_attention_heads=4,
        head_dim=16,
        hidden_size=8,
    )
    pattern.check_fits(config)
    for key, value, message in [
        ("model_type", "mistral", "type llama in the pattern, mistral in the model"),
        ("num_hidden_layers", 5, "layers 4 in the pattern, 5 in the model"),
        ("num_key_value_heads", 4, "kv_heads 2 in the pattern, 4 in the model"),
        ("num_key_value_heads", None, "kv_heads 2 in the pattern, 4 in the model"),
        ("num_attention_heads", 8, "query_heads 4 in the pattern, 8 in the model"),
        ("head_dim", 64, "head_dim 16 in the pattern, 64 in the model"),
        ("head_dim", None, "head_dim 16 in the pattern, 2 in the model"),
    ]:
        other = SimpleNamespace(**{**vars(config), key: value})
        with pytest.raises(ValueError, match=message):
            pattern.check_fits(other)


def test_duo_attention_folder(tmp_path):
    (tmp_path / "full_attention_heads.tsv").write_text(
        "-9.584426879882812500e-05\t5.585937500000000000e-01\n1.000000000000000000e+00\t0.000000000000000000e+00\n"
    )
    (tmp_path / "config.json").write_text('{"model_name": "x", "lr": 0.02, "sink_size": 128, "recent_size": 256}')
    pattern = Pattern.from_duo_attention(tmp_path, shape(2, 2), 0.5)
    assert pattern.scores == ((-9.5844268798828125e-05, 0.55859375), (1.0, 0.0))
    assert pattern.mask == ((False, True), (True, False))
    assert (pattern.sink, pattern.window, pattern.sparsity) == (128, 256, 0.5)
    assert pattern.provenance["source"] == f"DuoAttention folder {tmp_path.name}"
    assert Pattern.from_duo_attention(tmp_path, shape(2, 2), 0.5, sink=1, window=2).window == 2
    with pytest.raises(ValueError, match="2 rows of 2, but the model has 4 layers of 2 KV heads"):
        Pattern.from_duo_attention(tmp_path, shape(4, 2), 0.5)
    (tmp_path / "config.json").write_text('{"sink_size": 128, "loss": NaN, "recent_size": 256}')  # as Python writes it
    assert Pattern.from_duo_attention(tmp_path, shape(2, 2), 0.5).window == 256
    (tmp_path / "config.json").write_text('{"sink_size": 128, "recent_size": NaN}')
    with pytest.raises(ValueError, match='"recent_size" is NaN; expected an integer of at least 1'):
        Pattern.from_duo_attention(tmp_path, shape(2, 2), 0.5)
    (tmp_path / "config.json").write_text('{"sink_size": 128}')
    with pytest.raises(ValueError, match='"recent_size" is missing'):
        Pattern.from_duo_attention(tmp_path, shape(2, 2), 0.5)


def test_table_of_zeros_and_ones(tmp_path):
    file = tmp_path / "masks.tsv"
    file.write_bytes(b"1.0\t0.0\r\n0.0\t0\r\n1\t1.0\r\n\r\n")
    pattern = Pattern.from_tsv(file, shape(3, 2), 128, 1024)
    assert pattern.mask == ((True, False), (False, False), (True, True))
    assert pattern.sparsity == 0.5
    assert Pattern.from_tsv(file, shape(3, 2), 128, 1024, 0.5).mask == pattern.mask
    with pytest.raises(ValueError, match="tells 3 of 6 heads from the others, and sparsity 0.3 keeps 4"):
        Pattern.from_tsv(file, shape(3, 2), 128, 1024, 0.3)
    file.write_text("1e-400\t-1e-9999\n1\t0\n0\t1\n")
    assert Pattern.from_tsv(file, shape(3, 2), 128, 1024).mask == ((False, False), (True, False), (False, True))
    file.write_text("0.5\t0.25\n")
    with pytest.raises(ValueError, match="a score per head, not a mask"):
        Pattern.from_tsv(file, shape(1, 2), 128, 1024)
    for content, message in [
        ("", "an empty table"),
        ("1\t0\n1\n", ":2: 1 columns"),
        ("1\t0\n\n1\t0\n", ":2: expected numbers, found an empty row"),
        ("1\t0\n1\tx\n", ":2: expected a finite number, found 'x'"),
        ("1 0\n1 0\n", ":1: expected a finite number, found '1 0'"),
        ("nan\t0\n1\t0\n", ":1: expected a finite number"),
        ("1_0\t0\n1\t0\n", ":1: expected a finite number"),
        ("1\t0\n1\t1e999\n", ":2: expected a finite number"),
    ]:
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            Pattern.from_tsv(file, shape(2, 2), 1, 1)
