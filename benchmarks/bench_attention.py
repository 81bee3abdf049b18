#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Times our attention operators beside PyTorch's, in one run on one Hopper GPU.

Peers: scaled_dot_product_attention with FlashAttention-2 and with cuDNN, FlashAttention 4 where it is installed
(bring_flash_attention.sh), compiled FlexAttention with the same mask per head, in Triton and on FlashAttention 4, and the
published way to train masks (FlashAttention-2 for every head, a streaming pass for every head, and their mix). bfloat16,
random data, CUDA events, medians; what is compared runs in turn. Documents are one sequence each. A case that fails is
reported and the others go on. Writes docs/bench/attention.json and a picture beside it.

Usage: benchmarks/bench_attention.py [--quick] [--out FILE] [SECTION...]
  SECTION   causal, odd, fractional, saturated, prefill, chunk (default: all)
  --quick   less time per figure, no 65,536 tokens
The operators' library is PRULONG_OPS_LIBRARY, else build/cuda/lib/libprulong_ops.so.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import BlockMask, flex_attention

import bench_record

try:  # left out where it is not installed
    from flash_attn.cute import flash_attn_func as flash_attention_4
except ImportError:
    flash_attention_4 = None

BLOCK, SINK, WINDOW = 128, 128, 1024
BACKENDS = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}
FLASH_4 = "FlashAttention 4"
SEVEN_OF_TEN_LOCAL = [0, 0, 1, 0, 0, 1, 0, 1, 0, 0]  # KV heads; 1: global


