# SPDX-License-Identifier: MIT
"""prulong.apply on a random tiny Llama, against attention that transformers computes itself."""

import copy

import pytest
import torch
from masked_llama import GLOBAL, KV_HEADS, LAYERS, LOCAL, MIXED, llama, masked_reference, tokens
from transformers import DynamicCache, StaticCache

import prulong
from prulong import Pattern


@pytest.fixture(scope="module")
def reference():
    """The model with its own attention; tests apply patterns to copies."""
    return llama()


@pytest.fixture
def model():
    return llama()


@pytest.mark.parametrize("batch", [1, 3])
def test_all_global_equals_ordinary_attention(reference, model, batch):
    ids = tokens(batch, 50)
    prulong.apply(model, GLOBAL)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pattern", [MIXED, LOCAL], ids=["mixed", "local"])
@pytest.mark.parametrize("batch", [1, 2])
def test_local_heads_see_sink_and_window(reference, model, pattern, batch):
    ids = tokens(batch, 50)
    prulong.apply(model, pattern)
    with torch.no_grad():
        logits = model(ids).logits
        assert (logits - reference(ids).logits).abs().max() > 1e-3  # or the test shows nothing
    torch.testing.assert_close(logits, masked_reference(reference, pattern, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [[50], [1] * 50, [20, 20, 10], [5, 1, 1, 30, 13]])
def test_prefill_in_chunks_equals_one_shot(model, chunks):
    ids = tokens(1, 50)
    prulong.apply(model, MIXED)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        cache, parts = DynamicCache(config=model.config), []
        for chunk in ids.split(chunks, dim=1):
            parts.append(model(chunk, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_generate_equals_full_forward_passes(reference, model, batch):
    ids = tokens(batch, 30)
    prulong.apply(model, MIXED)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    expected = ids
    for _ in range(12):
        logits = masked_reference(reference, MIXED, expected)
        expected = torch.cat([expected, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert out.tolist() == expected.tolist()


def test_remove_and_apply_again(reference, model):
    ids = tokens(1, 40)
    with torch.no_grad():
        own = model(ids).logits
        prulong.remove(model)  # nothing to do
        prulong.apply(model, LOCAL)
        prulong.apply(model, MIXED)
        torch.testing.assert_close(model(ids).logits, masked_reference(reference, MIXED, ids), rtol=1e-5, atol=1e-5)
        prulong.remove(model)
        assert torch.equal(model(ids).logits, own)
    assert model.config._attn_implementation == reference.config._attn_implementation
    assert not [name for name, _ in model.named_buffers() if "prulong" in name]


def test_two_models_keep_their_own_patterns(reference):
    first, second = copy.deepcopy(reference), copy.deepcopy(reference)
    prulong.apply(first, LOCAL)
    prulong.apply(second, GLOBAL)
    ids = tokens(1, 40)
    with torch.no_grad():
        torch.testing.assert_close(first(ids).logits, masked_reference(reference, LOCAL, ids), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(second(ids).logits, reference(ids).logits, rtol=1e-5, atol=1e-5)


def test_the_mask_is_no_part_of_the_checkpoint(reference, model):
    prulong.apply(model, MIXED)
    assert model.state_dict().keys() == reference.state_dict().keys()


def test_bfloat16(reference, model):
    ids = tokens(1, 50)
    prulong.apply(model.to(torch.bfloat16), MIXED)
    with torch.no_grad():
        logits = model(ids).logits
    assert logits.dtype == torch.bfloat16
    plain = copy.deepcopy(reference).to(torch.bfloat16)
    expected = masked_reference(reference, MIXED, ids)
    unavoidable = (masked_reference(plain, MIXED, ids).float() - expected).abs().max()
    assert (logits.float() - expected).abs().max() <= 2 * unavoidable


def test_is_causal_as_an_argument(reference, model):
    """transformers writes it to the config for the call, and takes it away again."""
    ids = tokens(1, 40)
    prulong.apply(model, MIXED)
    with torch.no_grad():
        logits = model(ids, is_causal=True).logits
    torch.testing.assert_close(logits, masked_reference(reference, MIXED, ids), rtol=1e-5, atol=1e-5)
    assert model.config.to_dict() == reference.config.to_dict()


def test_another_shape_is_refused_and_changes_nothing(reference, model):
    other = Pattern.from_scores(prulong.ModelShape("llama", LAYERS + 1, KV_HEADS, 6, 16), [[1, 0]] * 4, 0.5, 1, 1)
    with pytest.raises(ValueError, match="layers 4 in the pattern, 3 in the model"):
        prulong.apply(model, other)
    assert model.config._attn_implementation == reference.config._attn_implementation
    ids = tokens(1, 20)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)


def test_unsupported_uses_are_refused_by_name(model):
    ids = tokens(2, 20)
    prulong.apply(model, MIXED)
    with pytest.raises(ValueError, match="no gradients"):
        model(ids)
    with torch.no_grad():
        padded = torch.ones_like(ids)
        padded[0, -4:] = 0
        with pytest.raises(ValueError, match="padding"):
            model(ids, attention_mask=padded)
        with pytest.raises(ValueError, match="padding"):
            model.generate(ids, attention_mask=padded, max_new_tokens=2)
        with pytest.raises(ValueError, match=r"an attention mask of shape \(2, 1, 20, 20\)"):
            model(ids, attention_mask=torch.zeros(2, 1, 20, 20))
        with pytest.raises(ValueError, match="packed"):
            model(ids[:1], position_ids=torch.arange(20)[None] % 10, use_cache=False)
        with pytest.raises(ValueError, match="static and sliding caches"):
            model(ids[:1], past_key_values=StaticCache(config=model.config, max_cache_len=64))
        attention = model.model.layers[0].self_attn
        q, k = torch.zeros(1, 6, 4, 16), torch.zeros(1, KV_HEADS, 4, 16)
        from prulong.transformers import _attention

        for name, value in [("sliding_window", 4), ("softcap", 30.0), ("s_aux", torch.zeros(6))]:
            with pytest.raises(ValueError, match=name):
                _attention(attention, q, k, k, None, **{name: value})
        with pytest.raises(ValueError, match="dropout"):
            _attention(attention, q, k, k, None, dropout=0.1)
        with pytest.raises(ValueError, match="bidirectional"):
            _attention(attention, q, k, k, None, is_causal=False)
        with pytest.raises(ValueError, match="output_attentions"):
            _attention(attention, q, k, k, None, output_attentions=True)


def test_a_model_without_a_pattern_says_so(reference, model):
    prulong.apply(copy.deepcopy(reference), MIXED)  # registers the attention function
    model.set_attn_implementation("prulong")
    with torch.no_grad(), pytest.raises(ValueError, match="no pattern: call prulong.apply"):
        model(tokens(1, 8))
