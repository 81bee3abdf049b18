# SPDX-License-Identifier: MIT
"""The published way that benchmarks compare with computes our gated attention; its switches and the JSON do what they say."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import prulong

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import bench_published  # noqa: E402
import bench_train_step as bench  # noqa: E402

SINK, WINDOW = 16, 60


@pytest.mark.parametrize("tokens", [8, 100, 300])
def test_published_attention_is_gated_attention(tokens):
    torch.manual_seed(tokens)
    published = bench_published.Published("small", "cpu", torch.float32, recompute=False)
    published.prepare("flash", tokens, SINK, WINDOW)
    published.gates = torch.tensor([[0.3, 1.0]], requires_grad=True)
    q, k, v = (torch.randn(1, heads, tokens, 32, requires_grad=True) for heads in (8, 2, 2))
    out, _ = published.attention(SimpleNamespace(layer_idx=0), q, k, v, None, scaling=0.2)
    weight = torch.randn_like(out)
    theirs = torch.autograd.grad((out * weight).sum(), [published.gates, q, k, v])

    gate = torch.tensor([0.3, 1.0], requires_grad=True)
    packed = [x.detach()[0].transpose(0, 1).contiguous().requires_grad_() for x in (q, k, v)]
    ours = prulong.gated_attention(*packed, gate, torch.tensor([0, tokens], dtype=torch.int32), tokens, sink=SINK,
                                   window=WINDOW, scale=0.2)
    torch.testing.assert_close(ours, out[0], rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad((ours * weight[0]).sum(), [gate, *packed])
    torch.testing.assert_close(gradients[0][0], theirs[0][0, 0], rtol=1e-3, atol=1e-4)  # at exactly 1 ours has none
    for a, b in zip(gradients[1:], theirs[1:]):
        torch.testing.assert_close(a, b[0].transpose(0, 1), rtol=1e-3, atol=1e-4)


def test_switches_do_not_change_the_loss(monkeypatch):
    losses = []
    for dtype, options in ((torch.float32, {"recompute": True}), (torch.float32, {"recompute": False}),
                           (torch.bfloat16, {"recompute": False, "wide": True})):
        torch.manual_seed(0)
        published = bench_published.Published("small", "cpu", dtype, **options)
        published.prepare("flash", 200, SINK, WINDOW)
        monkeypatch.setattr(bench_published, "sampled_gates", lambda log_alpha: torch.sigmoid(log_alpha))
        ids = torch.arange(200)[None] * 7 % 512
        loss = published.loss(ids)
        loss.backward()
        losses.append(loss.item())
        assert published.log_alpha.grad.isfinite().all() and (published.log_alpha.grad != 0).any()
    assert losses == pytest.approx([losses[0]] * 3, rel=0.02)  # one counts the last token's label, too


def test_record_replaces_a_case_and_draws(tmp_path):
    out = tmp_path / "figures.json"
    facts = {"part": "growth", "tokens": 512, "dtype": "bfloat16", "plain": False}
    for seconds in (2.0, 3.0):
        bench.record(out, {**facts, "rows": [{"side": "every head local", "step_s": seconds, "peak_resident_gib": 1.0}]})
    bench.record(out, {**facts, "tokens": 1024, "rows": []})
    runs = json.loads(out.read_text())["runs"]
    assert [(run["tokens"], [row["step_s"] for row in run["rows"]]) for run in runs] == [(512, [3.0]), (1024, [])]
    assert all(run["commit"] and run["versions"] for run in runs)
    assert out.with_suffix(".png").stat().st_size > 1000
