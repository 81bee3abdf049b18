# SPDX-License-Identifier: MIT
"""What scripts/prepare_data.py reads: lines, encodings, kinds of files; and that nothing is left out without a word."""

import json
import os
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from prepare_program import ROOT, documents_of, model, recall, run, shared, tokenizer, words  # noqa: F401
from preparation import files, inputs

# ruff: noqa: F811 (fixtures)

NO_LINE_ENDS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\x1f\r"  # str.splitlines ends lines at all but one of them


@pytest.fixture()
def texts_of(model, tokenizer, tmp_path):
    """The documents that `text` makes of inputs, as text."""
    def prepare(*arguments):
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        assert run("text", model, out, *arguments) == 0
        return [tokenizer.decode(document) for document in documents_of(out)]
    return prepare


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_ends_with_a_newline_and_nothing_else(texts_of, tmp_path, end):
    lines = [f"one{c}two" for c in NO_LINE_ENDS] + ["  indented", "last"]
    (tmp_path / "in.txt").write_bytes(end.join(lines).encode())
    assert texts_of("--split", "line", tmp_path / "in.txt") == lines
    (tmp_path / "in.txt").write_bytes((end + " \t" + end + end).join(lines).encode())
    assert texts_of("--split", "block", tmp_path / "in.txt") == lines
    (tmp_path / "in.txt").write_bytes((end.join(lines) + end).encode())
    assert texts_of("--split", "file", tmp_path / "in.txt") == ["\n".join(lines)]


def test_lines_of_json_end_alike(texts_of, tmp_path):
    lines = [f"one{c}two" for c in NO_LINE_ENDS + "\n"]
    for end in ("\n", "\r\n"):
        for ascii_only in (True, False):
            content = end.join(json.dumps({"text": line}, ensure_ascii=ascii_only) for line in lines)
            (tmp_path / "in.jsonl").write_bytes(content.encode())
            assert texts_of(tmp_path / "in.jsonl") == lines


def test_words_stand_one_on_a_line(tmp_path):
    (tmp_path / "words.txt").write_bytes(b"\xef\xbb\xbfred \r\n\r\nold\r\nred\nblue")
    assert recall.words_of(tmp_path / "words.txt") == [" red", " old", " blue"]
    for bad in ("dark red\n", "red\u2028old\n", "red\x0cold\n", "red\x85old\n"):
        (tmp_path / "words.txt").write_text(bad)
        with pytest.raises(files.DataError, match="is not a word; one word of letters a line is expected"):
            recall.words_of(tmp_path / "words.txt")


def test_no_script_ends_lines_at_other_characters():
    """str.splitlines and reading as text with translated line ends know other line ends than our files do."""
    scripts = [path for folder in ("scripts", "benchmarks", "python_bindings") for path in (ROOT / folder).rglob("*.py")]
    assert len(scripts) > 20
    assert [p for p in scripts if re.search(r"\bsplitlines\(", p.read_text())] == []


