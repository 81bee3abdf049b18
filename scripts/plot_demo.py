#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws a learned mask by layer and head beside accuracy against KV entries kept, and the memory that keys and values took."""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

from preparation.files import DataError, printable, refuse_inputs

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)
from matplotlib.colors import ListedColormap  # noqa: E402

GLOBAL, LOCAL, INK = "#1f5fa8", "#dfe6ee", "#333333"
STYLES = {  # method type: colour, marker
    "full": ("#333333", "s"),
    "pattern": (GLOBAL, "o"),
    "random": ("#d9822b", "D"),
    "local": ("#a03030", "v"),
}


def draw_mask(axes, pattern):
    """Layers upwards, KV heads to the right; dark = global."""
    axes.imshow(pattern["mask"], cmap=ListedColormap([LOCAL, GLOBAL]), vmin=0, vmax=1, aspect="auto", origin="lower")
    model = pattern["model"]
    axes.set_xticks(range(model["kv_heads"]))
    axes.set_yticks(range(0, model["layers"], max(1, model["layers"] // 10)))
    axes.set_xlabel("KV head")
    axes.set_ylabel("layer")
    ones = sum(map(sum, pattern["mask"]))
    axes.set_title(f"{ones} of {model['layers'] * model['kv_heads']} KV heads stay global", fontsize=10)
    for head in range(model["kv_heads"] - 1):
        axes.axvline(head + 0.5, color="white", linewidth=1)
    for layer in range(model["layers"] - 1):
        axes.axhline(layer + 0.5, color="white", linewidth=0.6)


def draw_accuracy(axes, results):
    """One marker a method; the range where there are several masks."""
    for method in results["methods"]:
        colour, marker = STYLES[method["type"]]
        x = 100 * method["kv_kept"]
        values = [100 * mask["answer_accuracy"] for mask in method["masks"]]
        if len(values) > 1:
            axes.plot([x, x], [min(values), max(values)], color=colour, linewidth=2)
        y = 100 * method["answer_accuracy"]
        axes.plot([x], [y], marker=marker, color=colour, markersize=8, linestyle="none")
        right = x > 80
        axes.annotate(method["label"], (x, y), xytext=(-8 if right else 8, -14 if right else 4),
                      textcoords="offset points", ha="right" if right else "left", fontsize=8, color=INK)
    axes.set_xlim(0, 105)
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"KV entries kept at {results['seq_len']:,} tokens, %")
    axes.set_ylabel("answer tokens right, %")
    axes.set_title("recall on unseen prose, names and codes", fontsize=10)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_memory(axes, generation):
    """A bar per side of scripts/demo_generate.py."""
    sides = {"full attention": STYLES["full"][0], "learned mask": STYLES["pattern"][0]}
    values = [generation[name]["peak_kv_bytes"] / 2**20 for name in sides]
    bars = axes.bar([name.replace(" ", "\n") for name in sides], values, color=list(sides.values()), width=0.6)
    axes.bar_label(bars, [f"{value:.0f} MiB" for value in values], padding=2, fontsize=8)
    axes.set_ylim(0, 1.15 * max(values))
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=8, length=0)
    axes.set_title(f"KV memory, {generation['prompts']} prompts", fontsize=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", metavar="PATTERN.json", help="of prulong-export or a training run")
    parser.add_argument("results", metavar="RESULTS.json", help="of prulong-eval")
    parser.add_argument("out", metavar="OUT.png", help="the picture to write")
    parser.add_argument("--generation", metavar="GENERATION.json", help="of scripts/demo_generate.py: draws its memory too")
    arguments = parser.parse_args()
    try:
        inputs = [arguments.pattern, arguments.results] + ([arguments.generation] if arguments.generation else [])
        refuse_inputs(Path(arguments.out), [Path(name) for name in inputs])
        widths = [1, 2.4] + ([0.8] if arguments.generation else [])
        figure, (left, right, *last) = plt.subplots(1, len(widths), figsize=(sum(widths) * 2.65, 4.2), width_ratios=widths,
                                                    layout="constrained")
        with open(arguments.pattern) as pattern, open(arguments.results) as results:
            draw_mask(left, json.load(pattern))
            draw_accuracy(right, json.load(results))
        if last:
            with open(arguments.generation) as generation:
                draw_memory(last[0], json.load(generation))
        figure.savefig(arguments.out, dpi=140)
    except (DataError, OSError, ValueError) as error:  # ValueError: not JSON, or no picture format
        print(f"plot_demo: {printable(error)}", file=sys.stderr)
        return 1
    except (KeyError, TypeError) as error:
        print(printable(f"plot_demo: {arguments.pattern} is no pattern, or {arguments.results} no results of prulong-eval: "
                        f"{error} is missing"), file=sys.stderr)
        return 1
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
