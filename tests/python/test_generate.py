# SPDX-License-Identifier: MIT
"""The command prulong-generate, as a user types it."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import prulong
from prulong import Engine, Pattern, Sampling
from prulong.generate import main
from tiny_world import KV_HEADS, LAYERS

SHAPE = prulong.ModelShape("llama", LAYERS, KV_HEADS, 4, 16)


@dataclasses.dataclass
class Done:
    stdout: str
    stderr: str


@pytest.fixture
def run(world, capsys, monkeypatch):
    """Runs the command in this process, where torch is loaded already."""
    def call(*arguments, code=0, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            found = main([str(world / "model"), "--device", "cpu", "--dtype", "float32", *map(str, arguments)])
        except SystemExit as exit:  # argparse
            found = exit.code
        done = Done(*capsys.readouterr())
        assert found == code, done
        return done
    return call


def answers(done):
    return {line["index"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.fixture
def pattern(tmp_path):
    Pattern.from_scores(SHAPE, [[0.9, 0.1], [0.2, 0.8], [0.3, 0.4]], 0.5, 4, 16).save(tmp_path / "mask")
    return tmp_path / "mask"


def test_a_prompt_is_answered_as_text_and_speed_and_memory_are_told(run, world, pattern):
    done = run("--prompt", "The old man went to", "--pattern", pattern, "--max-new-tokens", 40)
    expected = Engine(world / "model", Pattern.load(pattern), dtype="float32", device="cpu").generate(
        "The old man went to", Sampling(max_new_tokens=40))
    assert done.stdout == expected.text + "\n"
    assert "prompt: " in done.stderr and "decode: " in done.stderr and " % of full attention's " in done.stderr


def test_prompts_of_a_file_are_answered_as_json_lines(run, world, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "The old man", "id": "a"}\n\n{"tokens": [5, 6, 7]}\n')
    found = answers(run("--prompts", file, "--max-new-tokens", 9))
    engine = Engine(world / "model", dtype="float32", device="cpu")
    for index, prompt in enumerate(["The old man", [5, 6, 7]]):
        expected = engine.generate([prompt], Sampling(max_new_tokens=9))[0]
        assert found[index]["tokens"] == expected.tokens and found[index]["text"] == expected.text
        assert found[index]["reason"] == expected.reason and found[index]["prompt_tokens"] == expected.prompt_tokens
    assert found[0]["id"] == "a" and "id" not in found[1]
    assert answers(run("-", "--max-new-tokens", 9, stdin=file.read_text())) == found
    one = answers(run("--prompt", "The old man", "--json", "--max-new-tokens", 9))
    assert one[0]["tokens"] == found[0]["tokens"]


def test_sampling_options_reach_the_engine(run, world):
    options = ["--temperature", 1.2, "--top-k", 30, "--top-p", 0.9, "--repetition-penalty", 1.1, "--seed", 5]
    found = answers(run("--prompt", "The old man", "--json", "--max-new-tokens", 12, *options))[0]
    sampling = Sampling(max_new_tokens=12, temperature=1.2, top_k=30, top_p=0.9, repetition_penalty=1.1, seed=5)
    assert found["tokens"] == Engine(world / "model", dtype="float32", device="cpu").generate("The old man", sampling).tokens


@pytest.mark.parametrize("line, message", [
    ("{", "expected a JSON object, found "), ("[1]", "expected a JSON object, found [1]"),
    ('{"text": "x"}', 'unknown key "text"'), ('{"id": 1}', 'expected one of "prompt", "tokens", "messages", found none'),
    ('{"prompt": 5}', '"prompt": expected a text, found 5'), ('{"tokens": ["a"]}', '"tokens": expected a list of token ids'),
    ('{"tokens": []}', "prompt: expected at least one token"), ('{"tokens": [99999]}', "token 99999 at place 0")])
def test_a_broken_line_is_named_and_the_others_run_if_asked(run, tmp_path, line, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "The old man"}\n' + line + '\n{"prompt": "The dog"}\n')
    refused = run("--prompts", file, "--max-new-tokens", 3, code=1)
    assert f"{file}: line 2: " in refused.stderr and message in refused.stderr and refused.stdout == ""
    assert "Traceback" not in refused.stderr
    found = run("--prompts", file, "--max-new-tokens", 3, "--keep-going", code=1)
    assert sorted(answers(found)) == [0, 2] and f"{file}: line 2: " in found.stderr


@pytest.mark.parametrize("arguments, message", [
    (["--temperature", "-1"], "temperature: expected"), (["--top-p", "0"], "top_p: expected"),
    (["--top-p", "1.5"], "top_p: expected"), (["--kv-gib", "1e-9"], "page"), (["--max-new-tokens", "0"], "max_new_tokens"),
    (["--pattern", "/nowhere"], "/nowhere")])
def test_what_is_out_of_range_is_refused_in_one_line(run, arguments, message):
    done = run("--prompt", "The old man", *arguments, code=1)
    assert message in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


def test_an_empty_prompt_is_refused(run):
    # The tiny tokenizer puts a token at the beginning of texts, so an empty one is one of ids.
    assert "expected at least one token" in run("-", code=1, stdin='{"tokens": []}\n').stderr
    assert "expected a prompt a line, found none" in run("-", code=1, stdin="\n").stderr


def test_a_prompt_longer_than_the_models_positions_is_refused_unless_allowed(run):
    line = json.dumps({"tokens": [5] * 600})
    assert "at most 512 tokens, the positions" in run("-", code=1, stdin=line).stderr
    assert answers(run("-", "--allow-beyond-positions", "--max-new-tokens", 2, stdin=line))[0]["prompt_tokens"] == 600


def test_a_pattern_of_another_model_is_refused(run, tmp_path):
    Pattern.from_scores(prulong.ModelShape("llama", LAYERS + 1, KV_HEADS, 4, 16), [[0.0] * KV_HEADS] * (LAYERS + 1), 0.5,
                        4, 16).save(tmp_path / "other")
    assert "layers" in run("--prompt", "x", "--pattern", tmp_path / "other", code=1).stderr


def test_a_wrong_command_line_is_refused(run):
    assert "--prompt" in run(code=2).stderr
    run("--prompt", "x", "--prompts", "y", code=2)


def test_the_program_is_there(bin_folder, world):
    done = subprocess.run([bin_folder / "prulong-generate", world / "model", "--prompt", "The old man", "--max-new-tokens", "2"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("\n") and "decode: 1 tokens" in done.stderr


def many(count):
    return "".join(json.dumps({"tokens": [5, 6, 7 + i % 50]}) + "\n" for i in range(count))


def start(bin_folder, world, *arguments):
    return subprocess.Popen([bin_folder / "prulong-generate", world / "model", "--device", "cpu", "--dtype", "float32", "-",
                             *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=dict(os.environ, OMP_NUM_THREADS="1"))


def test_a_reader_that_goes_away_ends_it_quietly(bin_folder, world):
    process = start(bin_folder, world, "--max-sequences", 2, "--max-new-tokens", 200)
    process.stdin.write(many(400).encode())
    process.stdin.close()
    assert json.loads(process.stdout.readline())["reason"] in ("length", "stop")
    process.stdout.close()
    assert process.wait(60) == 141
    assert b"Traceback" not in process.stderr.read()


def test_an_interrupt_leaves_what_is_finished_and_exits_with_130(bin_folder, world):
    process = start(bin_folder, world, "--max-sequences", 2, "--max-new-tokens", 200)
    process.stdin.write(many(400).encode())
    process.stdin.close()
    first = process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(60) == 130
    lines = [json.loads(line) for line in (first + rest).splitlines()]
    assert 1 <= len(lines) < 400 and all(line["tokens"] for line in lines)
    assert b"Traceback" not in process.stderr.read()
