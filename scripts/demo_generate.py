#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Asks a model for codes that are scattered in prose, once with full attention and once under a mask.

The prose, names and codes are those that training never saw. Prints each question with both answers, then speed and the memory
that keys and values took, and writes the figures as JSON for scripts/plot_demo.py.
"""

import argparse
import json
import random
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python_bindings"))
ASSETS = ROOT / "assets"
STATEMENTS, QUESTIONS, WORDS, SEED = 12, 4, 650, 1


def compose() -> list[tuple[str, str, str]]:
    """(text, question, code) for some of the codes in one text."""
    rng = random.Random(SEED)
    words = {kind: (ASSETS / "words" / f"{kind}.eval.txt").read_text().split() for kind in ("adjectives", "nouns")}
    prose = " ".join((ASSETS / "prose" / "eval.txt").read_text().split())
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", prose)
    first = rng.randrange(len(sentences) // 2)
    text: list[str] = []
    while sum(len(sentence.split()) for sentence in text) < WORDS:
        text.append(sentences[first + len(text)])
    names = [f"{a} {n}" for a, n in zip(rng.sample(words["adjectives"], STATEMENTS), rng.sample(words["nouns"], STATEMENTS))]
    codes = {name: str(rng.randrange(10000, 100000)) for name in names}
    for place, name in zip(sorted((rng.randrange(1, len(text)) for _ in names), reverse=True), names):
        text.insert(place, f"The secret code of the {name} is {codes[name]}.")

    def question(name: str) -> str:
        return f"The secret code of the {name} is"

    # Two answered ones first, so that the model knows what is wanted.
    first, second, *asked = rng.sample(names, QUESTIONS + 2)
    before = " ".join([*text, *(f"{question(name)} {codes[name]}." for name in (first, second))])
    return [(before, question(name), codes[name]) for name in asked]


def answers(prompts: list[str], model: str, pattern) -> tuple[list[str], dict]:
    """What the model says to each prompt, and the engine's counts."""
    import prulong

    engine = prulong.Engine(model, pattern, dtype="float32", device="cpu")
    generations = engine.generate(prompts, prulong.Sampling(max_new_tokens=12, stop=["."]))
    return [generation.text.strip() for generation in generations], engine.stats()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder of a Hugging Face model")
    parser.add_argument("pattern", metavar="PATTERN", help="of prulong-export")
    parser.add_argument("out", metavar="OUT.json", help="the figures to write")
    arguments = parser.parse_args()
    import prulong

    questions = compose()
    prompts = [f"{text} {question}" for text, question, _ in questions]
    sides = {"full attention": None, "learned mask": prulong.Pattern.load(arguments.pattern)}
    results = {}
    for name, pattern in sides.items():
        texts, stats = answers(prompts, arguments.model, pattern)
        results[name] = {"answers": texts, "right": sum(text == code for text, (_, _, code) in zip(texts, questions)), **stats}
    print(f"{'question':48} {'truth':>6}  " + "  ".join(f"{name:>14}" for name in sides))
    for i, (_, question, code) in enumerate(questions):
        print(f"{question + ' ...':48} {code:>6}  " + "  ".join(f"{results[name]['answers'][i][:14]:>14}" for name in sides))
    for name, r in results.items():
        print(f"{name}: {r['prompt_tokens'] / r['prompt_seconds']:,.0f} prompt tokens/s, "
              f"{r['decoded_tokens'] / max(r['decode_seconds'], 1e-9):.1f} new tokens/s, keys and values at most "
              f"{r['peak_kv_bytes'] / 2**20:.1f} MiB")
    Path(arguments.out).write_text(json.dumps({"prompts": len(prompts), **results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
