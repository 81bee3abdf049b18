# SPDX-License-Identifier: MIT
"""The command prulong-generate: text in, text out, with a KV cache that holds what a pattern keeps."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, TextIO

_PROMPT_KEYS = ("prompt", "tokens", "messages")


class _BadLine(ValueError):
    """A line of a prompts file that is no prompt."""


class _Interrupts:
    """SIGINT is looked for between steps, so that what is finished is written; a second one ends at once."""

    def __enter__(self) -> _Interrupts:
        self._come = False
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, *_: object) -> None:
        if self._come:
            raise KeyboardInterrupt
        self._come = True

    def check(self) -> None:
        if self._come:
            raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(_spelled_out(sys.argv[1:] if arguments is None else arguments))
    try:
        with _Interrupts() as interrupts:
            return _run(options, interrupts)
    except BrokenPipeError:
        # The reader has gone; what it read is whole lines. Python would try to flush once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"prulong-generate: {_one_line(error)}", file=sys.stderr)
        return 1


def command() -> None:
    """The console script."""
    sys.exit(main())


def _spelled_out(arguments: list[str]) -> list[str]:
    """A lone `-` in place of --prompts -, which argparse takes for a value only behind its option."""
    alone = [a == "-" and not before.startswith("--") for before, a in zip(["", *arguments], arguments)]
    return ["--prompts=-" if is_alone else a for is_alone, a in zip(alone, arguments)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prulong-generate",
        description="Generates text with a model, under a pattern or with full attention. A --prompt is answered as "
        "text; prompts of a file as JSON lines, in the order in which they finish: index (from 0), id (if the line has "
        "one), prompt_tokens, tokens, text, reason. Speed and memory are told on standard error.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a Hugging Face model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT", help="one prompt")
    source.add_argument(
        "--prompts", metavar="FILE.jsonl",
        help='JSON lines, each with "prompt" (text), "tokens" (ids) or "messages" (of a chat), and perhaps "id"; '
        "- (also by itself): standard input",
    )
    parser.add_argument("--pattern", metavar="P", help="pattern folder or file: which KV heads keep everything")
    parser.add_argument("--chat", action="store_true", help="texts are messages of a user, for the chat template")
    parser.add_argument("--json", action="store_true", help="answer a --prompt as a JSON line too")
    parser.add_argument("--keep-going", action="store_true", help="leave out lines that are no prompts; exit 1 then")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="default 128")
    sampling.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default): the likeliest token")
    sampling.add_argument("--top-k", type=int, default=0, metavar="K", help="of so many likeliest tokens; 0: all")
    sampling.add_argument("--top-p", type=float, default=1.0, metavar="P", help="of the likeliest that have this share")
    sampling.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="1 (default): none")
    sampling.add_argument("--seed", type=int, default=0, metavar="S", help="prompt number i uses seed S + i")
    sampling.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends an answer; may be repeated")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    engine.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    engine.add_argument("--tokens-per-step", type=int, default=0, metavar="N", help="0: 512 on a CPU, 8,192 on a GPU")
    engine.add_argument("--max-sequences", type=int, default=64, metavar="N", help="prompts that run at one time")
    engine.add_argument("--kv-gib", type=float, default=0.0, metavar="GIB", help="memory for keys and values; 0: free")
    engine.add_argument("--allow-beyond-positions", action="store_true", help="prompts longer than the model's positions")
    return parser


def _run(options: argparse.Namespace, interrupts: _Interrupts) -> int:
    lines, bad = _read_prompts(options)
    for message in bad:
        print(f"prulong-generate: {message}", file=sys.stderr)
    if bad and not options.keep_going:
        return 1

    from . import Pattern  # after the prompts: what is wrong with them is told at once
    from .engine import Engine, Sampling

    pattern = Pattern.load(options.pattern) if options.pattern else None
    engine = Engine(
        options.model,
        pattern,
        dtype=options.dtype,
        device=options.device,
        tokens_per_step=options.tokens_per_step,
        max_sequences=options.max_sequences,
        kv_gib=options.kv_gib,
        allow_beyond_positions=options.allow_beyond_positions,
    )

    def sampling(index: int) -> Sampling:
        return Sampling(
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            repetition_penalty=options.repetition_penalty,
            seed=options.seed + index,
            stop=options.stop,
        )

    if options.prompt is not None and not options.json:
        for piece in engine.stream(lines[0]["prompt"], sampling(0)):
            sys.stdout.write(piece)
            sys.stdout.flush()
            interrupts.check()
        sys.stdout.write("\n")
        sys.stdout.flush()
    else:
        bad += _answer_all(engine, lines, sampling, options.keep_going, interrupts)
    print(_summary(engine.stats()), file=sys.stderr)
    return 1 if bad else 0


def _answer_all(
    engine: Any, lines: list[dict[str, Any]], sampling: Any, keep_going: bool, interrupts: _Interrupts
) -> list[str]:
    """Writes an answer per line of prompts; returns what was wrong with those that the engine does not take."""
    waiting: dict[int, dict[str, Any]] = {}
    refused = []
    for line in lines:
        try:
            waiting[engine.submit(line["prompt"], sampling(line["index"]))] = line
        except (ValueError, TypeError) as error:
            message = f"{line['where']}{_one_line(error)}"
            if not keep_going:
                raise ValueError(message) from error
            refused.append(message)
            print(f"prulong-generate: {message}", file=sys.stderr)
    progress = _Progress(len(waiting), sys.stderr)
    while waiting:
        interrupts.check()
        _, finished = engine.step()
        for id, answer in finished:
            line = waiting.pop(id)
            record = {"index": line["index"]}
            if "id" in line:
                record["id"] = line["id"]
            record |= {"prompt_tokens": answer.prompt_tokens, "tokens": answer.tokens}
            record |= {"text": answer.text, "reason": answer.reason}
            sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        progress.show(len(waiting), engine.stats())
    progress.end()
    return refused


def _read_prompts(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """Prompts as {index, prompt, where, id}, and what is wrong with lines that are none."""
    if options.prompt is not None:
        return [{"index": 0, "prompt": _as_chat(options.prompt, options.chat), "where": ""}], []
    if options.prompts == "-":
        return _parse_lines(sys.stdin.buffer, "standard input", options.chat)
    with open(options.prompts, "rb") as file:
        return _parse_lines(file, options.prompts, options.chat)


def _parse_lines(file: Any, name: str, chat: bool) -> tuple[list[dict[str, Any]], list[str]]:
    lines: list[dict[str, Any]] = []
    bad: list[str] = []
    for number, raw in enumerate(file, 1):
        if not raw.strip():
            continue
        where = f"{name}: line {number}: "
        try:
            line = _parse_line(raw, chat)
        except _BadLine as error:
            bad.append(f"{where}{error}")
        else:
            lines.append({"index": len(lines) + len(bad), "where": where} | line)
    if not lines and not bad:
        bad.append(f"{name}: expected a prompt a line, found none")
    return lines, bad


def _parse_line(raw: bytes, chat: bool) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise _BadLine(f"expected a JSON object, found {_one_line(error)}") from None
    except RecursionError:
        raise _BadLine("expected a JSON object, found one that is nested too deeply") from None
    if not isinstance(value, dict):
        raise _BadLine(f"expected a JSON object, found {_short(value)}")
    unknown = [key for key in value if key not in (*_PROMPT_KEYS, "id")]
    if unknown:
        raise _BadLine(f"unknown key {_short(unknown[0])}; known ones are prompt, tokens, messages, id")
    given = [key for key in _PROMPT_KEYS if key in value]
    if len(given) != 1:
        raise _BadLine(f'expected one of "prompt", "tokens", "messages", found {" and ".join(given) or "none"}')
    prompt = value[given[0]]
    if given[0] == "prompt":
        if not isinstance(prompt, str):
            raise _BadLine(f'"prompt": expected a text, found {_short(prompt)}')
        prompt = _as_chat(prompt, chat)
    elif given[0] == "tokens":
        if not isinstance(prompt, list) or any(type(token) is not int for token in prompt):
            raise _BadLine(f'"tokens": expected a list of token ids, found {_short(prompt)}')
    elif not isinstance(prompt, list) or not prompt or any(not isinstance(message, dict) for message in prompt):
        raise _BadLine(f'"messages": expected a list of messages with "role" and "content", found {_short(prompt)}')
    return {"prompt": prompt} | ({"id": value["id"]} if "id" in value else {})


def _as_chat(text: str, chat: bool) -> Any:
    return [{"role": "user", "content": text}] if chat else text


class _Progress:
    """A line that is drawn again on a terminal; every 30 seconds a new one elsewhere."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total, self._stream = total, stream
        self._terminal = stream.isatty()
        self._next = time.monotonic() + (0.5 if self._terminal else 30)
        self._drawn = False

    def show(self, left: int, stats: dict[str, Any]) -> None:
        now = time.monotonic()
        if self._total < 2 or now < self._next:
            return
        self._next = now + (0.5 if self._terminal else 30)
        seconds = stats["prompt_seconds"] + stats["decode_seconds"]
        text = (
            f"{self._total - left}/{self._total} prompts  {stats['prompt_tokens']:,} prompt tokens, "
            f"{stats['new_tokens']:,} new ones  {stats['new_tokens'] / max(seconds, 1e-9):.1f} new tokens/s"
        )
        self._stream.write(f"\r\x1b[K{text}" if self._terminal else f"{text}\n")
        self._stream.flush()
        self._drawn = self._terminal

    def end(self) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def _summary(stats: dict[str, Any]) -> str:
    def rate(tokens: float, seconds: float) -> str:
        return f"{tokens / seconds:,.1f} tokens/s" if seconds > 0 else "none"

    full = stats["peak_full_kv_bytes"]
    share = 100 * stats["peak_kv_bytes"] / full if full else 0
    return (
        f"prompt: {stats['prompt_tokens']:,} tokens, {rate(stats['prompt_tokens'], stats['prompt_seconds'])}; "
        f"decode: {stats['decoded_tokens']:,} tokens, {rate(stats['decoded_tokens'], stats['decode_seconds'])}; "
        f"keys and values: {stats['peak_kv_bytes'] / 2**20:,.1f} MiB, {share:.1f} % of full attention's "
        f"{full / 2**20:,.1f} MiB"
    )


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:80] + "..."


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    command()
