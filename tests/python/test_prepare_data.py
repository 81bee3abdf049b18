# SPDX-License-Identifier: MIT
"""scripts/prepare_data.py on tiny inputs, good and bad, with a tokenizer made here."""

import hashlib
import json
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers

from prepare_program import (ROOT, TEXT, documents_of, model, recall, recall_arguments, run, shared, text_module,  # noqa: F401
                             tokenizer, words, writers)

# ruff: noqa: F811 (fixtures)


@pytest.mark.parametrize("split, expected", [
    ("file", [TEXT.strip("\n")]),
    ("block", [block.strip("\n") for block in re.split("\n\n+", TEXT)]),
    ("line", [line for line in TEXT.splitlines() if line]),
])
def test_text_becomes_documents(model, tokenizer, tmp_path, split, expected):
    (tmp_path / "book.txt").write_text(TEXT)
    assert run("text", model, tmp_path / "out", tmp_path / "book.txt", "--split", split) == 0
    documents = documents_of(tmp_path / "out")
    assert documents == [tokenizer.encode(text).ids for text in expected]
    assert [tokenizer.decode(d) for d in documents] == expected
    data = json.loads((tmp_path / "out" / "data.json").read_text())
    assert data["format"] == "prulong-tokens" and data["version"] == 1 and data["vocab_size"] == 400
    assert data["documents"] == len(expected) and data["tokens"] == sum(map(len, documents))
    assert data["tokenizer"]["name"] == "tiny"
    for name, digest in data["sha256"].items():
        assert shared.sha256_of(tmp_path / "out" / name) == digest
    assert np.load(tmp_path / "out" / "tokens.npy").dtype == np.uint16
    assert np.load(tmp_path / "out" / "documents.npy").dtype == np.int64


def test_folders_are_read_in_order_and_a_byte_order_mark_is_dropped(model, tokenizer, tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "b.txt").write_text("second")
    (tmp_path / "in" / "a.txt").write_bytes(b"\xef\xbb\xbffirst")
    (tmp_path / "in" / "sub" / "c.txt").write_text("third \u00e9")
    (tmp_path / "in" / "empty.txt").write_text("\n \n")
    (tmp_path / "in" / "note.md").write_text("not a text file")
    assert run("text", model, tmp_path / "out", tmp_path / "in") == 0
    assert [tokenizer.decode(d) for d in documents_of(tmp_path / "out")] == ["first", "second", "third \u00e9"]
    sources = json.loads((tmp_path / "out" / "data.json").read_text())["inputs"]["sources"]
    assert [source["name"] for source in sources] == ["a.txt", "b.txt", "empty.txt", "sub/c.txt"]


def test_text_longer_than_a_batch_and_a_saved_length_limit_change_nothing(model, tokenizer, tmp_path, monkeypatch):
    limited = tmp_path / "limited"
    limited.mkdir()
    copy = Tokenizer.from_file(str(model / "tokenizer.json"))
    copy.enable_truncation(5)
    copy.enable_padding(length=50)
    copy.save(str(limited / "tokenizer.json"))
    monkeypatch.setattr(text_module, "BATCH_BYTES", 30)
    (tmp_path / "book.txt").write_text(TEXT)
    assert run("text", limited, tmp_path / "out", tmp_path / "book.txt", "--split", "block") == 0
    blocks = [block.strip("\n") for block in re.split("\n\n+", TEXT)]
    assert documents_of(tmp_path / "out") == [tokenizer.encode(text).ids for text in blocks]


def test_large_vocabularies_take_four_bytes():
    assert shared.token_dtype(65536) == np.uint16
    assert shared.token_dtype(65537) == np.uint32


