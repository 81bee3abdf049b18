# SPDX-License-Identifier: MIT
"""torch.autocast: the operators and models with a pattern compute in its dtype, as PyTorch's own attention does."""

import pytest
import torch
from masked_llama import MIXED, llama, masked_reference, tokens

import prulong
from prulong import gated_attention, masked_attention

TOKENS, LOCALITY = 40, {"sink": 3, "window": 7}


def make(device):
    """q, k, v as a model under autocast has them: rotated in float32, or straight out of a projection; gate; bounds."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(TOKENS, heads, 64, generator=generator).to(device) for heads in (4, 2, 2))
    cu_seqlens = torch.tensor([0, 15, TOKENS], dtype=torch.int32, device=device)
    return q, k, v, torch.tensor([0.3, 1.0], device=device), cu_seqlens


def check_operators(device, dtype):
    """Both operators under autocast against themselves on inputs cast by hand; gradients included (on a GPU PyTorch's
    kernels sum those in any order)."""
    q, k, v, gate, cu = make(device)
    leaves = [x.clone().requires_grad_() for x in (q, k, v, gate)]
    by_hand = [x.clone().requires_grad_() for x in (q, k, v, gate)]
    dout = torch.randn(q.shape, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    with torch.autocast(device, dtype):
        # v already in the autocast dtype, as a projection gives it
        out = gated_attention(leaves[0], leaves[1], leaves[2].to(dtype), leaves[3], cu, TOKENS, **LOCALITY)
        got = torch.autograd.grad(out, leaves, dout)
        is_global = gate > 0.5
        masked, lse = masked_attention(q, k, v.to(dtype), is_global, cu, cu, TOKENS, TOKENS, **LOCALITY)
    lower = [x.to(dtype) for x in by_hand[:3]]
    expected = gated_attention(*lower, by_hand[3], cu, TOKENS, **LOCALITY)
    assert out.dtype == dtype and torch.equal(out, expected)
    for ours, theirs in zip(got, torch.autograd.grad(expected, by_hand, dout)):
        assert ours.dtype == torch.float32
        slack = 0 if device == "cpu" else 2e-2
        torch.testing.assert_close(ours, theirs, rtol=slack, atol=slack)
    with torch.no_grad():
        want, want_lse = masked_attention(*lower, is_global, cu, cu, TOKENS, TOKENS, **LOCALITY)
    assert masked.dtype == dtype and torch.equal(masked, want)
    assert lse.dtype == torch.float32 and torch.equal(lse, want_lse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_operators_compute_in_the_autocast_dtype(dtype):
    check_operators("cpu", dtype)


def test_gates_stay_float32_and_float64_stays_float64():
    q, k, v, gate, cu = make("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        out = gated_attention(q, k, v, gate.bfloat16(), cu, TOKENS, **LOCALITY)
        assert torch.equal(out, gated_attention(q, k, v, gate.bfloat16().float(), cu, TOKENS, **LOCALITY))
        exact = [x.double() for x in (q, k, v, gate)]
        assert gated_attention(*exact, cu, TOKENS, **LOCALITY).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert gated_attention(q, k, v, gate, cu, TOKENS, **LOCALITY).dtype == torch.float32
            with pytest.raises(RuntimeError, match="gated_attention: "):
                gated_attention(q, k, v.bfloat16(), gate, cu, TOKENS, **LOCALITY)


def test_operators_under_autocast_and_compile():
    q, k, v, gate, cu = make("cpu")

    @torch.compile(backend="aot_eager", fullgraph=True)
    def run(q, k, v, gate):
        with torch.autocast("cpu", torch.bfloat16):
            masked, _ = masked_attention(q, k, v.bfloat16(), gate > 0.5, cu, cu, TOKENS, TOKENS, **LOCALITY)
            return gated_attention(q, k, v.bfloat16(), gate, cu, TOKENS, **LOCALITY), masked

    gated, masked = run(q, k, v, gate)
    lower = [x.bfloat16() for x in (q, k, v)]
    assert torch.equal(gated, gated_attention(*lower, gate, cu, TOKENS, **LOCALITY))
    assert torch.equal(masked, masked_attention(*lower, gate > 0.5, cu, cu, TOKENS, TOKENS, **LOCALITY)[0])


def test_a_model_with_a_pattern():
    ids, model = tokens(1, 50), llama()
    exact = masked_reference(llama(), MIXED, ids)
    prulong.apply(model, MIXED)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(ids).logits
        unavoidable = (masked_reference(llama(), MIXED, ids) - exact).abs().max()
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert out.shape == (1, 54)
    assert (logits.float() - exact).abs().max() <= 2 * unavoidable
