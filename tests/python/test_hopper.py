# SPDX-License-Identifier: MIT
"""The operators by our own kernels, on a Hopper GPU: against the mathematics, with memory full of NaN, without waiting.

PRULONG_REPEAT (20) says how often one input is repeated.
"""

import os

import pytest
import torch

if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("no Hopper GPU", allow_module_level=True)

from prulong.ops import gated_attention, masked_attention, paged_attention
from test_ops import attend, check_against_reference, gates, hidden_keys, make, with_gradients

# (cu_seqlens, query heads, key heads, head_dim, sink, window): documents around multiples of the tiles, empty ones, one-token
# ones, many tiny ones; sinks and windows that are multiples of 128 and that are not.
CASES = [
    ([0, 1], 1, 1, 64, 1, 1),
    ([0, 127], 2, 1, 128, 0, 1),
    ([0, 128, 257], 3, 1, 64, 4, 100),
    ([0, 129, 129, 130, 385], 4, 4, 128, 128, 128),
    ([0, 255, 511, 768], 8, 2, 64, 128, 256),
    ([0, 1151], 4, 1, 128, 128, 1024),
    ([0, 1152, 2305], 8, 1, 64, 130, 513),
    ([0, 700, 701, 701, 1400], 6, 2, 128, 200, 77),
    ([0, 900], 2, 2, 64, 5000, 10000),
    (list(range(0, 400, 3)), 4, 2, 128, 1, 2),
]
SMALL = [CASES[3], CASES[4]]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What the allocator hands out next is full of NaN."""
    blocks = [torch.full((1 << 22,), float("nan"), device="cuda") for _ in range(8)]
    blocks += [torch.full((n,), float("nan"), device="cuda") for n in (64, 1 << 10, 1 << 14, 1 << 18) for _ in range(16)]
    del blocks


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gated_attention_matches_the_reference(case, dtype):
    for gate in gates(case[2], dtype, "cuda"):
        check_against_reference(case, gate, dtype, "cuda")


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_small(case):
    """For sanitizers: forward and backward of every kind of head, briefly."""
    q, k, v, cu, longest, locality = make(case, torch.bfloat16, "cuda")
    gate = torch.tensor([0.3, 0.0, 1.0, 1e-6])[: case[2]].cuda()
    outputs = with_gradients(lambda *x: gated_attention(*x, cu, longest, **locality), (q, k, v, gate), torch.ones_like(q))
    outputs += masked_attention(q, k, v, gate > 0.2, cu, cu, longest, longest, **locality)
    assert all(t.isfinite().all() for t in outputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_large_norms(dtype):
    for gate in gates(2, dtype, "cuda"):
        check_against_reference(([0, 700], 4, 2, 128, 16, 128), gate, dtype, "cuda", norm=3.0)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("lengths", [[(1, 3000)], [(130, 130), (0, 9), (5, 4096)], [(700, 5000)], [(2048, 16384)]], ids=str)
def test_queries_fewer_than_keys(lengths, head_dim):
    torch.manual_seed(0)
    group, flags, sink, window = 3, [False, True, False], 16, 300
    q = torch.randn(sum(n for n, m in lengths), group * len(flags), head_dim, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(sum(m for n, m in lengths), len(flags), head_dim, device="cuda", dtype=torch.bfloat16) for _ in "kv")
    bounds = [torch.tensor([0, *torch.tensor(x).cumsum(0)], device="cuda", dtype=torch.int32) for x in zip(*lengths)]
    out, lse = masked_attention(q, k, v, torch.tensor(flags).cuda(), *bounds, *(max(x) for x in zip(*lengths)), sink=sink,
                                window=window)
    q_bounds, k_bounds = (x.tolist() for x in bounds)
    for d, (n, m) in enumerate(lengths):
        rows, keys = slice(q_bounds[d], q_bounds[d + 1]), slice(k_bounds[d], k_bounds[d + 1])
        for h, flag in enumerate(flags if n else []):
            hidden = hidden_keys(n, m, sink, window, local=not flag).cuda()
            heads = slice(group * h, group * (h + 1))
            want, want_lse = attend(q[rows, heads].double(), k[keys, h : h + 1].double(), v[keys, h : h + 1].double(), hidden)
            torch.testing.assert_close(out[rows, heads].double(), want, rtol=2e-2, atol=2e-2)
            torch.testing.assert_close(lse[heads, rows].double(), want_lse, rtol=0, atol=1e-4)


def test_our_kernels_and_sdpa_agree(monkeypatch):
    q, k, v, cu, longest, locality = make(([0, 3000, 4099], 8, 4, 128, 128, 512), torch.bfloat16, "cuda")
    gate = torch.tensor([0.3, 0.0, 1.0, 0.9], device="cuda")
    run = lambda: with_gradients(  # noqa: E731
        lambda *x: gated_attention(*x, cu, longest, **locality), (q, k, v, gate), torch.randn(q.shape).to(q))
    torch.manual_seed(1)
    ours = run()
    monkeypatch.setenv("PRULONG_ATTENTION", "sdpa")
    torch.manual_seed(1)
    theirs = run()
    for a, b in zip(ours, theirs):
        assert (a - b).norm() <= 1e-2 * b.norm()
    assert not torch.equal(ours[1], theirs[1])  # two ways, not one


def test_nothing_waits_for_the_device_and_graphs_replay():
    q, k, v, cu, longest, locality = make(([0, 300, 701], 4, 2, 64, 16, 128), torch.bfloat16, "cuda")
    gate = torch.tensor([0.3, 1.0], device="cuda")
    dout = torch.randn(q.shape, device="cuda").to(q)
    inputs = [x.requires_grad_() for x in (q, k, v, gate.clone())]

    def step():
        out = gated_attention(*inputs, cu, longest, **locality)
        masked = masked_attention(q, k, v, inputs[3] > 0.5, cu, cu, longest, longest, **locality)[0]
        return [out, masked, *torch.autograd.grad(out, inputs, dout)]

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for values in ([0.3, 1.0], [0.0, 0.7], [1.0, 0.0]):  # other gates, other items
        with torch.no_grad():
            inputs[3].copy_(torch.tensor(values))
        graph.replay()
        for a, b in zip(captured, step()):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_wrong_data_give_nan():
    q, k, v, cu, longest, locality = make(([0, 300, 701], 4, 2, 64, 16, 128), torch.bfloat16, "cuda")
    gate = torch.tensor([0.3, 1.0], device="cuda")
    for wrong in ([1, 300, 701], [0, 702, 701], [0, 300, 700], [0, -5, 701], [0, 300, 1 << 30]):
        bounds = torch.tensor(wrong, device="cuda", dtype=torch.int32)
        results = with_gradients(lambda *x: gated_attention(*x, bounds, longest, **locality), (q, k, v, gate),
                                 torch.ones_like(q))
        assert all(t.isnan().all() for t in results), wrong
        results = masked_attention(q, k, v, gate > 1, bounds, cu, longest, longest, **locality)
        assert all(t.isnan().all() for t in results), wrong
    for z in (-0.1, 1.1, float("nan")):
        out = gated_attention(q, k, v, torch.tensor([z, 1.0], device="cuda"), cu, longest, **locality)
        assert out[:, :2].isnan().all() and out[:, 2:].isfinite().all()


def test_wrong_data_are_refused_on_request(monkeypatch):
    monkeypatch.setenv("PRULONG_CHECK", "1")
    q, k, v, cu, longest, locality = make(([0, 300, 701], 4, 2, 64, 16, 128), torch.bfloat16, "cuda")
    gate = torch.tensor([0.3, 1.0], device="cuda")
    for wrong, message in (([1, 300, 701], "must start at 0, got 1"), ([0, 702, 701], "must not decrease, got 702 then 701"),
                           ([0, 300, 700], "must end at the number of tokens, 701, got 700")):
        bounds = torch.tensor(wrong, device="cuda", dtype=torch.int32)
        with pytest.raises(RuntimeError, match=f"gated_attention: cu_seqlens {message}"):
            gated_attention(q, k, v, gate, bounds, 1000, **locality)
        with pytest.raises(RuntimeError, match=f"masked_attention: cu_seqlens_q {message}"):
            masked_attention(q, k, v, gate > 0.5, bounds, cu, 1000, longest, **locality)
    with pytest.raises(RuntimeError, match="max_seqlen must be at least the longest document's length, got 400"):
        gated_attention(q, k, v, gate, cu, 400, **locality)
    for z in (-0.1, 1.1, float("nan")):
        with pytest.raises(RuntimeError, match=r"gate must lie in \[0, 1\], got .* for key head 0"):
            gated_attention(q, k, v, torch.tensor([z, 1.0], device="cuda"), cu, longest, **locality)
    checked = gated_attention(q, k, v, gate, cu, longest, **locality)
    monkeypatch.setenv("PRULONG_CHECK", "0")
    assert torch.equal(checked, gated_attention(q, k, v, gate, cu, longest, **locality))


def test_repeated_runs_agree():
    """The same bits, but for dq, whose sums have no fixed order."""
    q, k, v, cu, longest, locality = make(([0, 1000, 1129, 2600], 8, 4, 128, 128, 300), torch.bfloat16, "cuda")
    gate = torch.tensor([0.3, 0.0, 1.0, 0.6], device="cuda")
    dout = torch.randn(q.shape, generator=torch.Generator().manual_seed(2)).to(q)
    run = lambda: with_gradients(lambda *x: gated_attention(*x, cu, longest, **locality), (q, k, v, gate), dout)  # noqa: E731
    first = run()
    for n in range(int(os.environ.get("PRULONG_REPEAT", 20))):
        again = run()
        for name, a, b in zip(("out", "dq", "dk", "dv", "dgate"), first, again):
            if name == "dq":
                assert (a - b).float().norm() <= 1e-3 * a.float().norm(), n
            else:
                assert torch.equal(a, b), (name, n)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_deterministic_runs_have_the_same_bits(head_dim):
    q, k, v, cu, longest, locality = make(([0, 1000, 1129, 2600], 8, 4, head_dim, 128, 300), torch.bfloat16, "cuda")
    gate = torch.tensor([0.3, 0.0, 1.0, 0.6], device="cuda")
    run = lambda: with_gradients(  # noqa: E731
        lambda *x: gated_attention(*x, cu, longest, **locality), (q, k, v, gate), torch.ones_like(q))
    loose = run()
    torch.use_deterministic_algorithms(True)
    try:
        first = run()
        assert all(torch.equal(a, b) for _ in range(5) for a, b in zip(first, run()))
    finally:
        torch.use_deterministic_algorithms(False)
    assert (first[1] - loose[1]).float().norm() <= 1e-3 * loose[1].float().norm()


class Paged:
    """Queries over a cache in pages of 128 in random order. NaN lies wherever no entry does, nonsense in unused places of the
    table. lengths: entries by sequence and KV head; queries: new tokens by sequence."""

    def __init__(self, lengths, queries, group=4, head_dim=128, dtype=torch.bfloat16, flags=None, sink=100, window=200, places=0):
        kv_heads = len(lengths[0])
        assert all(n == 0 or n >= new for heads, new in zip(lengths, queries) for n in heads), "entries include the new tokens"
        self.queries, self.group, self.locality = queries, group, dict(sink=sink, window=window)
        self.flags = torch.tensor(flags or [h % 2 == 0 for h in range(kv_heads)])
        count = [[-(-n // 128) for n in heads] for heads in lengths]
        places = max(places, 1 + max(map(max, count)))
        order = torch.randperm(sum(map(sum, count)) + 2).tolist()
        self.k, self.v = (torch.randn(len(order), 128, head_dim, device="cuda").to(dtype) for _ in "kv")
        self.table = torch.randint(-(1 << 31), (1 << 31) - 1, (len(lengths), kv_heads, places), dtype=torch.int32)
        for b, heads in enumerate(lengths):
            for h, n in enumerate(heads):
                for place in range(count[b][h]):
                    self.table[b, h, place] = page = order.pop()
                if n % 128:
                    self.k[page, n % 128:] = self.v[page, n % 128:] = float("nan")
        self.k[order] = self.v[order] = float("nan")
        self.table, self.flags = self.table.cuda(), self.flags.cuda()
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device="cuda")
        self.bounds = torch.tensor([0, *torch.tensor(queries).cumsum(0)], dtype=torch.int32, device="cuda")
        self.q = torch.randn(sum(queries), group * kv_heads, head_dim).to("cuda", dtype)

    def attend(self):
        return paged_attention(self.q, self.k, self.v, self.table, self.lengths, self.flags, self.bounds, max(self.queries),
                               **self.locality)

    def check(self, out, lse):
        bounds, lengths = self.bounds.tolist(), self.lengths.tolist()
        for b, n in enumerate(self.queries):
            for h, m in enumerate(lengths[b] if n else []):
                hidden = hidden_keys(n, m, **self.locality, local=not self.flags[h]).cuda()
                k, v = (x[self.table[b, h, : -(-m // 128)].long()].flatten(0, 1)[:m, None].double() for x in (self.k, self.v))
                rows, heads = slice(bounds[b], bounds[b + 1]), slice(self.group * h, self.group * (h + 1))
                want, want_lse = attend(self.q[rows, heads].double(), k, v, hidden)
                torch.testing.assert_close(out[rows, heads].double(), want, rtol=2e-2, atol=2e-2)
                torch.testing.assert_close(lse[heads, rows].double(), want_lse, rtol=0, atol=1e-4)


PAGED = [
    ([[1]], [1], 1),
    ([[4096, 300, 129, 128]], [1], 8),
    ([[900, 640], [300, 0], [129, 1], [5, 411], [20000, 1300]], [1, 0, 1, 1, 1], 4),
    ([[3000, 500, 77], [16, 2048, 130]], [16, 7], 4),
    ([[257 * (1 + (b + h) % 5) + b for h in range(8)] for b in range(40)], [1] * 40, 2),
    ([[130000, 1200]], [3], 7),
    ([[515, 330], [100, 0], [260, 1], [70, 333]], [200, 0, 1, 70], 2),
    ([[20000, 1500, 9000]], [300], 3),
    ([[2048, 1024], [33, 8000]], [2048 - 1100, 33], 8),
]


@pytest.mark.parametrize("case", PAGED, ids=lambda case: f"{len(case[0])}x{case[0][0][0]}_q{max(case[1])}")
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_paged_attention_matches_the_reference(case, head_dim, dtype):
    torch.manual_seed(0)
    for locality in (dict(sink=100, window=200), dict(sink=128, window=1024), dict(sink=0, window=1 << 30)):
        cache = Paged(*case, head_dim=head_dim, dtype=dtype, **locality)
        cache.check(*cache.attend())


@pytest.mark.parametrize("head_dim", [64, 128])
def test_small_paged(head_dim):
    """For sanitizers: decoding and a chunk, split over multiprocessors and not."""
    torch.manual_seed(0)
    for queries in ([1, 3], [70, 2]):
        cache = Paged([[3000, 400], [129, 700]], queries, head_dim=head_dim)
        cache.check(*cache.attend())


def test_paged_calls_wait_for_nothing_and_graphs_replay_at_any_length():
    torch.manual_seed(0)
    small, large = [[70, 200], [130, 3]], [[9000, 1400], [500, 2600]]
    for queries in ([1, 2], [60, 1]):
        cache = Paged(small, queries, places=80)
        cache.attend()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            cache.attend()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        other = Paged(large, queries, places=80)
        cache.k, cache.v = other.k, other.v  # the larger pool
        cache.table.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            first = cache.attend()
            second = cache.attend()
        for again in range(3):  # the counters of a replay are left as they were
            other = Paged(large, queries, places=80)
            for name in ("k", "v", "table", "lengths", "q"):
                getattr(cache, name).copy_(getattr(other, name))
            graph.replay()
            cache.check(*first)
            assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_streams_decode_at_the_same_time():
    torch.manual_seed(0)
    caches = [Paged([[30000, 20000 + n]], [1]) for n in range(3)]
    streams = [torch.cuda.Stream() for _ in caches]
    torch.cuda.synchronize()
    outputs = [[] for _ in caches]
    for _ in range(20):
        for cache, stream, out in zip(caches, streams, outputs):
            with torch.cuda.stream(stream):
                out.append(cache.attend())
    torch.cuda.synchronize()
    for cache, out in zip(caches, outputs):
        cache.check(*out[0])
        assert all(torch.equal(a, b) for again in out for a, b in zip(out[0], again))


def test_wrong_paged_data_give_nan():
    torch.manual_seed(0)
    for queries in ([2, 1], [90, 1]):
        def spoiled(spoil):
            cache = Paged([[300, 400], [900, 129]], queries)
            spoil(cache)
            return cache.attend()

        def set_(name, *places, to):
            def spoil(cache):
                getattr(cache, name)[places] = to
            return spoil
        for spoil in (set_("bounds", 1, to=1000), set_("bounds", 0, to=1), set_("bounds", 2, to=1 << 30)):
            assert all(x.isnan().all() for x in spoiled(spoil))
        for spoil in (set_("lengths", 0, 1, to=queries[0] - 1), set_("lengths", 0, 1, to=1 << 30), set_("lengths", 0, 1, to=-7),
                      set_("table", 0, 1, 3, to=-1), set_("table", 0, 1, 3, to=1 << 30)):
            out, lse = spoiled(spoil)
            assert out[: queries[0], 4:].isnan().all() and lse[4:, : queries[0]].isnan().all()


def test_repeated_decoding_has_the_same_bits():
    torch.manual_seed(0)
    cache = Paged([[9000, 700, 64, 5000], [4000, 5, 333, 129]], [1, 5])
    first = cache.attend()
    cache.check(*first)
    for n in range(int(os.environ.get("PRULONG_REPEAT", 20))):
        assert all(torch.equal(a, b) for a, b in zip(first, cache.attend())), n
