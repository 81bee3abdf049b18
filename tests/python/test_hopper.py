# SPDX-License-Identifier: MIT
"""The operators by our own kernels, on a Hopper GPU: against the mathematics, with memory full of NaN, without waiting.

PRULONG_REPEAT (20) says how often one input is repeated.
"""

import os

import pytest
import torch

if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("no Hopper GPU", allow_module_level=True)

from prulong.ops import gated_attention, masked_attention
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
