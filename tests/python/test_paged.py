# SPDX-License-Identifier: MIT
"""paged_attention against direct attention in float64, on every device present."""

import math
import random
from dataclasses import dataclass

import pytest
import torch

import prulong  # noqa: F401  (loads the operators)
from prulong.ops import masked_attention, paged_attention

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


def run(q, cache, is_global, rows, sink, window, scale=None, device="cpu"):
    """paged_attention of queries [T, Hq, D] on any device."""
    flags = torch.tensor(is_global, device=device)
    return paged_attention(
        q.to(device), *cache.to(device).tensors, flags, bounds_of(rows, device), max([*rows, 1]),
        sink=sink, window=window, scale=scale,
    )  # fmt: skip


def check(q, cache, is_global, rows, sink, window, device="cpu"):
    """Against the reference in float64; the error of plain PyTorch in q's dtype is the measure of ours."""
    dtype = q.dtype
    args = (q, cache, is_global, rows, sink, window)
    scale = 1 / math.sqrt(q.shape[2])
    want = reference(*args, scale)
    plain = reference(*args, scale, dtype=dtype)
    got = run(*args, device=device)
    assert got[0].dtype == dtype and got[0].shape == q.shape and got[0].is_contiguous()
    assert got[1].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got[1].shape == (q.shape[1], q.shape[0])
    for a, b, c in zip(got, want, plain):
        a, c = a.cpu().double(), c.double()
        assert a.isfinite().all()
        if b.numel() == 0:
            continue
        floor = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, torch.finfo(dtype).eps / 2)
        assert (a - b).abs().max() <= 2 * (c - b).abs().max() + floor * (1 + b.abs().max())


