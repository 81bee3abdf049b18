# SPDX-License-Identifier: MIT
"""Generation with a KV cache that holds what the pattern keeps, and nothing more.

    engine = prulong.Engine("models/SmolLM2-135M-Instruct", prulong.Pattern.load("demo/masks"))
    print(engine.generate("The capital of France is", prulong.Sampling(max_new_tokens=8)).text)
    for piece in engine.stream([{"role": "user", "content": "Tell me a story."}]):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, overload

from . import _C
from .pattern import Pattern

if TYPE_CHECKING:
    import transformers

__all__ = ["Engine", "Generation", "Prompt", "Sampling"]

Prompt = Union[str, Sequence[int], Sequence[Mapping[str, Any]]]
"""A text, token ids, or the messages of a chat ({"role": ..., "content": ...}), for the tokenizer's chat template."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a prompt's new tokens are chosen, and when it ends. The defaults choose the likeliest token every time.

    Attributes:
        max_new_tokens: at least 1.
        temperature: at least 0; 0 chooses the likeliest token, and what follows has no effect.
        top_k: among so many likeliest tokens; 0: all.
        top_p: among the fewest likeliest tokens that together have this probability, in (0, 1].
        repetition_penalty: logits of tokens seen before are divided by it (multiplied where negative); above 0.
        seed: at least 0. With one seed the same prompt gives the same tokens, whatever runs beside it.
        stop: texts, each of which ends the answer; the answer does not hold it.
        stop_tokens: token ids that end the answer; None: those that the model's own configuration names.
        stop_sequences: sequences of token ids that end it, as its last tokens.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    stop_tokens: Sequence[int] | None = None
    stop_sequences: Sequence[Sequence[int]] = ()


@dataclasses.dataclass(frozen=True)
class Generation:
    """What came of a prompt.

    Attributes:
        text: the new tokens as text, without special tokens and up to a stop text; None where there is no tokenizer.
        tokens: the new token ids, a stop token among them.
        prompt_tokens: how many tokens the prompt had.
        reason: why it ended: "length", "stop" or "cancelled".
    """

    text: str | None
    tokens: list[int]
    prompt_tokens: int
    reason: str