def test_lines_of_a_text():
    assert files.lines_of("") == [] and files.lines_of("\n") == [""] and files.lines_of("a") == ["a"]
    assert files.lines_of("a\u2028b\x0cc\rd\r\n\ne\n") == ["a\u2028b\x0cc\rd", "", "e"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.json", "a.Json", "a.ndjson", "a.NDJSON"])
def test_json_lines_have_several_names(texts_of, tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert texts_of(tmp_path / "in" / name) == ["one", "two"]
    assert texts_of(tmp_path / "in") == ["one", "two"]


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.Txt"])
def test_text_has_several_names(texts_of, tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text("{a text\nof two lines")
    assert texts_of(tmp_path / "in" / name) == texts_of(tmp_path / "in") == ["{a text\nof two lines"]


def test_a_file_of_any_other_name_is_text_where_it_is_given(texts_of, tmp_path):
    for name in ("README", "notes.md", ".hidden", "a.jsonl.old"):
        (tmp_path / name).write_text("[1] a text")
        assert texts_of(tmp_path / name) == ["[1] a text"]


@pytest.mark.parametrize("name, content, message", [
    ("a.jsonl.gz", b"\x1f\x8b\x08\0", "packed files are not read; unpack it"),
    ("a.TXT.GZ", b"\x1f\x8b\x08\0", "packed files are not read; unpack it"),
    ("a.zst", b"plain", "packed files are not read; unpack it"),
    ("a.zip", b"PK\3\4", "packed files are not read; unpack it"),
    ("a.txt", b"\x1f\x8b\x08\0", "byte 3 is NUL"),
    ("a.txt", '{"text": "one"}\n{"text": "two"}'.encode("utf-16"), "UTF-16 found, UTF-8 expected"),
    ("a.txt", "text".encode("utf-16-le"), "byte 1 is NUL, so this is no UTF-8 text"),
    ("a.txt", b"\xfe\xff\0a", "UTF-16 found, UTF-8 expected"),
    ("a.txt", "text".encode("utf-32"), "UTF-32 found, UTF-8 expected"),
    ("a.txt", b"text\0text", "byte 4 is NUL"),
    ("a.txt", b"\xef\xbb\xbftext\xff", "byte 7 is not UTF-8"),
    ("a.jsonl", '{"text": "one"}'.encode("utf-16"), "a.jsonl:1: not JSON: UTF-16 found, UTF-8 expected"),
    ("a.jsonl", '{"text": "one"}'.encode("utf-16-le"), "a.jsonl:1: not JSON: byte 1 is NUL"),
    ("a.jsonl", '{"text": "one"}'.encode("utf-32-be"), "a.jsonl:1: not JSON: byte 0 is NUL"),
    ("a.jsonl", b'{"text": "one\0"}', "a.jsonl:1: not JSON: byte 13 is NUL"),
    ("a.jsonl", b'{"text": "one"}\n\xef\xbb\xbf{"text": "two"}\n', "a.jsonl:2: a byte order mark in the middle"),
    ("a.json", b'[\n{"text": "one"}\n]\n', "a.json:1: not JSON"),
    ("a.json", b'[{"text": "one"}]\n', "a.json:1: field 'text' expected, list found"),
    ("a.txt", b'\n{"text": "one"}\n', "a.txt: its first line is an object of JSON: rename it to end in .jsonl"),
    ("a", b'\xef\xbb\xbf {"body": "one"}\n', "a: its first line is an object of JSON: rename it to end in .jsonl"),
])
def test_other_content_is_refused_by_name(model, tmp_path, capsys, name, content, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    for source in (tmp_path / "in" / name, *([tmp_path / "in"] if "." in name else [])):
        assert run("text", model, tmp_path / "out", source) == 1
        error = capsys.readouterr().err
        assert message in error and name in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_byte_order_marks_are_no_text(texts_of, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "second"}')
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbf")
    assert texts_of(tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.txt") == ["first", "second"]


def test_every_file_of_a_folder_is_read_or_named(model, texts_of, tmp_path, capsys):
    folder = tmp_path / "in"
    read = ["a.txt", ".hidden.txt", "sub/b.TXT", ".dot/c.txt", "sub.txt/d.json"]
    left = ["note.md", ".DS_Store", ".txt", "none", "sub/picture.png", "a.txt~", "x.jsonl.old"]
    for name in read + left:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"text": name}) if name.endswith("json") else name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "e.txt").write_text("linked file")
    (folder / "link.txt").symlink_to(tmp_path / "elsewhere" / "e.txt")
    (folder / "folder").symlink_to(tmp_path / "elsewhere")
    (folder / "broken").symlink_to("nowhere")
    assert sorted(texts_of(folder)) == sorted([*read, "linked file"])
    lines = files.lines_of(capsys.readouterr().err)
    assert [line for line in lines if "/in/folder: a link to a folder" in line]
    for name in [*left, "broken"]:
        assert [line for line in lines if line.startswith(f"prepare_data: skipped {folder / name}: not .txt")], name
    assert len(lines) == len(left) + 2


@pytest.mark.parametrize("make, message", [
    (lambda p: p.symlink_to("nowhere"), "found a broken link, a pipe or a device"),
    (os.mkfifo, "found a broken link, a pipe or a device"),
])
def test_what_should_be_a_file_is_refused(model, tmp_path, capsys, make, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    make(tmp_path / "in" / "b.txt")
    for source in (tmp_path / "in", tmp_path / "in" / "b.txt"):
        assert run("text", model, tmp_path / "out", source) == 1
        assert message in capsys.readouterr().err


def test_files_and_records_without_text_are_named(texts_of, tmp_path, capsys):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n\t\u2028\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": ""}\n{"text": " \\n"}\n')
    (tmp_path / "b.jsonl").touch()
    assert texts_of(*(tmp_path / name for name in ("empty.txt", "blank.txt", "a.jsonl", "b.jsonl"))) == ["one"]
    assert [line.split(": ", 1)[1] for line in files.lines_of(capsys.readouterr().err)] == [
        f"{tmp_path}/empty.txt: no text in it", f"{tmp_path}/blank.txt: no text in it",
        f"{tmp_path}/a.jsonl: 2 of 3 records have no text", f"{tmp_path}/b.jsonl: no text in it"]


def test_names_that_are_no_text(model, texts_of, tmp_path, capsys):
    """Records stay JSON that every reader takes, and messages one line."""
    (tmp_path / "in").mkdir()
    for name in (b"caf\xe9.txt", b"two\nlines\x1b.txt", b"no\ntext"):
        with open(os.path.join(os.fsencode(tmp_path / "in"), name), "wb") as file:
            file.write(b"text")
    assert texts_of(tmp_path / "in") == ["text", "text"]
    assert capsys.readouterr().err == f"prepare_data: skipped {tmp_path}/in/no\\ntext: not .txt, .jsonl, .ndjson, .json\n"
    (data,) = tmp_path.glob("out-*/data.json")
    names = [source["name"] for source in json.loads(data.read_text())["inputs"]["sources"]]
    assert names == ["caf\\xe9.txt", "two\nlines\x1b.txt"]
    (tmp_path / "in" / "two\nlines\x1b.txt").write_bytes(b"\xff")
    assert run("text", model, tmp_path / "out", tmp_path / "in") == 1
    assert "/in/two\\nlines\\x1b.txt: byte 0 is not UTF-8" in capsys.readouterr().err
    assert run("text", model, tmp_path / "caf\udce9", tmp_path / "in" / "caf\udce9.txt") == 0


def test_what_a_file_holds_is_quoted_in_messages(model, words, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps({"\x1b[2J\u2028\x85" + "k" * 1000: 1}) + "\n")
    assert run("text", model, tmp_path / "out", tmp_path / "a.jsonl", "--field", "f\x07") == 1
    error = capsys.readouterr().err
    assert error.removesuffix("\n").isprintable() and len(error) < 500 and "'f\\x07' expected, '\\x1b[2J\\u2028" in error
    (words / "nouns.train.txt").write_text("b\x1b" + "x" * 1000 + "\n")
    assert run("recall", model, tmp_path / "kit", "--words", words) == 1
    error = capsys.readouterr().err
    assert error.removesuffix("\n").isprintable() and len(error) < 500 and "'b\\x1bxxx" in error


def added_token(model, folder, token="[PAD]"):
    """The tokenizer with one more token behind its vocabulary of 400."""
    copy = Tokenizer.from_file(str(model / "tokenizer.json"))
    copy.add_special_tokens([token])
    folder.mkdir()
    copy.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("form", ["tokens", "mds"])
def test_the_largest_token_is_recorded(model, tokenizer, tmp_path, form):
    padded = added_token(model, tmp_path / "padded")
    for text, largest in (("plain", max(tokenizer.encode("plain").ids)), ("a [PAD]", 400)):
        (tmp_path / "a.txt").write_text(text)
        assert run("text", padded, tmp_path / text, tmp_path / "a.txt", "--format", form) == 0
        data = json.loads((tmp_path / text / "data.json").read_text())
        assert data["vocab_size"] == 401 and data["largest_token"] == largest


def test_the_largest_token_of_a_kit_is_recorded(model, words, tmp_path):
    from prepare_program import recall_arguments
    import numpy as np
    padded = added_token(model, tmp_path / "padded")
    assert run("recall", padded, tmp_path / "kit", *recall_arguments(words)) == 0
    kit = json.loads((tmp_path / "kit" / "kit.json").read_text())
    fixed = [id for parts in kit["templates"].values() for ids in parts.values() for id in ids]
    assert kit["vocab_size"] == 401
    assert kit["largest_token"] == max(int(np.load(tmp_path / "kit" / "tokens.npy").max()), *fixed, *kit["prefix"])
