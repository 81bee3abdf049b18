# SPDX-License-Identifier: MIT
"""What only a GPU runs: the operators through PyTorch's attention, and the programs on CUDA."""

import json
import subprocess

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

from prulong.ops import gated_attention, masked_attention
from test_autocast import check_operators
from test_ops import check_against_reference, gates, make, with_gradients

# (cu_seqlens, query heads, key heads, head_dim, sink, window). Head dims 64 and 128 go to our kernels on Hopper. Elsewhere, and
# other head dims: one document of 2,048 and more tokens goes to cuDNN, the others to flash attention; beyond window + 4,096
# tokens the sink's part has several stretches.
CASES = [
    ([0, 2048], 8, 2, 64, 128, 512),
    ([0, 2501], 4, 2, 128, 100, 301),
    ([0, 5000], 4, 2, 64, 16, 128),
    ([0, 0, 700, 701, 2800], 6, 3, 128, 16, 128),
    ([0, 300], 4, 4, 64, 0, 1),
    ([0, 1200], 4, 1, 128, 1, 1199),
    ([0, 2501], 8, 2, 96, 100, 301),
    ([0, 5000], 4, 2, 80, 16, 128),
    ([0, 0, 700, 701, 2800], 6, 3, 96, 16, 128),
    ([0, 300], 4, 4, 96, 0, 1),
]


@pytest.fixture(params=[True, False], ids=["cudnn", "flash"])
def cudnn(request, monkeypatch):
    monkeypatch.setenv("PRULONG_ATTENTION", "sdpa")  # on a Hopper GPU: test_hopper.py
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(request.param)
    yield request.param
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gated_attention_matches_the_reference(case, dtype, cudnn):
    for gate in gates(case[2], dtype, "cuda"):
        check_against_reference(case, gate, dtype, "cuda")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_masked_attention_matches_gated_attention(case, cudnn):
    q, k, v, cu, longest, locality = make(case, torch.bfloat16, "cuda")
    is_global = (torch.arange(case[2]) % 2 == 0).cuda()
    want = gated_attention(q, k, v, is_global.float(), cu, longest, **locality)
    out, lse = masked_attention(q, k, v, is_global, cu, cu, longest, longest, **locality)
    assert torch.equal(out, want)
    assert lse.isfinite().all()
    last = min(77, longest)  # a chunk's queries alone
    if len(case[0]) == 2:
        cu_q = torch.tensor([0, last], dtype=torch.int32, device="cuda")
        tail, tail_lse = masked_attention(q[-last:], k, v, is_global, cu_q, cu, last, longest, **locality)
        torch.testing.assert_close(tail, out[-last:], rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(tail_lse, lse[:, -last:], rtol=0, atol=1e-3)


@pytest.mark.parametrize("dim", [64, 96])
def test_strides_do_not_matter(cudnn, dim):
    """Slices of a fused projection, and output gradients of several layouts one after another."""
    torch.manual_seed(0)
    fused = torch.randn(2304, 12, dim, device="cuda", dtype=torch.bfloat16)
    q, k, v = fused[:, :8], fused[:, 8:10], fused[:, 10:]
    cu = torch.tensor([0, 2304], dtype=torch.int32, device="cuda")
    gate = torch.tensor([0.5, 1.0], device="cuda")
    run = lambda *x: gated_attention(*x, cu, 2304, sink=16, window=128)  # noqa: E731
    wide = torch.randn(2304, 8, dim + 1, device="cuda", dtype=torch.bfloat16)
    for dout in (wide[..., 1:], wide.permute(2, 1, 0)[:dim].permute(2, 1, 0), wide[:, :, :dim].transpose(0, 1).contiguous().transpose(0, 1)):
        strided = [x.detach().requires_grad_() for x in (q, k, v, gate.clone())]
        ours = torch.autograd.grad(run(*strided), strided, dout)
        plain = with_gradients(run, [x.detach().contiguous() for x in strided], dout.contiguous())[1:]
        for a, b in zip(ours, plain):
            torch.testing.assert_close(a, b, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("dim", [64, 96])
@pytest.mark.parametrize("tokens", [300, 2304])
def test_unaligned_inputs(cudnn, dim, tokens):
    """PyTorch's kernels read vectors of 16 bytes and do not look whether they can."""
    torch.manual_seed(0)
    wide = [torch.randn(tokens, heads, dim + 1, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2)]
    cu = torch.tensor([0, tokens], dtype=torch.int32, device="cuda")
    gate = torch.tensor([0.5, 1.0], device="cuda")
    run = lambda *x: gated_attention(*x, cu, tokens, sink=16, window=128)  # noqa: E731
    dout = torch.randn(tokens, 4, dim, device="cuda", dtype=torch.bfloat16)
    inputs = [x.requires_grad_()[..., 1:] for x in wide]
    got = run(*inputs, gate)
    got_gradients = [g[..., 1:] for g in torch.autograd.grad(got, wide, dout)]
    want, *gradients, _ = with_gradients(run, [x.contiguous() for x in inputs] + [gate], dout)
    assert torch.equal(got, want)
    for a, b in zip(got_gradients, gradients):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
    flags = gate > 0.7
    masked = [masked_attention(*x, flags, cu, cu, tokens, tokens, sink=16, window=128)
              for x in (inputs, [x.contiguous() for x in inputs])]
    assert torch.equal(masked[0][0], masked[1][0]) and torch.equal(masked[0][1], masked[1][1])


@pytest.mark.parametrize("dim", [64, 96])
def test_memory_stays_linear(cudnn, dim):
    """At 16,384 tokens one score matrix of one head would be 512 MiB."""
    q, k, v, cu, longest, locality = make(([0, 16384], 4, 2, dim, 128, 1024), torch.bfloat16, "cuda")
    inputs = [x.requires_grad_() for x in (q, k, v, torch.tensor([0.5, 0.0], device="cuda"))]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gated_attention(*inputs, cu, longest, **locality).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 400 << 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["ours", "sdpa"])
def test_autocast(dtype, backend, monkeypatch):
    if backend == "sdpa":
        monkeypatch.setenv("PRULONG_ATTENTION", "sdpa")
    check_operators("cuda", dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_on_cuda_follows_the_cpu(bin_folder, world, tmp_path, dtype):
    losses = {}
    for device, of in (("cpu", "float32"), ("cuda", dtype)):
        config = tmp_path / f"{device}.yaml"
        config.write_text(f"""
model: {{path: {world}/model, device: {device}, dtype: {of}}}
attention: {{sink: 4, window: 16}}
sparsity: {{end: 0.5}}
train: {{steps: 4, seq_len: 160, loss_chunk: 64, recompute: "on"}}
data:
  train: [{{type: recall, path: {world}/kit, tasks: [codes], statements: 2, questions: 2}}]
  eval: [{{type: recall, path: {world}/kit, tasks: [codes], statements: 2, questions: 2}}]
eval: {{sequences: 2}}
run: {{dir: {tmp_path}/{device}}}
""")
        result = subprocess.run([bin_folder / "prulong-train", config], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        lines = [json.loads(line) for line in (tmp_path / device / "metrics.jsonl").read_text().splitlines()]
        losses[device] = [x["loss_nats"] for x in lines if "loss_nats" in x]
        losses[device] += [x["held_out"]["masked"]["loss_nats"] for x in lines if "held_out" in x]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3 if dtype == "float32" else 2e-2)
