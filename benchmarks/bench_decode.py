#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Times decoding over a paged cache by our operator beside PyTorch's attention on the same keys, on one Hopper GPU.

32 query and 8 KV heads of 128, bfloat16, random data, pages in random order. Ours: every head global, and six of eight KV heads
local, whose lists hold the pages that their mask still needs (sink 128, window 1,024). Peers: scaled_dot_product_attention
with cuDNN and with FlashAttention-2 on a dense cache (sequences of one length and one new token), and heads as batch: the lists of all KV heads
as sequences of PyTorch's FlashAttention-2 for packed sequences. Calls are replayed from a CUDA graph that goes through several
caches, so that none lies in the L2 cache; what is compared runs in turn; medians. GB/s count the keys and values that must be
read. Writes docs/bench/decode.json.

Usage: benchmarks/bench_decode.py [--quick] [--out FILE] [SHAPE...]
  SHAPE     such as 1x131072, 4x131072, 16x32768, 1x8192, 1x2048, ragged, draft (default: all)
  --quick   fewer replays
The operators' library is PRULONG_OPS_LIBRARY, else build/cuda/lib/libprulong_ops.so.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
import traceback

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import bench_record

PAGE, HEADS, KV_HEADS, DIM, SINK, WINDOW = 128, 32, 8, 128, 128, 1024
GROUP = HEADS // KV_HEADS
DEVICE = "cuda"
ALL_GLOBAL, SIX_LOCAL = [1] * KV_HEADS, [0, 0, 1, 0, 0, 0, 1, 0]
CACHES_BYTES = 600 << 20  # of all caches that a graph goes through: ten times the L2 cache
# Entries of each sequence, and its new tokens.
SHAPES = {
    "1x131072": ([131072], 1),
    "4x131072": ([131072] * 4, 1),
    "16x32768": ([32768] * 16, 1),
    "1x8192": ([8192], 1),
    "1x2048": ([2048], 1),
    "ragged": ([1000 + 1021 * (7 * n % 32) for n in range(32)], 1),  # 1,000 to 32,651
    "draft": ([32768] * 8, 8),
}