def test_a_second_run_is_free_and_other_data_is_not_overwritten(model, tmp_path, capsys):
    book, out = tmp_path / "book.txt", tmp_path / "out"
    book.write_text(TEXT)
    assert run("text", model, out, book) == 0
    written = (out / "tokens.npy").stat().st_mtime_ns
    assert run("text", model, out, book) == 0
    assert "up to date" in capsys.readouterr().out
    assert (out / "tokens.npy").stat().st_mtime_ns == written
    book.write_text("Something else.")
    assert run("text", model, out, book) == 1
    assert "exists and holds other data" in capsys.readouterr().err
    assert run("text", model, out, book, "--overwrite") == 0
    assert json.loads((out / "data.json").read_text())["documents"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["book.txt", "out"]  # no temporary folder is left


@pytest.mark.parametrize("name, content, message", [
    ("bad.txt", b"fine \xff", "bad.txt: byte 5 is not UTF-8"),
    ("blank.txt", b"\n\n", "no text in the input"),
    ("folder/x.md", b"text", "folder: no .txt or .jsonl file in this folder"),
    (None, None, "missing: no such file or folder"),
])
def test_bad_text_is_refused_and_nothing_is_left(model, tmp_path, capsys, name, content, message):
    source = tmp_path / "missing"
    if name:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
        source = tmp_path / name.split("/")[0]
    before = sorted(p.name for p in tmp_path.iterdir())
    assert run("text", model, tmp_path / "out", source) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def json_lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_json_lines_become_documents(model, tokenizer, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(json_lines({"text": "one \u00e9", "id": 1}, {"text": "two\nlines"}) + "\n"
                                             + json_lines({"text": " "}, {"text": "last"}).rstrip("\n"))
    (tmp_path / "in" / "b.txt").write_text("a text")
    assert run("text", model, tmp_path / "out", tmp_path / "in") == 0
    assert [tokenizer.decode(d) for d in documents_of(tmp_path / "out")] == ["one \u00e9", "two\nlines", "last", "a text"]
    (tmp_path / "c.jsonl").write_text(json_lines({"content": "body", "text": "title"}))
    assert run("text", model, tmp_path / "other", tmp_path / "c.jsonl", "--field", "content") == 0
    assert [tokenizer.decode(d) for d in documents_of(tmp_path / "other")] == ["body"]


@pytest.mark.parametrize("line, message", [
    ("{", "a.jsonl:2: not JSON: "), ("[" * 100000, "a.jsonl:2: not JSON"), ("\xff", "a.jsonl:2: not JSON"),
    ("[1]", "a.jsonl:2: field 'text' expected, list found"), ("{}", "field 'text' expected, none found"),
    ('{"body": "x", "id": 1}', "field 'text' expected, 'body', 'id' found; name it with --field"),
    ('{"text": 5}', "a.jsonl:2: field 'text': text expected, int found"),
    ('{"text": "\\ud800"}', "half a surrogate pair"),
])
def test_bad_json_lines_are_refused(model, tmp_path, capsys, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line.encode("latin-1") + b"\n")
    assert run("text", model, tmp_path / "out", tmp_path / "a.jsonl") == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def read_mds(folder):
    """[sample] its documents, and the index: an obvious reader of what is written here."""
    index = json.loads((folder / "index.json").read_text())
    samples = []
    for shard in index["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"] <= max(shard["size_limit"], len(data) * (shard["samples"] == 1))
        assert hashlib.sha1(data).hexdigest() == shard["raw_data"]["hashes"]["sha1"]
        offsets = np.frombuffer(data, "<u4", shard["samples"] + 2)
        assert offsets[0] == shard["samples"] and offsets[-1] == len(data)
        config = json.loads(data[4 * len(offsets):offsets[1]])
        assert config == {key: shard[key] for key in config} and len(config) == 8
        for begin, end in zip(offsets[1:], offsets[2:]):
            sizes = np.frombuffer(data, "<u4", 2, begin)
            cells = []
            at = begin + 8
            for size, dtype in zip(sizes, shard["column_encodings"]):
                dimensions, width = divmod(data[at], 4)
                shape = np.frombuffer(data, f"<u{1 << width}", dimensions, at + 1)
                values = np.frombuffer(data[at + 1 + (dimensions << width):at + size], dtype.split(":")[1])
                cells.append(values.reshape(shape.tolist()))
                at += size
            assert end - at == 8 and int.from_bytes(data[at:end], "little") == len(cells[1]) == cells[0][-1, 1]
            samples.append([cells[1][a:b].tolist() for a, b in cells[0]])
    return samples, index


def test_mds_shards_hold_every_token_in_samples_of_one_length(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(writers.MdsFolder, "SHARD_BYTES", 700)
    (tmp_path / "book.txt").write_text(TEXT * 20)
    arguments = ["--split", "block", "--format", "mds", "--sample-tokens", 50]
    assert run("text", model, tmp_path / "out", tmp_path / "book.txt", *arguments) == 0
    samples, index = read_mds(tmp_path / "out")
    assert len(index["shards"]) > 2
    lengths = [sum(map(len, sample)) for sample in samples]
    assert set(lengths[:-1]) == {50} and 0 < lengths[-1] <= 50
    assert run("text", model, tmp_path / "npy", tmp_path / "book.txt", "--split", "block") == 0
    whole = documents_of(tmp_path / "npy")
    assert sum((d for sample in samples for d in sample), []) == sum(whole, [])
    # Documents end where they end, or with a sample.
    ends = set(np.cumsum([len(d) for sample in samples for d in sample]))
    assert ends == set(np.cumsum([len(d) for d in whole])) | set(np.cumsum(lengths))
    data = json.loads((tmp_path / "out" / "data.json").read_text())
    assert data["format"] == "prulong-mds" and data["tokens"] == sum(lengths) and data["documents"] == len(whole)
    assert data["sha256"] == {"index.json": shared.sha256_of(tmp_path / "out" / "index.json")}
    assert run("text", model, tmp_path / "out", tmp_path / "book.txt", *arguments) == 0  # up to date
    assert run("text", model, tmp_path / "out", tmp_path / "book.txt", *arguments[:-1], 51) == 1  # other data


def test_mds_arrays_of_every_width():
    for length, head in ((1, b"\x04\x01"), (255, b"\x04\xff"), (256, b"\x05\x00\x01"), (65536, b"\x06\x00\x00\x01\x00")):
        assert writers.encode_array(np.zeros(length, "<u2")) == head + bytes(2 * length)
    assert writers.encode_array(np.zeros((3, 2), "<u4")) == b"\x08\x03\x02" + bytes(24)


def test_bad_tokenizers_are_refused(tmp_path, capsys):
    (tmp_path / "book.txt").write_text(TEXT)
    assert run("text", tmp_path, tmp_path / "out", tmp_path / "book.txt") == 1
    assert "no tokenizer.json" in capsys.readouterr().err
    (tmp_path / "tokenizer.json").write_text("{}")
    assert run("text", tmp_path, tmp_path / "out", tmp_path / "book.txt") == 1
    assert "tokenizer.json: not a tokenizer" in capsys.readouterr().err
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    assert run("text", tmp_path, tmp_path / "out", tmp_path / "book.txt") == 1
    assert "the vocabulary is empty" in capsys.readouterr().err


def test_sentences_end_where_people_end_them(words):
    assert recall.sentences_of(words / "train.txt") == [
        " It was a fine day.", " \"Yes,\" said Mr. Green, \"very fine.\"", " They went out.", " Nobody came.",
        " The end came soon."]


def test_a_recall_kit_holds_the_pieces_of_both_splits(model, tokenizer, words, tmp_path):
    assert run("recall", model, tmp_path / "kit", *recall_arguments(words)) == 0
    kit = json.loads((tmp_path / "kit" / "kit.json").read_text())
    tokens, offsets = np.load(tmp_path / "kit" / "tokens.npy"), np.load(tmp_path / "kit" / "offsets.npy")
    assert kit["tokens"] == len(tokens) == offsets[-1] and kit["pieces"] == len(offsets) - 1
    assert kit["prefix"] == [tokenizer.token_to_id("<bos>")]

    def texts(split, name):
        first, count = kit["lists"][split][name]
        return [tokenizer.decode(tokens[offsets[i]:offsets[i + 1]].tolist()) for i in range(first, first + count)]

    assert texts("train", "nouns") == [" apple", " dog"]
    assert texts("eval", "nouns") == [" pear", " cat"]  # what training has, too, is dropped
    assert texts("eval", "prose") == [" A ship came in.", " It was old.", " Who knows?"]
    for name, digits in (("codes", 5), ("passkeys", 7)):
        train, held_out = set(texts("train", name)), set(texts("eval", name))
        assert not train & held_out and len(train) == 4 * len(held_out)
        assert all(re.fullmatch(rf" [1-9]\d{{{digits - 1}}}", text) for text in train | held_out)
    assert {task: {part: tokenizer.decode(ids) for part, ids in parts.items() if ids}
            for task, parts in kit["templates"].items()} == {
                task: {part: text for part, text in recall.parts_of(task).items() if text} for task in recall.TEMPLATES}
    assert kit["version"] == 2
    assert recall.parts_of("codes")["question_before"] == " The secret code of the"
    assert recall.parts_of("multi_values")["question_after"] == "."
    assert recall.parts_of("labels")["question_middle"] == ":"
    labels = texts("train", "labels"), texts("eval", "labels")
    assert len(labels[0]) == 60 and len(labels[1]) == 30 and not set(labels[0]) & set(labels[1])


def test_a_recall_kit_is_reproducible_and_kept(model, words, tmp_path, capsys):
    for name in ("one", "two", "two"):
        assert run("recall", model, tmp_path / name, *recall_arguments(words)) == 0
    assert "up to date" in capsys.readouterr().out
    for name in ("kit.json", "tokens.npy", "offsets.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_bad_recall_inputs_are_refused(model, words, tmp_path, capsys):
    def refused(message):
        assert run("recall", model, tmp_path / "kit", *recall_arguments(words)) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "kit").exists()

    (words / "nouns.eval.txt").write_text("apple\ndog\n")
    refused("the eval split has 0 nouns, at least 2 needed")
    (words / "nouns.eval.txt").write_text("pear\nb2b\n")
    refused("'b2b' is not a word")
    (words / "nouns.eval.txt").unlink()
    refused("nouns.eval.txt: no such file")


def test_tokenizers_that_would_change_samples_are_refused(model, words, tmp_path, capsys):
    changed = Tokenizer.from_file(str(model / "tokenizer.json"))
    changed.normalizer = normalizers.Lowercase()
    (tmp_path / "lower").mkdir()
    changed.save(str(tmp_path / "lower" / "tokenizer.json"))
    assert run("recall", tmp_path / "lower", tmp_path / "kit", *recall_arguments(words)) == 1
    assert "this tokenizer changes the text" in capsys.readouterr().err

    # One that knows no boundaries merges across them.
    joined = Tokenizer(models.BPE(vocab={"a": 0, ".": 1, " ": 2, "a.": 3, "a. ": 4}, merges=[("a", "."), ("a.", " ")]))
    with pytest.raises(shared.DataError, match="joins"):
        recall.tokenize_in_context(joined, [" a"])


def test_composition_is_checked(tokenizer):
    """The check itself notices tokens that are not those of the text."""
    pieces = recall.Pieces(tokenizer)
    for split in ("train", "eval"):
        for name in ("prose", "adjectives", "nouns", "codes", "passkeys", "labels"):
            pieces.add(split, name, [f" {split}", f" {name}"])
    templates = {"codes": {part: ("", []) for part in recall.PARTS}}
    recall.check_composition(pieces, templates)
    index = pieces.lists["train"]["codes"][0]
    text, ids = pieces.texts[index], pieces.tokens[index]
    pieces.tokens[index] = [tokenizer.encode(c, add_special_tokens=False).ids[0] for c in text]
    assert pieces.tokens[index] != ids
    with pytest.raises(shared.DataError, match="joins pieces"):
        recall.check_composition(pieces, templates)
    pieces.tokens[index] = ids[::-1]
    with pytest.raises(shared.DataError, match="changes the text"):
        recall.check_composition(pieces, templates)


def test_the_shipped_assets_are_small_and_disjoint():
    files = list((ROOT / "assets").rglob("*.txt"))
    assert sum(path.stat().st_size for path in files) <= 1_000_000
    for kind in ("adjectives", "nouns"):
        train, held_out = (recall.words_of(ROOT / "assets" / "words" / f"{kind}.{s}.txt") for s in ("train", "eval"))
        assert len(train) > 70 and len(held_out) > 70 and not set(train) & set(held_out)
    prose = [(ROOT / "assets" / "prose" / f"{split}.txt").read_text() for split in ("train", "eval")]
    assert all(text.isascii() for text in prose)
    long = [{s for s in re.split(r"(?<=[.!?]) ", text) if len(s) > 40} for text in prose]
    assert len(long[0]) > 1000 and not long[0] & long[1]
