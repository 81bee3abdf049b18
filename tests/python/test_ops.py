# SPDX-License-Identifier: MIT
"""The operators against direct [T, T] attention in float64, on every device present."""

import math
import os
import subprocess
import sys

import pytest
import torch

import prulong  # noqa: F401  (loads the operators)
from prulong.ops import gated_attention, masked_attention

OPS = torch.ops.prulong
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

# (cu_seqlens, query heads, key heads, head_dim, sink, window): empty and one-token documents, windows larger than the
# document, window 1, sink 0, sink larger than the document, nothing divisible by anything.
CASES = [
    ([0, 37], 4, 1, 64, 100, 5),
    ([0, 129], 3, 3, 5, 0, 1),
    ([0, 300], 6, 2, 16, 4, 33),
    ([0, 0, 50, 50, 51, 129], 3, 1, 5, 2, 7),
    ([0, 1, 299, 300, 300], 6, 3, 16, 16, 400),
    ([0, 701], 3, 1, 64, 16, 128),
    ([0, 0], 2, 1, 8, 1, 1),
]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def make(case, dtype=torch.float64, device="cpu", seed=0, norm=1.0):
    bounds, hq, hkv, d, sink, window = case
    generator = torch.Generator().manual_seed(seed)
    tokens = bounds[-1]
    q, k, v = (torch.randn(tokens, h, d, generator=generator, dtype=torch.float64) for h in (hq, hkv, hkv))
    to = dict(dtype=dtype, device=device)
    cu = torch.tensor(bounds, dtype=torch.int32, device=device)
    longest = max(b - a for a, b in zip(bounds, bounds[1:]))
    return (q * norm).to(**to), (k * norm).to(**to), v.to(**to), cu, longest, dict(sink=sink, window=window)


def gates(hkv, dtype, device="cpu"):
    """All local, all global, all fractional, a mixture with values near the ends."""
    mixed = torch.tensor([0.3, 0.0, 1.0, 1e-6])[torch.arange(hkv) % 4]
    for gate in (torch.zeros(hkv), torch.ones(hkv), torch.linspace(0.2, 0.9, hkv), mixed, 1 - mixed):
        yield gate.to(device, torch.float64 if dtype == torch.float64 else torch.float32)