# (rows, lengths [B][Hkv], group, head_dim, page, sink, window): sequences without rows, entries or both, windows and
# sinks larger than the sequence, windows of one, sinks of none and of several pages.
CASES = [
    ([1], [[1]], 1, 8, 1, 0, 1),
    ([3], [[3, 9]], 1, 17, 1, 2, 3),
    ([1, 0, 5], [[40, 33, 1], [0, 7, 3], [5, 64, 70]], 3, 64, 16, 4, 20),
    ([16, 1], [[500, 16, 33], [129, 1, 500]], 8, 80, 32, 40, 64),
    ([0, 7, 0, 2], [[0, 0], [300, 7], [9, 9], [2, 131]], 4, 128, 128, 5, 1000),
    ([130], [[130, 391]], 2, 64, 32, 0, 1),
    ([0], [[5, 0]], 2, 8, 4, 1, 1),
    ([700], [[700, 1900]], 2, 16, 64, 100, 65),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def kinds(heads):
    return [True] * heads, [False] * heads, [h % 2 == 0 for h in range(heads)]


def cpu_has_double(device, dtype):
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("float64 is CPU only")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_paged_attention_matches_the_reference(case, dtype, device):
    cpu_has_double(device, dtype)
    rows, lengths, group, head_dim, page, sink, window = case
    heads = len(lengths[0])
    cache = make_cache(lengths, head_dim, page, dtype)
    q = queries(rows, heads * group, head_dim, dtype)
    for flags in kinds(heads):
        check(q, cache, flags, rows, sink, window, device)


@pytest.mark.parametrize("head_dim", [1, 8, 17, 64, 80, 128, 192])
@pytest.mark.parametrize("page", [1, 2, 16, 32, 64, 100, 128])
def test_head_dims_and_pages(head_dim, page, device):
    """All together, and every ratio of query heads to key heads and 1 to 16 rows among them."""
    group, rows = 1 + (head_dim + page) % 8, [1 + (3 * head_dim + page) % 16, 2]
    lengths = [[rows[0] + 150, rows[0] + 31], [2, 290]]
    cache = make_cache(lengths, head_dim, page, torch.float32, seed=head_dim)
    check(queries(rows, 2 * group, head_dim, torch.float32), cache, [True, False], rows, page + 1, 37, device)


@pytest.mark.parametrize("group", range(1, 9))
@pytest.mark.parametrize("rows", range(1, 17))
def test_groups_and_rows(group, rows, device):
    cache = make_cache([[rows + 50, rows]], 24, 16, torch.float32, seed=group)
    check(queries([rows], 2 * group, 24, torch.float32), cache, [False, True], [rows], 3, 9, device)


def test_many_rows(device):
    cache = make_cache([[3000, 3300]], 16, 64, torch.float32)
    check(queries([3000], 4, 16, torch.float32), cache, [True, False], [3000], 70, 400, device)


@pytest.mark.parametrize("seed", range(20))
def test_random_shapes(seed, device):
    """Twenty cases a seed."""
    draw = random.Random(seed)
    for n in range(20):
        heads, group = draw.randint(1, 4), draw.randint(1, 8)
        head_dim, page = draw.randint(1, 40), draw.choice([1, 2, 3, 8, 16, 17, 32, 64])
        rows = [draw.choice([0, 1, 1, 2, draw.randint(1, 40)]) for _ in range(draw.randint(1, 5))]
        lengths = [[n + draw.choice([0, 0, 1, draw.randint(0, 100)]) for _ in range(heads)] for n in rows]
        sink, window = draw.choice([0, 1, draw.randint(0, 150)]), draw.choice([1, 2, draw.randint(1, 150), 2**62])
        dtype = draw.choice(DTYPES[device == "cuda" :])
        cache = make_cache(lengths, head_dim, page, dtype, seed=100 * seed + n)
        q = queries(rows, heads * group, head_dim, dtype, seed=n)
        check(q, cache, [draw.random() < 0.5 for _ in range(heads)], rows, sink, window, device)


def test_no_sequences(device):
    cache = make_cache([[5, 5]], 8, 4, torch.float32)
    none = Cache(cache.k_pages, cache.v_pages, cache.table[:0], cache.lengths[:0], [], [])
    out, lse = run(torch.zeros(0, 4, 8), none, [True, False], [], 1, 1, device=device)
    assert out.shape == (0, 4, 8) and lse.shape == (4, 0)


def test_strided_arguments(device):
    """Slices of a fused projection, every other head and token, lists and kinds with gaps."""
    rows, lengths = [9, 2], [[30, 12], [70, 2]]
    cache = make_cache(lengths, 16, 8, torch.float32)
    whole = queries([22], 12, 16, torch.float32)
    q = whole[::2, 2:10:2]
    assert not q.is_contiguous()
    want = run(q.contiguous(), cache, [True, False], rows, 3, 5, device=device)
    apart = lambda x: x.to(device).repeat_interleave(2, -1)[..., ::2]  # noqa: E731
    got = paged_attention(
        whole.to(device)[::2, 2:10:2], cache.k_pages.to(device), cache.v_pages.to(device), apart(cache.table),
        apart(cache.lengths), apart(torch.tensor([True, False])), apart(bounds_of(rows)), 9, sink=3, window=5,
    )  # fmt: skip
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_masked_attention(dtype, device):
    """To rounding, with the lists as documents."""
    rows, lengths = [5, 64, 1], [[200, 200], [64, 64], [129, 129]]
    cache = make_cache(lengths, 64, 32, dtype)
    q = queries(rows, 6, 64, dtype)
    k, v = (torch.cat([torch.stack(x, 1) for x in whole]).to(device, dtype) for whole in (cache.k, cache.v))
    bounds = [bounds_of(x, device) for x in (rows, [n for n, _ in lengths])]
    for flags in kinds(2):
        got = run(q, cache, flags, rows, 4, 50, device=device)
        kinds_of = torch.tensor(flags, device=device)
        want = masked_attention(q.to(device), k, v, kinds_of, *bounds, 64, 200, sink=4, window=50)
        tolerance = 2e-6 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(got[0], want[0], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(got[1], want[1], rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 200.0, 3000.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_any_finite_scale(dtype, scale, device):
    """Also those whose scores' exponentials overflow."""
    cpu_has_double(device, dtype)
    rows, lengths = [40, 1], [[70, 40], [1, 300]]
    cache = make_cache(lengths, 64, 16, dtype)
    q = queries(rows, 4, 64, dtype)
    want, want_lse = reference(q, cache, [True, False], rows, 5, 20, scale)
    out, lse = run(q, cache, [True, False], rows, 5, 20, scale, device)
    # Scores up to about 1e5 keep an absolute error of 1e-2 in float32.
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}[dtype]
    if dtype != torch.float64 and scale > 1:
        tolerance = max(tolerance, scale * 1e-4)
    torch.testing.assert_close(out.cpu().double(), want, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.cpu().double(), want_lse, rtol=1e-5, atol=max(1e-4, scale * 64 * 2**-24))