# --- Masks for FlexAttention, made from block positions: evaluating every pair of a long sequence would take minutes.
def block_kinds(queries: int, keys: int, local: bool, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Which blocks [queries / BLOCK, keys / BLOCK] have some but not all pairs visible, and which have all."""
    first = torch.arange(keys - queries, keys, BLOCK, device=device)[:, None]
    last, low = first + BLOCK - 1, torch.arange(0, keys, BLOCK, device=device)[None, :]
    high = low + BLOCK - 1
    some, every = low <= last, high <= first
    if local:
        some = some & ((low < SINK) | (first - high < WINDOW))
        every = every & ((high < SINK) | (last - low.clamp(min=SINK) < WINDOW))
    return some & ~every, every


def streaming_kinds(tokens: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The published trainer's local mask: whole blocks, the sink's and the window's up to the query's own."""
    q, k = (torch.arange(tokens // BLOCK, device=device) for _ in range(2))
    seen = (k[None, :] < SINK // BLOCK) | (q[:, None] - k[None, :] < WINDOW // BLOCK)
    return q[:, None] == k[None, :], seen & (k[None, :] < q[:, None])


def block_mask(kinds: list, heads: list[int], mask_mod, backward: bool) -> BlockMask:
    """A BlockMask whose head h has the blocks of kinds[heads[h]]."""
    listed = []
    for which in (0, 1):
        masks = torch.stack([kind[which] for kind in kinds])
        counts = masks.sum(-1, dtype=torch.int32)
        order = masks.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
        listed += [counts[heads][None].contiguous(), order[heads][None].contiguous()]
    return BlockMask.from_kv_blocks(*listed, BLOCK_SIZE=BLOCK, mask_mod=mask_mod, compute_q_blocks=backward)


def head_mask(is_global: torch.Tensor, group: int, queries: int, keys: int, backward: bool) -> BlockMask:
    """The same token-exact mask as our operators'."""
    offset = keys - queries

    def visible(batch, head, q, k):
        i = q + offset
        return (k <= i) & (is_global[head // group] | (k < SINK) | (i - k < WINDOW))

    device = str(is_global.device)
    kinds = [block_kinds(queries, keys, local, device) for local in (True, False)]
    heads = [int(flag) for flag in is_global.tolist() for _ in range(group)]
    return block_mask(kinds, heads, visible, backward)


# --- Timing
class Clock:
    """Medians of CUDA-event times. What is compared runs in turns of about 0.1 s, in another order each round: a GPU at its
    power limit runs whoever comes after an idler faster."""

    ROUNDS = 6

    def __init__(self, budget: float):
        self.budget = budget  # seconds a figure

    def milliseconds(self, runs: dict) -> dict:
        """Of each run in `runs` (name: callable)."""
        counts, times = {}, {name: [] for name in runs}
        for name, run in runs.items():
            run()
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            counts[name] = int(min(50, max(2, self.budget / self.ROUNDS / (time.perf_counter() - start))))
        orders = list(itertools.permutations(runs))
        for n in range(self.ROUNDS):
            for name in orders[n * len(orders) // self.ROUNDS]:
                events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(counts[name])]
                for begin, end in events:
                    begin.record()
                    runs[name]()
                    end.record()
                torch.cuda.synchronize()
                of_turn = [begin.elapsed_time(end) for begin, end in events]
                times[name] += of_turn[len(of_turn) // 3:]  # the rest of the turn before
        return {name: statistics.median(of_run) for name, of_run in times.items()}


class Contest:
    """What is timed side by side: entries on the same shape. One that fails becomes a row with its error."""

    def __init__(self, report: "Report", section: str, shape: dict):
        self.report, self.section, self.shape, self.entries = report, section, shape, {}

    def add(self, name: str, prepare) -> None:
        """prepare() returns (run, inputs): run() returns the output; inputs get gradients (none: forward only)."""
        self.entries[name] = prepare

    def measure(self) -> dict[str, dict]:
        rows = {name: {"section": self.section, "name": name, **self.shape} for name in self.entries}
        forward, backward = {}, {}
        for name, prepare in self.entries.items():
            try:
                run, inputs = prepare()
                if inputs:
                    backward[name] = self.gradients(run, inputs)
                with torch.no_grad():
                    run()
                forward[name] = run
            except Exception as error:  # noqa: BLE001  (one peer's failure is a finding)
                traceback.print_exc()
                rows[name]["error"] = bench_record.first_line(f"{type(error).__name__}: {error}")
                backward.pop(name, None)
        with torch.no_grad():
            for name, ms in self.report.clock.milliseconds(forward).items():
                rows[name]["forward_ms"] = round(ms, 4)
        for name, ms in self.report.clock.milliseconds(backward).items():
            rows[name]["backward_ms"] = round(ms, 4)
        self.report.take(list(rows.values()))
        return rows

    @staticmethod
    def gradients(run, inputs):
        out = run()
        dout = torch.randn_like(out)

        def gradients():
            return torch.autograd.grad(out, inputs, dout, retain_graph=True)
        gradients()
        return gradients


class Report:
    def __init__(self, clock: Clock, quick: bool):
        self.clock, self.quick, self.rows = clock, quick, []

    def take(self, rows: list[dict]) -> None:
        self.rows += rows
        for row in rows:
            print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        torch.cuda.empty_cache()


def peers_left_out() -> list[str]:
    """Peers that this machine lacks; their rows are not in the figures."""
    return [FLASH_4] if flash_attention_4 is None else []


def flash_4(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention [tokens, heads, dim] by FlashAttention 4; fewer queries than keys are the last ones."""
    out = flash_attention_4(q[None], k[None], v[None], causal=True)
    return out[0] if isinstance(out, tuple) else out


def compiled_flex(on_flash_4: bool):
    """FlexAttention in Triton, or on FlashAttention 4's kernels."""
    compiled = torch.compile(flex_attention, dynamic=False)
    options = {"kernel_options": {"BACKEND": "FLASH"}} if on_flash_4 else {}
    return lambda *qkv, **mask: compiled(*qkv, enable_gqa=True, **mask, **options)


def flex_names() -> dict[str, bool]:
    """FlexAttention's names, and whether each runs on FlashAttention 4."""
    names = {"FlexAttention, 70 % local": False, "FlexAttention on FlashAttention 4, 70 % local": True}
    return {name: on_flash_4 for name, on_flash_4 in names.items() if not on_flash_4 or flash_attention_4}


def rates(rows: dict[str, dict]) -> None:
    """Adds TFLOP/s over visible pairs of causal attention; backward counts as 2.5 times forward."""
    for row in rows.values():
        if "error" in row:
            continue
        flops = 4 * row["head_dim"] * row["query_heads"] * row["tokens"] * (row["tokens"] + 1) / 2
        for direction, factor in (("forward", 1), ("backward", 2.5)):
            row[f"{direction}_tflops"] = round(factor * flops / row[f"{direction}_ms"] / 1e9, 1)
        print(f"  {row['name']} {row['tokens']}: {row['forward_tflops']} / {row['backward_tflops']} TFLOP/s", flush=True)


# --- What is timed
class Training(Contest):
    """One sequence, and gated attention over it by our operator and by peers."""

    def __init__(self, report: Report, section: str, tokens: int, dim: int, group: int, kv_heads: int):
        super().__init__(report, section,
                         {"tokens": tokens, "head_dim": dim, "query_heads": group * kv_heads, "kv_heads": kv_heads})
        self.group = group

        def tensor(heads):
            return torch.randn(tokens, heads, dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        self.qkv = [tensor(group * kv_heads), tensor(kv_heads), tensor(kv_heads)]
        self.by_head = [t.detach().transpose(0, 1)[None].contiguous().requires_grad_() for t in self.qkv]

    def ours(self, name: str, gate: list[float]) -> None:
        tokens = self.shape["tokens"]
        z = torch.tensor(gate, device="cuda", requires_grad=True)
        bounds = torch.tensor([0, tokens], device="cuda", dtype=torch.int32)
        self.add(name, lambda: (lambda: torch.ops.prulong.gated_attention(
            *self.qkv, z, bounds, tokens, SINK, WINDOW, self.shape["head_dim"] ** -0.5), [*self.qkv, z]))

    def sdpa(self, name: str) -> None:
        def run():
            with sdpa_kernel(BACKENDS[name]):
                return F.scaled_dot_product_attention(*self.by_head, is_causal=True, enable_gqa=True)
        self.add(name, lambda: (run, self.by_head))

    def flash_4(self) -> None:
        if flash_attention_4:
            self.add(FLASH_4, lambda: (lambda: flash_4(*self.qkv), self.qkv))

    def flex(self, name: str, is_global: list[int], on_flash_4: bool) -> None:
        def prepare():
            tokens = self.shape["tokens"]
            mask = head_mask(torch.tensor(is_global, device="cuda").bool(), self.group, tokens, tokens, True)
            compiled = compiled_flex(on_flash_4)
            return lambda: compiled(*self.by_head, block_mask=mask), self.by_head
        self.add(name, prepare)

    def published(self, gate: list[float]) -> None:
        def prepare():
            kinds = [streaming_kinds(self.shape["tokens"], "cuda")]
            mask = block_mask(kinds, [0], lambda batch, head, q, k: k <= q, True)
            compiled = compiled_flex(False)
            z = torch.tensor(gate, device="cuda", requires_grad=True)

            def run():
                with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                    full = F.scaled_dot_product_attention(*self.by_head, is_causal=True, enable_gqa=True)
                streaming = compiled(*self.by_head, block_mask=mask)
                weight = z.repeat_interleave(self.group)[None, :, None, None].to(full.dtype)
                return full * weight + streaming * (1 - weight)
            return run, [*self.by_head, z]
        self.add("published way", prepare)


class Inference(Contest):
    """The last `queries` tokens of a sequence against all of its keys, by our operator and by peers."""

    def __init__(self, report: Report, section: str, queries: int, keys: int):
        group, kv_heads = 4, len(SEVEN_OF_TEN_LOCAL)
        super().__init__(report, section, {"queries": queries, "keys": keys, "head_dim": 128,
                                           "query_heads": group * kv_heads, "kv_heads": kv_heads})
        qkv = [torch.randn(tokens, heads, 128, device="cuda", dtype=torch.bfloat16)
               for tokens, heads in ((queries, group * kv_heads), (keys, kv_heads), (keys, kv_heads))]
        by_head = [t.transpose(0, 1)[None].contiguous() for t in qkv]
        bounds = [torch.tensor([0, n], device="cuda", dtype=torch.int32) for n in (queries, keys)]

        def ours(name, is_global):
            flags = torch.tensor(is_global, device="cuda").bool()
            self.add(name, lambda: (lambda: torch.ops.prulong.masked_attention(
                *qkv, flags, *bounds, queries, keys, SINK, WINDOW, 128 ** -0.5), []))
        ours("ours, all global", [1] * kv_heads)
        ours("ours, 70 % local", SEVEN_OF_TEN_LOCAL)
        ours("ours, all local", [0] * kv_heads)

        def flex(on_flash_4):
            flags = torch.tensor(SEVEN_OF_TEN_LOCAL, device="cuda").bool()
            mask = head_mask(flags, group, queries, keys, False)
            compiled = compiled_flex(on_flash_4)
            return lambda: compiled(*by_head, block_mask=mask), []
        for name, on_flash_4 in flex_names().items():
            self.add(name, lambda on_flash_4=on_flash_4: flex(on_flash_4))
        if flash_attention_4:
            self.add(f"{FLASH_4}, all global", lambda: (lambda: flash_4(*qkv), []))

        def sdpa(name):
            causal = queries == keys
            bias = None if causal else causal_lower_right(queries, keys)

            def run():
                with sdpa_kernel(BACKENDS[name]):
                    return F.scaled_dot_product_attention(*by_head, attn_mask=bias, is_causal=causal, enable_gqa=True)
            self.add(f"{name}, all global", lambda: (run, []))
        for name in BACKENDS if queries == keys else ["SDPA flash"]:
            sdpa(name)


def causal_contest(report: Report, section: str, tokens: int, dim: int) -> None:
    contest = Training(report, section, tokens, dim, 4, 8)
    contest.ours("ours", [1.0] * 8)
    for name in BACKENDS:
        contest.sdpa(name)
    contest.flash_4()
    rates(contest.measure())


def causal(report: Report) -> None:
    for tokens, dim in [(4096, 128), (16384, 128), (16384, 64)] + ([] if report.quick else [(65536, 128)]):
        causal_contest(report, "causal", tokens, dim)


def odd(report: Report) -> None:
    causal_contest(report, "odd", 16411, 128)


def fractional(report: Report) -> None:
    contest = Training(report, "fractional", 32768, 128, 4, 8)
    contest.ours("ours, all global", [1.0] * 8)
    contest.ours("ours, all fractional", [0.1 * n + 0.1 for n in range(8)])
    contest.published([0.1 * n + 0.1 for n in range(8)])
    contest.measure()


def saturated(report: Report) -> None:
    contest = Training(report, "saturated", 32768, 128, 4, len(SEVEN_OF_TEN_LOCAL))
    contest.ours("ours, all global", [1.0] * len(SEVEN_OF_TEN_LOCAL))
    contest.ours("ours, 70 % local", [float(flag) for flag in SEVEN_OF_TEN_LOCAL])
    contest.ours("ours, all local", [0.0] * len(SEVEN_OF_TEN_LOCAL))
    for name, on_flash_4 in flex_names().items():
        contest.flex(name, SEVEN_OF_TEN_LOCAL, on_flash_4)
    contest.published([float(flag) for flag in SEVEN_OF_TEN_LOCAL])
    contest.measure()


def prefill(report: Report) -> None:
    Inference(report, "prefill", 131072, 131072).measure()


def chunk(report: Report) -> None:
    Inference(report, "chunk", 8192, 131072).measure()


SECTIONS = {"causal": causal, "odd": odd, "fractional": fractional, "saturated": saturated, "prefill": prefill,
            "chunk": chunk}


# --- What comes of it
def ceilings(clock: Clock) -> dict:
    """The machine's own: a large matrix product and a large copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    ms = clock.milliseconds({"product": lambda: a @ b, "copy": lambda: target.copy_(source)})
    return {"matmul_tflops": round(2 * 8192**3 / ms["product"] / 1e9),
            "copy_tb_per_s": round(2 * 4 * (1 << 28) / ms["copy"] / 1e9, 2)}


def draw(rows: list[dict], path: Path) -> None:
    """One panel a section: milliseconds, forward and backward stacked."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    panels = {}
    for row in rows:
        if "error" not in row:
            size = row.get("tokens") or f"{row['queries']:,} of {row['keys']:,}"
            size = f"{size:,} tokens" if isinstance(size, int) else size
            panels.setdefault(f"{row['section']}, {size}, D {row['head_dim']}", []).append(row)
    if not panels:
        return
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5 * columns, 2.2 * lines), squeeze=False)
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    for axis, (title, bars) in zip(axes.flat, panels.items()):
        bars = bars[::-1]
        names = [bar["name"] for bar in bars]
        forward = [bar["forward_ms"] for bar in bars]
        backward = [bar.get("backward_ms", 0) for bar in bars]
        colours = ["#1f5fa8" if name.startswith("ours") else "#9aa7b5" for name in names]
        axis.barh(names, forward, color=colours)
        axis.barh(names, backward, left=forward, color=colours, alpha=0.55)
        for name, total in zip(names, map(sum, zip(forward, backward))):
            axis.annotate(f" {total:.3g}", (total, name), va="center", fontsize=7)
        axis.margins(x=0.15)
        axis.set_title(f"{title}: ms (paler: backward)", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    print(f"wrote {path}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=bench_record.output, default=bench_record.ROOT / "docs/bench/attention.json")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    if not torch.cuda.is_available():
        print("bench_attention: no CUDA GPU found; it needs one", file=sys.stderr)
        return 1
    torch.ops.load_library(os.environ.get("PRULONG_OPS_LIBRARY", bench_record.ROOT / "build/cuda/lib/libprulong_ops.so"))
    torch.manual_seed(0)
    begin = time.perf_counter()
    report = Report(Clock(0.2 if arguments.quick else 0.6), arguments.quick)
    figures = {"seconds": 0, "ceilings": ceilings(report.clock), "sink": SINK, "window": WINDOW,
               "peers_left_out": peers_left_out(), "rows": report.rows}
    for name in peers_left_out():
        print(f"bench_attention: {name} is not installed; left out (benchmarks/bring_flash_attention.sh brings it)", flush=True)
    for name in arguments.sections or SECTIONS:
        print(f"[{name}] at {time.perf_counter() - begin:.0f} s", flush=True)
        try:
            SECTIONS[name](report)
        except Exception as error:  # noqa: BLE001  (the other sections go on)
            traceback.print_exc()
            report.rows.append({"section": name, "name": "the whole section", "error": str(error)[:300]})
        torch.cuda.empty_cache()
    figures["seconds"] = round(time.perf_counter() - begin, 1)
    bench_record.write(arguments.out, figures)
    try:
        draw(report.rows, arguments.out.with_suffix(".png"))
    except Exception:  # noqa: BLE001  (the figures are written; a missing matplotlib costs the picture only)
        traceback.print_exc()
    return 1 if any("error" in row for row in report.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
