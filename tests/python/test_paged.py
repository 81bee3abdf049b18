# SPDX-License-Identifier: MIT
"""append_kv and paged_attention against direct attention in float64, on every device present."""

import math
from dataclasses import dataclass

import pytest
import torch

import prulong  # noqa: F401  (loads the operators)
from prulong.ops import append_kv, masked_attention, paged_attention

OPS = torch.ops.prulong
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@dataclass
class Cache:
    """Pages full of NaN but for what is stored, in a shuffled order; a list of entries per sequence and head."""

    k_pages: torch.Tensor
    v_pages: torch.Tensor
    table: torch.Tensor  # [B, Hkv, N]
    lengths: torch.Tensor  # [B, Hkv]
    k: list[list[torch.Tensor]]  # [B][Hkv]: [length, D] float64, what the pages hold
    v: list[list[torch.Tensor]]

    def to(self, device):
        moved = (x.to(device) for x in (self.k_pages, self.v_pages, self.table, self.lengths))
        return Cache(*moved, self.k, self.v)

    @property
    def tensors(self):
        return self.k_pages, self.v_pages, self.table, self.lengths


def make_cache(lengths, head_dim, page, dtype=torch.float64, seed=0, spare=3):
    """lengths [B][Hkv]. Table entries past a list are out of range: they must not be read."""
    generator = torch.Generator().manual_seed(seed)
    sequences, heads = len(lengths), len(lengths[0])
    count = lambda n: (n + page - 1) // page  # noqa: E731
    total = sum(count(n) for row in lengths for n in row)
    order = torch.randperm(total + spare, generator=generator)[:total].tolist()
    k_pages, v_pages = (torch.full((total + spare, page, head_dim), math.nan, dtype=dtype) for _ in range(2))
    width = max(count(n) for row in lengths for n in row) + 1
    table = torch.full((sequences, heads, width), -7, dtype=torch.int32)
    k, v = ([[None] * heads for _ in range(sequences)] for _ in range(2))
    for b in range(sequences):
        for h in range(heads):
            n = lengths[b][h]
            pages = [order.pop() for _ in range(count(n))]
            table[b, h, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
            for whole, pool in ((k, k_pages), (v, v_pages)):
                entries = torch.randn(n, head_dim, generator=generator, dtype=torch.float64).to(dtype)
                whole[b][h] = entries.double()
                for i, p in enumerate(pages):
                    part = entries[i * page : (i + 1) * page]
                    pool[p, : len(part)] = part
    return Cache(k_pages, v_pages, table, torch.tensor(lengths, dtype=torch.int32).view(sequences, heads), k, v)


def bounds_of(rows, device="cpu"):
    return torch.tensor([0, *rows]).cumsum(0).to(device, torch.int32)


def reference(q, cache, is_global, rows, sink, window, scale, dtype=torch.float64):
    """By definition: each query of each sequence and head over all its entries, in `dtype`."""
    group = q.shape[1] // len(is_global)
    out = torch.empty(q.shape, dtype=dtype)
    lse = torch.empty(q.shape[1], q.shape[0], dtype=dtype)
    begin = 0
    for b, n in enumerate(rows):
        for h, is_global_head in enumerate(is_global):
            k, v = cache.k[b][h].to(dtype), cache.v[b][h].to(dtype)
            i = torch.arange(len(k) - n, len(k))[:, None]
            j = torch.arange(len(k))[None]
            hidden = j > i if is_global_head else (j > i) | ((j >= sink) & (i - j >= window))
            heads = slice(h * group, (h + 1) * group)
            x = q[begin : begin + n, heads].to("cpu", dtype)
            scores = (torch.einsum("ngd,kd->gnk", x, k) * scale).masked_fill(hidden, -math.inf)
            out[begin : begin + n, heads] = torch.einsum("gnk,kd->ngd", scores.softmax(-1), v)
            lse[heads, begin : begin + n] = scores.logsumexp(-1)
        begin += n
    return out, lse


def queries(rows, heads, head_dim, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(rows), heads, head_dim, generator=generator, dtype=torch.float64).to(dtype)


# (rows, lengths [B][Hkv], group, head_dim, page, sink, window)
CASES = [
    ([1], [[1]], 1, 8, 1, 0, 1),
    ([3], [[3, 9]], 1, 17, 1, 2, 3),
    ([1, 0, 5], [[40, 33, 1], [0, 7, 3], [5, 64, 70]], 3, 64, 16, 4, 20),
    ([16, 1], [[500, 16, 33], [129, 1, 500]], 8, 80, 32, 40, 64),
    ([0, 7, 0, 2], [[0, 0], [300, 7], [9, 9], [2, 131]], 4, 128, 128, 5, 1000),
    ([130], [[130, 391]], 2, 64, 32, 0, 1),
    ([0], [[5, 0]], 2, 8, 4, 1, 1),
    ([], [], 2, 8, 4, 1, 1),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c[1]], ids=str)
def test_paged_attention_matches_the_reference(case, dtype, device):
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("float64 is CPU only")
    rows, lengths, group, head_dim, page, sink, window = case
    heads = len(lengths[0])
    cache = make_cache(lengths, head_dim, page, dtype)
    q = queries(rows, heads * group, head_dim, dtype)
    scale = 1 / math.sqrt(head_dim)
    for flags in ([True] * heads, [False] * heads, [h % 2 == 0 for h in range(heads)]):
        args = (flags, rows, sink, window, scale)
        want, want_lse = reference(q, cache, *args)
        plain, plain_lse = reference(q, cache, *args, dtype=dtype)
        out, lse = paged_attention(
            q.to(device), *cache.to(device).tensors, torch.tensor(flags, device=device), bounds_of(rows, device),
            max([*rows, 1]), sink=sink, window=window,
        )
        assert out.dtype == dtype and lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for a, b, c in ((out, want, plain), (lse, want_lse, plain_lse)):
            a, c = a.cpu().double(), c.double()
            assert a.isfinite().all()
            if b.numel() == 0:
                continue
            floor = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, torch.finfo(dtype).eps / 2)
            assert (a - b).abs().max() <= 2 * (c - b).abs().max() + floor * (1 + b.abs().max())