class Cache:
    """The keys and values of some sequences, every KV head's list in pages of its own."""

    def __init__(self, lengths: list[int], is_global: list[int], tokens: int):
        self.lists = [[length if flag else self.kept(length, tokens) for flag in is_global] for length in lengths]
        self.places = -(-max(map(max, self.lists)) // PAGE)
        pages = sum(-(-n // PAGE) for heads in self.lists for n in heads)
        self.k, self.v = (torch.randn(pages, PAGE, DIM, device=DEVICE, dtype=torch.bfloat16) for _ in "kv")
        order = torch.randperm(pages).tolist()
        table = torch.full((len(lengths), KV_HEADS, self.places), -1, dtype=torch.int32)
        for b, heads in enumerate(self.lists):
            for h, n in enumerate(heads):
                for place in range(-(-n // PAGE)):
                    table[b, h, place] = order.pop()
        self.table = table.to(DEVICE)
        self.lengths = torch.tensor(self.lists, dtype=torch.int32, device=DEVICE)
        self.flags = torch.tensor(is_global, device=DEVICE).bool()
        self.tokens = tokens
        self.bounds = torch.arange(len(lengths) + 1, device=DEVICE, dtype=torch.int32) * tokens

    @staticmethod
    def kept(length: int, tokens: int) -> int:
        """Entries of a local head: the sink's page, and from the page on that holds the first one in the window."""
        first = (length - tokens - WINDOW + 1) // PAGE
        return length if first * PAGE <= SINK else length - first * PAGE + SINK

    def bytes(self) -> int:
        """Of the keys and values that must be read."""
        most = [torch.iinfo(torch.int32).max if flag else SINK + WINDOW + self.tokens - 1 for flag in self.flags.tolist()]
        return sum(min(n, limit) for heads in self.lists for n, limit in zip(heads, most)) * DIM * 2 * 2

    def gathered(self, pages: torch.Tensor, b: int, h: int) -> torch.Tensor:
        return pages[self.table[b, h, : -(-self.lists[b][h] // PAGE)].long()].flatten(0, 1)[: self.lists[b][h]]

    def dense(self) -> list[torch.Tensor]:
        """K and V [sequences, KV heads, entries, dim] of sequences of one length."""
        return [pages[self.table.long()].flatten(2, 3)[:, :, : self.lists[0][0]].contiguous() for pages in (self.k, self.v)]

    def packed(self) -> list[torch.Tensor]:
        """K and V [entries of all lists, 1, dim]."""
        return [torch.cat([self.gathered(pages, b, h) for b in range(len(self.lists)) for h in range(KV_HEADS)])[:, None]
                for pages in (self.k, self.v)]


# --- Contestants: each takes a cache and queries [tokens of all sequences, HEADS, DIM], and returns (run, its output's reading
# as [tokens of all sequences, HEADS, DIM]).
def ours(cache: Cache, q: torch.Tensor):
    def run():
        return torch.ops.prulong.paged_attention(q, cache.k, cache.v, cache.table, cache.lengths, cache.flags, cache.bounds,
                                                 cache.tokens, SINK, WINDOW, DIM ** -0.5)[0]
    return run, lambda out: out


def sdpa(backend: SDPBackend):
    def prepare(cache: Cache, q: torch.Tensor):
        k, v = cache.dense()
        by_head = q[:, :, None]

        def run():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(by_head, k, v, enable_gqa=True)
        return run, lambda out: out[:, :, 0]
    return prepare


def heads_as_batch(cache: Cache, q: torch.Tensor):
    k, v = cache.packed()
    lengths = cache.lengths.flatten()
    k_bounds = F.pad(lengths.cumsum(0), (1, 0)).int()
    q_bounds = torch.arange(lengths.numel() + 1, device=DEVICE, dtype=torch.int32) * cache.tokens
    sequences = len(cache.lists)
    rows = q.view(sequences, cache.tokens, KV_HEADS, GROUP, DIM).transpose(1, 2).reshape(-1, GROUP, DIM)
    longest = max(map(max, cache.lists))

    def run():
        return torch.ops.aten._flash_attention_forward(rows, k, v, q_bounds, k_bounds, cache.tokens, longest, 0.0, True, False,
                                                       scale=DIM ** -0.5)[0]
    return run, lambda out: out.view(sequences, KV_HEADS, cache.tokens, GROUP, DIM).transpose(1, 2).reshape(q.shape)


PEERS = {"SDPA cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION), "SDPA flash": sdpa(SDPBackend.FLASH_ATTENTION)}


def contestants(lengths: list[int], tokens: int) -> dict:
    """By name: which heads are global, and who computes."""
    dense = PEERS if len(set(lengths)) == 1 and tokens == 1 else {}
    return {"ours, all global": (ALL_GLOBAL, ours), "ours, 6 of 8 local": (SIX_LOCAL, ours),
            **{f"{name}, all global": (ALL_GLOBAL, prepare) for name, prepare in dense.items()},
            "heads as batch, all global": (ALL_GLOBAL, heads_as_batch),
            "heads as batch, 6 of 8 local": (SIX_LOCAL, heads_as_batch)}


# --- Timing
def captured(runs: list, calls: int) -> torch.cuda.CUDAGraph:
    """A graph of `calls` calls, through all runs in turn."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for run in runs:
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for n in range(calls):
            runs[n % len(runs)]()
    return graph


def microseconds(graphs: dict, calls: dict, rounds: int) -> dict:
    """Of a call, by name: medians over rounds in which the graphs take turns, in another order each."""
    times = {name: [] for name in graphs}
    orders = list(itertools.islice(itertools.permutations(graphs), 0, None, 7))[:rounds] or [tuple(graphs)]
    for n in range(rounds):
        for name in orders[n % len(orders)]:
            graphs[name].replay()  # the rest of the turn before
            events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
            for event in events:
                event.record()
                if event is not events[-1]:
                    graphs[name].replay()
            torch.cuda.synchronize()
            times[name] += [1000 * a.elapsed_time(b) / calls[name] for a, b in zip(events, events[1:])]
    return {name: statistics.median(of_run) for name, of_run in times.items()}


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def measure(shape: str, rounds: int) -> list[dict]:
    lengths, tokens = SHAPES[shape]
    rows, graphs, calls, keep, outputs = [], {}, {}, [], {}
    q = torch.randn(tokens * len(lengths), HEADS, DIM, device=DEVICE, dtype=torch.bfloat16)
    caches: dict[str, list[Cache]] = {}
    for name, (is_global, prepare) in contestants(lengths, tokens).items():
        key = str(is_global)
        if key not in caches:
            caches[key] = [Cache(lengths, is_global, tokens)]
            copies = min(32, -(-CACHES_BYTES // caches[key][0].bytes()))
            caches[key] += [Cache(lengths, is_global, tokens) for _ in range(copies - 1)]
        row = {"shape": shape, "name": name, "sequences": len(lengths), "entries": sum(lengths), "tokens": tokens,
               "bytes": caches[key][0].bytes()}
        rows.append(row)
        try:
            prepared = [prepare(cache, q) for cache in caches[key]]
            runs = [run for run, _ in prepared]
            outputs[name] = prepared[0][1](runs[0]()).clone()
            calls[name] = max(8, len(runs))
            graphs[name] = captured(runs, calls[name])
            keep.append(prepared)
        except Exception as fault:  # noqa: BLE001  (one peer's failure is a finding)
            traceback.print_exc()
            row["error"] = bench_record.first_line(f"{type(fault).__name__}: {fault}")
    for name, us in microseconds(graphs, calls, rounds).items():
        row = next(row for row in rows if row["name"] == name)
        row |= {"us": round(us, 2), "gb_per_s": round(row["bytes"] / us / 1e3), "caches": calls[name]}
        mine = "ours, 6 of 8 local" if name.endswith("6 of 8 local") else "ours, all global"
        # Local lists hold some entries that the mask hides and heads as batch does not.
        if not name.startswith("ours") and not (name.startswith("heads") and "local" in name):
            row["difference_to_ours"] = error(outputs[mine], outputs[name])
    for row in rows:
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return rows


def ratios(rows: list[dict]) -> dict:
    """How many times as fast ours is, and its share of 4.4 TB/s, at what an H200's memory gives."""
    times = {(row["shape"], row["name"]): row for row in rows if "us" in row}
    found = {}

    def add(name, ours, peer):
        if ours in times and peer in times:
            found[name] = times[peer]["us"] / times[ours]["us"]

    for shape in dict.fromkeys(row["shape"] for row in rows):
        dense, local = (shape, "ours, all global"), (shape, "ours, 6 of 8 local")
        add(f"{shape}_dense_of_cudnn", dense, (shape, "SDPA cuDNN, all global"))
        add(f"{shape}_local_of_cudnn_dense", local, (shape, "SDPA cuDNN, all global"))
        add(f"{shape}_local_of_heads_as_batch", local, (shape, "heads as batch, 6 of 8 local"))
        if local in times:
            found[f"{shape}_local_of_4.4_tb_per_s"] = times[local]["bytes"] / times[local]["us"] / 4.4e6
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=bench_record.output, default=bench_record.ROOT / "docs/bench/decode.json")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.shapes if name not in SHAPES]
    if unknown:
        parser.error(f"no shape {unknown[0]!r}; there are {', '.join(SHAPES)}")
    if not torch.cuda.is_available():
        print("bench_decode: no CUDA GPU found; it needs one", file=sys.stderr)
        return 1
    torch.ops.load_library(os.environ.get("PRULONG_OPS_LIBRARY", bench_record.ROOT / "build/cuda/lib/libprulong_ops.so"))
    torch.manual_seed(0)
    begin, rows = time.perf_counter(), []
    for shape in arguments.shapes or SHAPES:
        print(f"[{shape}] at {time.perf_counter() - begin:.0f} s", flush=True)
        try:
            rows += measure(shape, 4 if arguments.quick else 12)
        except Exception as fault:  # noqa: BLE001  (the other shapes go on)
            traceback.print_exc()
            rows.append({"shape": shape, "name": "the whole shape", "error": str(fault)[:300]})
        torch.cuda.empty_cache()
    bench_record.write(arguments.out, {"seconds": round(time.perf_counter() - begin, 1), "query_heads": HEADS, "kv_heads": KV_HEADS,
                                       "head_dim": DIM, "sink": SINK, "window": WINDOW, "ratios": ratios(rows), "rows": rows})
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