class Engine:
    """Generates text from a model in Hugging Face's layout, under a pattern or without one, many prompts at a time."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        pattern: Pattern | None = None,
        *,
        tokenizer: transformers.PreTrainedTokenizerBase | None = None,
        dtype: str = "auto",
        device: str = "auto",
        tokens_per_step: int = 0,
        max_sequences: int = 64,
        kv_gib: float = 0.0,
        allow_beyond_positions: bool = False,
    ) -> None:
        """
        Args:
            model: folder with config.json, *.safetensors and, for prompts that are texts, a tokenizer.
            pattern: which KV heads keep everything; None: all of them.
            tokenizer: used in place of the folder's.
            dtype: "float32", "bfloat16", or "auto": bfloat16 where it is fast.
            device: "cpu", "cuda", or "auto".
            tokens_per_step: tokens that one step computes at most; 0: 512 on a CPU, 8,192 on a GPU.
            max_sequences: prompts that run at one time.
            kv_gib: memory for keys and values; 0: nine tenths of what is free.
            allow_beyond_positions: whether a prompt may be longer than the model's max_position_embeddings.

        Raises:
            ValueError: the model is not supported, the pattern does not fit it, or a number is out of range.
            OSError: a file cannot be read.
        """
        if pattern is not None and not isinstance(pattern, Pattern):
            raise TypeError(
                f"pattern: expected a prulong.Pattern or None, found {type(pattern).__name__}: read one with "
                "prulong.Pattern.load"
            )
        self._folder = Path(model)
        self._tokenizer = tokenizer
        self._engine = _C.Engine(
            self._folder,
            pattern,
            dtype=dtype,
            device=device,
            tokens_per_step=tokens_per_step,
            max_sequences=max_sequences,
            kv_gib=kv_gib,
            allow_beyond_positions=allow_beyond_positions,
        )
        self._requests: dict[int, _Request] = {}

    @property
    def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """The tokenizer given, or the model folder's, which is read when it is first needed."""
        if self._tokenizer is None:
            import transformers

            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(self._folder))
        return self._tokenizer

    @overload
    def generate(self, prompts: str, sampling: Sampling = ...) -> Generation: ...
    @overload
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = ...) -> list[Generation]: ...
    def generate(
        self, prompts: str | Sequence[Prompt], sampling: Sampling = Sampling()
    ) -> Generation | list[Generation]:
        """Runs a prompt that is a text, or a list of prompts together, until they are finished.

        Raises:
            ValueError: a prompt is empty, too long for the model or the memory, or holds ids that the model does not
                know; or a number of `sampling` is out of range. Then none of them runs.
        """
        one = isinstance(prompts, str)
        ids: list[int] = []
        done: dict[int, Generation] = {}  # others' too, who submitted before
        try:
            for prompt in [prompts] if one else prompts:
                ids.append(self.submit(prompt, sampling))
            while any(id in self._requests for id in ids):
                done.update(self.step()[1])
        except BaseException:
            for id in ids:
                self.cancel(id)
            raise
        return done[ids[0]] if one else [done[id] for id in ids]

    def stream(self, prompt: Prompt, sampling: Sampling = Sampling()) -> Iterator[str]:
        """Yields the answer's text piece by piece. Leaving the loop ends the request.

        Raises:
            ValueError: as generate.
        """
        id = self.submit(prompt, sampling)
        try:
            while id in self._requests:
                pieces, finished = self.step()
                yield from (piece for other, piece in pieces if other == id and piece)
                if any(other == id for other, _ in finished):
                    return
        finally:
            self.cancel(id)

    def submit(self, prompt: Prompt, sampling: Sampling = Sampling()) -> int:
        """Queues a prompt and returns its id, for a loop of one's own around `step`."""
        tokens = self._tokens(prompt)
        stop_tokens = sampling.stop_tokens
        if stop_tokens is None:
            stop_tokens = _C.stop_tokens_of(self._folder)
        stops = [sampling.stop] if isinstance(sampling.stop, str) else list(sampling.stop)
        if any(not isinstance(text, str) or not text for text in stops):
            raise ValueError(f"stop: expected texts, none of them empty, found {sampling.stop!r}")
        id = self._engine.submit(
            tokens,
            _C.Sampling(
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                repetition_penalty=sampling.repetition_penalty,
                seed=sampling.seed,
                stop_tokens=stop_tokens,
                stop_sequences=sampling.stop_sequences,
            ),
        )
        self._requests[id] = _Request(self.tokenizer if stops or self._has_tokenizer() else None, stops, len(tokens))
        return id

    def step(self) -> tuple[list[tuple[int, str]], list[tuple[int, Generation]]]:
        """Computes one step: pieces of text (empty without a tokenizer) and what finished, each with its id."""
        tokens, finished = self._engine.step()
        reasons = {generation.id: generation.reason for generation in finished}
        pieces: list[tuple[int, str]] = []
        done: list[tuple[int, Generation]] = []
        for id, token in tokens:
            request = self._requests[id]
            piece, stopped = request.take(token, last=id in reasons)
            pieces.append((id, piece))
            if stopped and id not in reasons:
                self._engine.cancel(id)
            if stopped or id in reasons:
                del self._requests[id]
                done.append((id, request.generation("stop" if stopped else reasons[id])))
        return pieces, done

    def cancel(self, id: int) -> Generation | None:
        """Ends a request and frees its memory; returns what it had, or None if it is not running."""
        request = self._requests.pop(id, None)
        self._engine.cancel(id)
        return None if request is None else request.generation("cancelled")

    @property
    def busy(self) -> bool:
        """Whether any request is not finished."""
        return bool(self._engine.busy)

    def stats(self) -> dict[str, Any]:
        """Counts since the engine was made: prompt_tokens and prompt_seconds, decoded_tokens and decode_seconds (tokens
        computed one by one), new_tokens (chosen), peak_kv_bytes (keys and values at their most), peak_full_kv_bytes
        (what full attention would have held then) and allocated_kv_bytes (memory taken for them)."""
        return self._engine.stats()

    def _tokens(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        items = prompt.tolist() if hasattr(prompt, "tolist") else list(prompt)
        if items and all(isinstance(item, Mapping) for item in items):
            chat = self.tokenizer.apply_chat_template(items, add_generation_prompt=True, return_dict=True)
            return list(chat["input_ids"])
        if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            return items
        raise TypeError(f"prompt: expected a text, token ids or messages of a chat, found {str(items)[:80]}")

    def _has_tokenizer(self) -> bool:
        names = ("tokenizer.json", "tokenizer_config.json")
        return self._tokenizer is not None or any((self._folder / name).is_file() for name in names)


class _Request:
    """The text of a running request."""

    def __init__(self, tokenizer: Any, stops: list[str], prompt_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._prompt_tokens = prompt_tokens
        self._tokens: list[int] = []
        self._text = ""  # handed out
        self._held = ""  # not yet: it may be the beginning of a stop text
        self._start = 0  # tokens before it are in the text for good

    def take(self, token: int, last: bool) -> tuple[str, bool]:
        """One more token. Returns the text that it adds, and whether a stop text ends the request."""
        self._tokens.append(token)
        if self._tokenizer is None:
            return "", False
        self._held += self._decoded(last)
        for stop in self._stops:
            place = self._held.find(stop)
            if place >= 0:
                return self._hand_out(place, drop=True), True
        keep = 0 if last else max((_overlap(self._held, stop) for stop in self._stops), default=0)
        return self._hand_out(len(self._held) - keep), False

    def generation(self, reason: str) -> Generation:
        text = None if self._tokenizer is None else self._text
        return Generation(text, self._tokens, self._prompt_tokens, reason)

    def _decoded(self, last: bool) -> str:
        """What the newest token adds: a piece of text is ready once it does not end in the middle of a character."""
        decode = self._tokenizer.decode
        # One token of context: tokenizers join words by what stands before them.
        context = self._tokens[max(0, self._start - 1) : self._start]
        before = decode(context, skip_special_tokens=True) if context else ""
        text = decode(context + self._tokens[self._start :], skip_special_tokens=True)
        if text.endswith("\ufffd") and not last:
            return ""
        self._start = len(self._tokens)
        return text[len(before) :]

    def _hand_out(self, length: int, drop: bool = False) -> str:
        piece = self._held[:length]
        self._held = "" if drop else self._held[length:]
        self._text += piece
        return piece


def _overlap(text: str, stop: str) -> int:
    """How many of the text's last characters begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