def attend(q, k, v, hidden):
    """Direct softmax attention of one document; q may be shorter than k."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(hidden, -math.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v), scores.logsumexp(-1)


def hidden_keys(q_len, k_len, sink, window, local):
    i = torch.arange(k_len - q_len, k_len)[:, None]
    j = torch.arange(k_len)[None]
    return (j > i) | ((j >= sink) & (i - j >= window)) if local else j > i


def reference(q, k, v, gate, bounds, sink, window):
    """Gated attention by definition, both branches always computed."""
    z = gate.repeat_interleave(q.shape[1] // k.shape[1])[None, :, None].to(q.dtype)
    rows = [(q[:0] + k.sum() + v.sum()) * z]  # no rows, but part of the graph
    for a, b in zip(bounds, bounds[1:]):
        if a == b:
            continue
        out = [
            attend(q[a:b], k[a:b], v[a:b], hidden_keys(b - a, b - a, sink, window, local).to(q.device))[0]
            for local in (False, True)
        ]
        rows.append(z * out[0] + (1 - z) * out[1])
    return torch.cat(rows)


def with_gradients(function, inputs, dout):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, dout.to(out.dtype))]


def rounding_noise(q, k, v, bounds, dout, eps, locality):
    """How far rounding the branches' outputs O alone can move gradients that would cancel exactly: errors of dq, dk and dgate.

    dS = P (dP - <dout, O>) and dgate = sum <dout, O_global - O_local>. An O stored with relative error eps per element moves
    <dout, O> of a row by about eps |dout * O|, a different way in each row. Takes and returns float64.
    """
    dq, dk, row_sizes = torch.zeros_like(q), torch.zeros_like(k), []
    signs = torch.randn(q.shape[:2], generator=torch.Generator().manual_seed(5), dtype=torch.float64).sign()
    for end in (0.0, 1.0):
        z = torch.full((k.shape[1],), end, dtype=q.dtype, device=q.device)
        attended = lambda values: reference(q, k, values, z, bounds, **locality)  # noqa: E731
        row_sizes.append(eps * (dout * attended(v)).norm(dim=-1))
        rows = (row_sizes[-1] * signs.to(q.device)).unsqueeze(-1) / math.sqrt(q.shape[-1])
        dq += rows.abs() * attended(k).abs()
        values = v.clone().requires_grad_()
        dk += torch.autograd.grad(attended(values), values, rows * q)[0].abs()
    by_head = torch.stack(row_sizes).square().sum((0, 1)).unflatten(0, (k.shape[1], -1)).sum(-1).sqrt()
    return dict(out=torch.zeros(()), dq=dq, dk=dk, dv=torch.zeros(()), dgate=by_head)


def check_against_reference(case, gate, dtype, device, norm=1.0):
    q, k, v, cu, longest, locality = make(case, dtype, device, norm=norm)
    dout = torch.randn(q.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(device, dtype)
    ours = with_gradients(lambda *x: gated_attention(*x, cu, longest, **locality), (q, k, v, gate), dout)
    by_definition = lambda *x: reference(*x, case[0], **locality)  # noqa: E731
    wide = [x.double() for x in (q, k, v, gate)]
    exact = with_gradients(by_definition, wide, dout.double())
    # Same inputs, plain PyTorch in the low precision: its error is the measure of ours.
    plain = with_gradients(by_definition, (q, k, v, gate), dout) if dtype != torch.float64 else exact
    saturated = (gate == 0) | (gate == 1)
    assert (ours[4][saturated] == 0).all()
    exact[4], plain[4] = exact[4] * ~saturated, plain[4] * ~saturated
    floor = {torch.float64: 1e-12, torch.float32: 3e-6}.get(dtype, 1e-3)
    noise = rounding_noise(*wide[:3], case[0], dout.double(), torch.finfo(dtype).eps, locality)
    for name, a, b, c in zip(("out", "dq", "dk", "dv", "dgate"), ours, exact, plain):
        if b.numel() == 0:
            continue
        assert a.isfinite().all(), name
        # A branch's output is rounded up to four times (as a part, joined, and split off again), each with a standard
        # deviation of at most 0.3 eps: 3 times the noise is five deviations.
        a, c, spread = a.double(), c.double(), 3 * noise[name]
        assert (a - b).abs().max() <= 2 * (c - b).abs().max() + floor * (1 + b.abs().max()) + spread.max(), name
        if dtype in (torch.bfloat16, torch.float16) and name != "dgate":
            relative = 4e-3 if name == "out" else 1e-2
            assert (a - b).norm() <= max(2 * (c - b).norm(), relative * b.norm()) + spread.norm(), name


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gated_attention_and_gradients_match_the_reference(case, dtype, device):
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("float64 is CPU only")
    if device == "cpu" and dtype in (torch.bfloat16, torch.float16) and case[0][-1] > 512:
        pytest.skip("plain PyTorch is slow in low precision on a CPU; the tile code is float32's")
    for gate in gates(case[2], dtype, device):
        check_against_reference(case, gate, dtype, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_norms_stay_finite_and_right(dtype, device):
    for gate in gates(2, dtype, device):
        check_against_reference(([0, 300], 6, 2, 16, 4, 33), gate, dtype, device, norm=3.0)


def test_gradcheck():
    for case in (([0, 11], 2, 1, 3, 1, 2), ([0, 1, 1, 9], 2, 2, 3, 2, 3)):
        q, k, v, cu, longest, locality = make(case)
        gate = torch.full((case[2],), 0.37, dtype=torch.float64)
        inputs = [x.requires_grad_() for x in (q, k, v, gate)]
        assert torch.autograd.gradcheck(lambda *x: gated_attention(*x, cu, longest, **locality), inputs)


def test_skipped_branch_equals_the_limit_of_unskipped():
    """Gates one step from 0 and 1 compute both branches; they must agree with the skipping paths."""
    q, k, v, cu, longest, locality = make(([0, 300], 6, 2, 16, 4, 33))
    for end, near in ((0.0, 1e-14), (1.0, 1 - 1e-14)):
        results = [
            with_gradients(
                lambda *x: gated_attention(*x, cu, longest, **locality),
                (q, k, v, torch.full((2,), z, dtype=torch.float64)),
                torch.ones_like(q),
            )
            for z in (end, near)
        ]
        for a, b in zip(results[0][:4], results[1][:4]):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_masked_attention_matches_the_reference(case, dtype, device):
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("float64 is CPU only")
    bounds, _, hkv, _, sink, window = case
    q, k, v, cu, longest, locality = make(case, dtype, device)
    is_global = (torch.arange(hkv) % 2 == 0).to(device)
    # Every document keeps the last third of its queries, at least one where it has any.
    kept = [torch.arange(a + (b - a) * 2 // 3, b) for a, b in zip(bounds, bounds[1:])]
    cu_q = torch.tensor([0] + [len(x) for x in kept]).cumsum(0).to(device, torch.int32)
    queries = q[torch.cat(kept)]
    out, lse = masked_attention(queries, k, v, is_global, cu_q, cu, longest, longest, **locality)
    assert out.dtype == dtype and lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    group = q.shape[1] // hkv
    for d, rows in enumerate(kept):
        if len(rows) == 0:
            continue
        a, b = bounds[d], bounds[d + 1]
        got = slice(int(cu_q[d]), int(cu_q[d + 1]))
        for h in range(q.shape[1]):
            hidden = hidden_keys(len(rows), b - a, sink, window, local=not is_global[h // group])
            one = slice(h // group, h // group + 1)
            want, want_lse = attend(
                q[rows, h : h + 1].cpu().double(), k[a:b, one].cpu().double(), v[a:b, one].cpu().double(), hidden
            )
            torch.testing.assert_close(out[got, h].cpu().double(), want[:, 0], rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(lse[h, got].cpu().double(), want_lse[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 64, 128, 299])
def test_chunks_equal_one_shot(chunk, device):
    q, k, v, cu, longest, locality = make(([0, 300], 6, 2, 16, 4, 33), torch.float32, device)
    is_global = torch.tensor([True, False], device=device)
    whole, whole_lse = masked_attention(q, k, v, is_global, cu, cu, 300, 300, **locality)
    parts = []
    for a in range(0, 300, chunk):
        b = min(a + chunk, 300)
        cu_q, cu_k = (torch.tensor([0, n], dtype=torch.int32, device=device) for n in (b - a, b))
        parts.append(masked_attention(q[a:b], k[:b], v[:b], is_global, cu_q, cu_k, b - a, b, **locality))
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([p[1] for p in parts], 1), whole_lse, rtol=1e-5, atol=1e-5)


def test_strided_inputs_and_gradients(device):
    """Slices of a fused projection, and an output gradient that is not contiguous."""
    torch.manual_seed(0)
    fused = torch.randn(70, 10, 16, device=device)
    q, k, v = fused[:, :6], fused[:, 6:8], fused[:, 8:]
    cu = torch.tensor([0, 70], dtype=torch.int32, device=device)
    gate = torch.tensor([0.5, 1.0], device=device)
    dout = torch.randn(16, 6, 70, device=device).permute(2, 1, 0)
    run = lambda *x: gated_attention(*x, cu, 70, sink=2, window=9)  # noqa: E731
    strided = [x.requires_grad_() for x in (q.detach(), k.detach(), v.detach(), gate.clone())]
    ours = torch.autograd.grad(run(*strided), strided, dout)
    plain = with_gradients(run, [x.detach().contiguous() for x in strided], dout.contiguous())[1:]
    for a, b in zip(ours, plain):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_only_needed_gradients(device):
    q, k, v, cu, longest, locality = make(([0, 50], 4, 2, 8, 2, 5), torch.float32, device)
    gate = torch.tensor([0.4, 0.0], device=device)
    all_inputs = (q, k, v, gate)
    full = with_gradients(lambda *x: gated_attention(*x, cu, longest, **locality), all_inputs, torch.ones_like(q))[1:]
    for needed in range(1, 16):
        inputs = [x.detach().clone().requires_grad_(bool(needed >> i & 1)) for i, x in enumerate(all_inputs)]
        gated_attention(*inputs, cu, longest, **locality).sum().backward()
        for i, x in enumerate(inputs):
            assert (x.grad is not None) == bool(needed >> i & 1)
            if x.grad is not None:
                torch.testing.assert_close(x.grad, full[i], rtol=1e-6, atol=1e-6)
    out = gated_attention(*all_inputs, cu, longest, **locality)
    assert not out.requires_grad


def test_no_second_derivative():
    q, k, v, cu, longest, locality = make(([0, 9], 2, 1, 4, 1, 2))
    gate = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    out = gated_attention(q.requires_grad_(), k, v, gate, cu, longest, **locality)
    (dq,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(dq.sum(), gate)


def test_same_bits_twice(device):
    q, k, v, cu, longest, locality = make(CASES[5], torch.float32, device)
    q, k, v = (x.repeat(1, 3, 1) for x in (q, k, v))
    gate = torch.tensor([0.3, 1.0, 0.0], device=device)
    runs = [
        with_gradients(lambda *x: gated_attention(*x, cu, longest, **locality), (q, k, v, gate), torch.ones_like(q))
        for _ in range(3)
    ]
    for other in runs[1:]:
        for a, b in zip(runs[0], other):
            assert torch.equal(a, b)


def test_uninitialised_memory_is_never_read(device):
    """With every new tensor full of NaN, nothing may change."""
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, cu, longest, locality = make(CASES[3], dtype, device)
        gate = torch.tensor([0.3], device=device)
        run = lambda: with_gradients(  # noqa: E731
            lambda *x: gated_attention(*x, cu, longest, **locality), (q, k, v, gate), torch.ones_like(q)
        ) + list(masked_attention(q, k, v, gate > 1, cu, cu, longest, longest, **locality))
        clean = run()
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
            poisoned = run()
        finally:
            torch.use_deterministic_algorithms(False)
        for a, b in zip(clean, poisoned):
            assert not b.isnan().any()
            torch.testing.assert_close(a, b)


HUGE = 2**63 - 1


@pytest.mark.parametrize("sink,window", [(5, HUGE), (5, HUGE - 1), (0, HUGE), (HUGE, 1), (HUGE, HUGE), (2**31, 2**32 + 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sinks_and_windows_beyond_all_keys(device, dtype, sink, window):
    """Numbers that no sum of positions may overflow: every head is global then."""
    bounds = [0, 64, 300]
    q, k, v, cu, longest, _ = make((bounds, 4, 2, 64, 1, 1), dtype, device)
    gate = torch.tensor([0.5, 0.0], device=device)
    wide = [x.double() for x in (q, k, v)]
    want = with_gradients(lambda *x: reference(*x, torch.ones(2, device=device), bounds, 0, 1), wide, torch.ones_like(q))
    got = with_gradients(
        lambda *x: gated_attention(*x, gate, cu, longest, sink=sink, window=window), (q, k, v), torch.ones_like(q)
    )
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for a, b in zip(got, want):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)
    out, _ = masked_attention(q, k, v, gate > 0.2, cu, cu, longest, longest, sink=sink, window=window)
    torch.testing.assert_close(out.double(), want[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 200.0, 300.0])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_finite_scale(device, dtype, head_dim, scale):
    """Also those with which hidden keys would come first, and those that overflow a kernel's stand-in for no key."""
    bounds = [0, 200, 551]
    q, k, v, cu, longest, _ = make((bounds, 4, 2, head_dim, 1, 1), dtype, device)
    gate = torch.tensor([0.5, 0.0], device=device)
    locality = dict(sink=5, window=70)
    by_definition = lambda q, k, v: reference(  # noqa: E731
        q * (scale * math.sqrt(head_dim)), k, v, gate.double(), bounds, **locality
    )
    wide = [x.double() for x in (q, k, v)]
    want = with_gradients(by_definition, wide, torch.ones_like(q))
    got = with_gradients(
        lambda *x: gated_attention(*x, gate, cu, longest, **locality, scale=scale), (q, k, v), torch.ones_like(q)
    )
    # Scores up to about 1e4 keep an absolute error of 1e-3 in float32.
    tolerance = {torch.float32: 1e-4 if scale < 1 else 1e-2, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(got[0].double(), want[0], rtol=tolerance, atol=tolerance)
    for a, b in zip(got[1:], want[1:]):
        assert a.isfinite().all()
        if scale < 1:
            assert (a - b).norm() <= tolerance * b.norm()
    out, lse = masked_attention(q, k, v, gate > 0.2, cu, cu, longest, longest, **locality, scale=scale)
    assert out.isfinite().all() and lse.isfinite().all()


def test_inference_mode_and_no_grad(device):
    q, k, v, cu, longest, locality = make(CASES[2], torch.float32, device)
    gate = torch.tensor([0.3, 1.0], device=device)
    want = gated_attention(q, k, v, gate, cu, longest, **locality)
    with torch.no_grad():
        assert torch.equal(gated_attention(q, k, v, gate, cu, longest, **locality), want)
    with torch.inference_mode():
        x = [t.clone() for t in (q, k, v, gate)]  # inference tensors
        assert torch.equal(gated_attention(*x, cu, longest, **locality), want)
        masked_attention(*x[:3], x[3] == 1, cu, cu, longest, longest, **locality)


def operator_calls(device):
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, cu, longest, locality = make(([0, 20, 33], 4, 2, 8, 2, 5), dtype, device)
        gate = torch.tensor([0.3, 1.0], device=device)
        rest = (cu, longest, locality["sink"], locality["window"], 0.3)
        leaf = [x.clone().requires_grad_() for x in (q, k, v, gate)]
        yield OPS.gated_attention, (*leaf, *rest)
        yield OPS.gated_attention, (q, k, v, leaf[3], *rest)
        yield OPS.gated_attention_forward, (q, k, v, gate, *rest)
        halves = OPS.gated_attention_forward(q, k, v, gate, *rest)
        for needs in ([True] * 4, [False, True, False, True]):
            yield OPS.gated_attention_backward, (torch.ones_like(q), q, k, v, gate, *halves, *rest, needs)
        yield OPS.masked_attention, (q, k, v, gate == 1, cu, cu, longest, longest, *rest[2:])


def test_opcheck(device):
    for op, args in operator_calls(device):
        torch.library.opcheck(op.default, args)


def test_torch_compile(device):
    q, k, v, cu, longest, locality = make(([0, 20, 33], 4, 2, 8, 2, 5), torch.float32, device)
    gate = torch.tensor([0.3, 1.0], device=device)

    def step(*x):
        return gated_attention(x[0] * 2, x[1], x[2], x[3], cu, longest, **locality).tanh()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    dout = torch.randn_like(q)
    for a, b in zip(with_gradients(step, (q, k, v, gate), dout), with_gradients(compiled, (q, k, v, gate), dout)):
        torch.testing.assert_close(a, b)


def rejected():
    """(name, change to the arguments of both operators, part of the message)"""
    i32 = dict(dtype=torch.int32)
    yield "q dims", dict(q=torch.zeros(10, 8)), r"q must be \[tokens, heads, head_dim\], got shape \[10, 8\]"
    yield "q dtype", dict(q=torch.zeros(10, 4, 8, dtype=torch.int32)), "q must be float32, bfloat16, float16 or float64"
    yield "q stride", dict(q=torch.zeros(10, 8, 4).transpose(1, 2)), "q must be contiguous in its last dimension"
    yield "k heads", dict(k=torch.zeros(10, 3, 8), v=torch.zeros(10, 3, 8)), "multiple of k's, got 4 query heads and 3"
    yield "k dim", dict(k=torch.zeros(10, 2, 7)), "k must have q's head_dim 8, got 7"
    yield "k dtype", dict(k=torch.zeros(10, 2, 8).half()), "k must have q's dtype Float, got Half"
    yield "v shape", dict(v=torch.zeros(9, 2, 8)), r"v must have k's shape \[10, 2, 8\], got \[9, 2, 8\]"
    yield "v device", dict(v=torch.zeros(10, 2, 8, device="meta")), "v must be on q's device cpu, got meta"
    yield "no heads", dict(k=torch.zeros(10, 0, 8), v=torch.zeros(10, 0, 8)), "k must have at least one head"
    yield "cu dims", dict(cu=torch.zeros(2, 2, **i32)), r"must be \[documents \+ 1\], got shape \[2, 2\]"
    yield "cu dtype", dict(cu=torch.tensor([0, 10])), "must be int32, got Long"
    yield "cu start", dict(cu=torch.tensor([1, 10], **i32)), "must start at 0, got 1"
    yield "cu end", dict(cu=torch.tensor([0, 9], **i32)), "must end at the number of tokens, 10, got 9"
    yield "cu order", dict(cu=torch.tensor([0, 8, 4, 10], **i32)), "must not decrease, got 8 then 4 for document 1"
    yield "max", dict(longest=9), "must be at least the longest document's length, got 9 but document 0 has 10"
    yield "sink", dict(sink=-1), "sink must be >= 0, got -1"
    yield "window", dict(window=0), r"window must be >= 1 \(it includes the query itself\), got 0"
    yield "scale", dict(scale=math.nan), "scale must be finite, got nan"


REJECTED = list(rejected())


@pytest.mark.parametrize("change,message", [r[1:] for r in REJECTED], ids=[r[0] for r in REJECTED])
def test_rejected_arguments(change, message):
    a = dict(q=torch.zeros(10, 4, 8), k=torch.zeros(10, 2, 8), v=torch.zeros(10, 2, 8), longest=10, scale=1.0)
    a.update(cu=torch.tensor([0, 10], dtype=torch.int32), sink=1, window=2)
    a.update(change)
    locality = (a["sink"], a["window"], a["scale"])
    gate = torch.full((a["k"].shape[1],), 0.5)
    with pytest.raises(RuntimeError, match="gated_attention: .*" + message):
        OPS.gated_attention(a["q"], a["k"], a["v"], gate, a["cu"], a["longest"], *locality)
    with pytest.raises(RuntimeError, match="masked_attention: .*" + message):
        OPS.masked_attention(
            a["q"], a["k"], a["v"], gate > 0.5, a["cu"], a["cu"], a["longest"], a["longest"], *locality
        )


@pytest.mark.parametrize(
    "gate,message",
    [
        (torch.zeros(3), r"gate must have one value per key head, shape \[2\], got \[3\]"),
        (torch.zeros(2).double(), "gate must be Float for Float inputs, got Double"),
        (torch.tensor([0.5, 1.5]), r"gate must lie in \[0, 1\], got 1.5 for key head 1"),
        (torch.tensor([-0.1, 0.5]), r"gate must lie in \[0, 1\], got -0.1"),
        (torch.tensor([math.nan, 0.5]), r"gate must lie in \[0, 1\], got nan for key head 0"),
    ],
)
def test_rejected_gates(gate, message):
    q, k, v, cu, longest, _ = make(([0, 10], 4, 2, 8, 1, 2), torch.float32)
    with pytest.raises(RuntimeError, match="gated_attention: " + message):
        OPS.gated_attention(q, k, v, gate, cu, longest, 1, 2, 1.0)


def test_a_default_scale_needs_a_head_dim():
    cu = torch.tensor([0, 10], dtype=torch.int32)
    for shape in ((), (10, 2, 0)):
        x = torch.zeros(shape)
        with pytest.raises(RuntimeError, match="gated_attention: q must "):
            gated_attention(x, x, x, torch.zeros(2), cu, 10, sink=1, window=2)
        with pytest.raises(RuntimeError, match="masked_attention: q must "):
            masked_attention(x, x, x, torch.zeros(2) > 0, cu, cu, 10, 10, sink=1, window=2)


def test_rejected_only_by_one_operator():
    q, k, v, cu, longest, _ = make(([0, 10], 4, 2, 8, 1, 2), torch.float32)
    with pytest.raises(RuntimeError, match="gated_attention: k must have as many tokens as q, 5, got 10"):
        OPS.gated_attention(q[:5], k, v, torch.zeros(2), cu, longest, 1, 2, 1.0)
    with pytest.raises(RuntimeError, match="masked_attention: is_global must be Bool for Float inputs, got Float"):
        OPS.masked_attention(q, k, v, torch.zeros(2), cu, cu, 10, 10, 1, 2, 1.0)
    flags = torch.zeros(2, dtype=torch.bool)
    short = torch.tensor([0, 5], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="at least as many keys as queries, got 10 queries and 5 keys in document 0"):
        OPS.masked_attention(q, k[:5], v[:5], flags, cu, short, 10, 10, 1, 2, 1.0)
    two = torch.tensor([0, 5, 10], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="cu_seqlens_k must have as many documents as cu_seqlens_q, 1, got 2"):
        OPS.masked_attention(q, k, v, flags, cu, two, 10, 10, 1, 2, 1.0)


MEMORY_PROBE = """
import resource, sys, torch, prulong
from prulong.ops import gated_attention
torch.set_num_threads(1)
def peak(tokens):
    q, k, v = (torch.randn(tokens, 1, 8, requires_grad=True) for _ in range(3))
    gate = torch.tensor([0.5], requires_grad=True)
    cu = torch.tensor([0, tokens], dtype=torch.int32)
    gated_attention(q, k, v, gate, cu, tokens, sink=4, window=64).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak(256)
before = peak(2048)
print(peak(8192) - before)
"""


def test_memory_is_linear(tmp_path):
    """One [8192, 8192] float32 matrix would be 256 MiB; a gated step must stay far below."""
    script = tmp_path / "probe.py"
    script.write_text(MEMORY_PROBE)
    package = prulong.__file__.rsplit("/", 2)[0]
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": package}
    )
    assert int(result.stdout.split()[-1]) < 40 * 1024  # KiB
