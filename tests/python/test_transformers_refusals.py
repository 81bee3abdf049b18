# SPDX-License-Identifier: MIT
"""A pattern reads keys by position: other positions, other caches and other padding are refused by name."""

import copy
import pickle
import warnings

import pytest
import torch
import transformers
from masked_llama import CACHE, LAYERS, LOCAL, MIXED, llama, llama_config, masked_reference, tokens
from transformers import DynamicCache, EncoderDecoderCache, LlamaForCausalLM, StaticCache

import prulong

IDS = tokens(1, 40)
SPLIT = 25  # tokens of the first call


@pytest.fixture
def model():
    model = llama()
    prulong.apply(model, MIXED)
    return model


@torch.no_grad()
def continued(model, change, split=SPLIT, ids=IDS, **arguments):
    """Logits of `ids` behind `split`, after `change` of the cache that the tokens before have left."""
    cache = DynamicCache(config=model.config)
    model(ids[:, :SPLIT], **{CACHE: cache})
    cache = change(cache) or cache
    return model(ids[:, split:], **{CACHE: cache}, **arguments).logits


def crop(cache, tokens):
    cache.crop(-tokens if transformers.__version__ >= "5" else cache.get_seq_length() - tokens)


def test_changes_that_keep_positions_are_right(model):
    expected = masked_reference(llama(), MIXED, IDS)
    for split, change in [
        (SPLIT, lambda cache: None),
        (SPLIT, copy.deepcopy),
        (SPLIT, lambda cache: cache.reorder_cache(torch.tensor([0]))),
        (SPLIT - 6, lambda cache: crop(cache, 6)),
        (SPLIT - 20, lambda cache: crop(cache, 20)),
    ]:
        logits = continued(model, change, split)
        torch.testing.assert_close(logits, expected[:, split:], rtol=1e-5, atol=1e-5)


def test_nothing_can_take_keys_out_of_the_cache(model):
    """As tools do that evict from a DynamicCache: there would be fewer keys than positions."""

    def keep(cache):
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, 4:], layer.values[:, :, 4:]

    with pytest.raises(AttributeError, match="pages of its own: a layer of it has no 'keys'"):
        continued(model, keep)
    for read in (lambda cache: cache[0], list):
        with pytest.raises(ValueError, match="no tensors of keys and values"):
            continued(model, read)


def test_sequences_in_turns(model):
    sequences, caches = [tokens(1, n, seed=n) for n in (30, 40)], [DynamicCache(config=model.config) for _ in range(2)]
    with torch.no_grad():
        for start, end in ((0, 11), (11, 12), (12, 25), (25, 30)):
            for ids, cache in zip(sequences, caches):
                logits = model(ids[:, start:end], **{CACHE: cache}).logits
                expected = masked_reference(llama(), MIXED, ids[:, :end])[:, start:]
                torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "position_ids",
    [torch.arange(5, 45), torch.arange(40) // 2, torch.arange(40).flip(0), torch.arange(40) % 20, torch.zeros(40)],
    ids=["shifted", "repeated", "backwards", "packed", "zero"],
)
def test_other_positions_are_refused(model, position_ids):
    for more in ({}, {"attention_mask": torch.ones_like(IDS)}, {"use_cache": False}):
        with torch.no_grad(), pytest.raises(ValueError, match="packed"):
            model(IDS, position_ids=position_ids[None].long(), **more)


def test_one_row_of_other_positions_is_refused(model):
    positions = torch.arange(20).repeat(2, 1)
    positions[1] = (positions[1] - 4).clamp(min=0)  # left padding, without a mask
    with torch.no_grad(), pytest.raises(ValueError, match="padded"):
        model(tokens(2, 20), position_ids=positions)


@pytest.mark.parametrize("holes", [slice(16, 20), slice(7, 9)], ids=["right", "within"])
def test_padding_elsewhere_than_at_the_left_is_refused(model, holes):
    ids, mask = tokens(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[1, holes] = 0
    for more in ({}, {"use_cache": False}):
        with torch.no_grad(), pytest.raises(ValueError, match="padding at the right of a row or within it"):
            model(ids, attention_mask=mask, **more)
    with pytest.raises(ValueError, match="padding at the right"):
        model.generate(ids, attention_mask=mask, max_new_tokens=3)
    with pytest.raises(ValueError, match="padding at the right"):  # generate finds the padding itself
        model.generate(ids * mask, max_new_tokens=3)


def test_padding_with_the_positions_of_whole_rows_is_refused(model):
    ids, mask = tokens(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[1, :4] = 0
    for more in ({}, {"use_cache": False}):
        with torch.no_grad(), pytest.raises(ValueError, match=r"pass position_ids = attention_mask.cumsum\(-1\) - 1"):
            model(ids, attention_mask=mask, **more)


def test_a_mask_of_other_length_is_refused(model):
    """A mask of the new tokens alone leaves out the cached ones."""
    with pytest.raises(ValueError, match="attention_mask covers 15 tokens, the cache and the input hold 40"):
        continued(model, lambda cache: None, attention_mask=torch.ones(1, 15, dtype=torch.long))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_other_caches_are_refused(model):
    static = StaticCache(config=model.config, max_cache_len=64)
    with torch.no_grad(), pytest.raises(ValueError, match="static and sliding caches are not supported"):
        model(IDS, **{CACHE: static})
    with pytest.raises(ValueError, match="an empty DynamicCache"):
        model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, cache_implementation="static")
    sliding = DynamicCache(config=transformers.MistralConfig(num_hidden_layers=LAYERS, sliding_window=8))
    with torch.no_grad(), pytest.raises(ValueError, match="only the ordinary DynamicCache"):
        model(IDS[:, :20], **{CACHE: sliding})
    for other in (
        EncoderDecoderCache(DynamicCache(), DynamicCache()),
        type("OwnCache", (DynamicCache,), {})(),
        DynamicCache(offloading=True) if torch.cuda.is_available() else None,
    ):
        if other is not None:
            with torch.no_grad(), pytest.raises(ValueError, match=f"{type(other).__name__} is not supported"):
                model(IDS, **{CACHE: other})


def test_continuous_batching_is_refused(model):
    """Its cache has pages too, but one table for all heads."""
    hidden, positions = torch.zeros(1, 4, 48), torch.arange(4)[None]
    paged = type("PagedAttentionCache", (), {})()
    with torch.no_grad(), pytest.raises(ValueError, match="PagedAttentionCache is not supported"):
        model.model.layers[0].self_attn(
            hidden,
            position_embeddings=model.model.rotary_emb(hidden, positions),
            attention_mask=None,
            position_ids=positions,
            **{CACHE: paged},
        )


def test_a_cache_from_before_the_pattern_is_refused():
    model = llama()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS[:, :SPLIT], **{CACHE: cache})
        prulong.apply(model, MIXED)
        with pytest.raises(ValueError, match="the DynamicCache holds 25 tokens from before the pattern"):
            model(IDS[:, SPLIT:], **{CACHE: cache})


def test_a_cache_of_the_pattern_in_another_model_is_refused(model):
    cache = DynamicCache(config=model.config)
    other = llama()
    prulong.apply(other, LOCAL)
    with torch.no_grad():
        model(IDS[:, :SPLIT], **{CACHE: cache})
        with pytest.raises(ValueError, match="works in the model that its pattern is applied to alone"):
            llama()(IDS[:, SPLIT:], **{CACHE: cache})
        with pytest.raises(ValueError, match="made for another pattern than the model's"):
            other(IDS[:, SPLIT:], **{CACHE: cache})
        prulong.remove(model)
        with pytest.raises(ValueError, match="works in the model that its pattern is applied to alone"):
            model(IDS[:, SPLIT:], **{CACHE: cache})


def test_another_batch_in_a_cache_is_refused(model):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS, **{CACHE: cache})
        with pytest.raises(ValueError, match="the input has 2 rows, the cache 1"):
            model(tokens(2, 1), **{CACHE: cache})


def test_other_padding_than_before_is_refused(model):
    ids, mask = tokens(2, 20), torch.ones(2, 21, dtype=torch.long)
    mask[1, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, attention_mask=mask[:, :20], position_ids=positions[:, :20], **{CACHE: cache})
        mask[1, :5] = 0
        positions = mask.cumsum(-1)[:, -1:] - 1
        with pytest.raises(ValueError, match="marks 5 tokens of row 1 as padding, but the cache was filled with 4"):
            model(ids[:, -1:], attention_mask=mask, position_ids=positions, **{CACHE: cache})
        with pytest.raises(ValueError, match="marks 0 tokens of row 1 as padding, but the cache was filled with 4"):
            model(ids[:, -1:], **{CACHE: cache})


def test_a_cache_whose_pass_broke_off_is_refused(model):
    cache = DynamicCache(config=model.config)
    mlp, model.model.layers[1].mlp = model.model.layers[1].mlp, torch.nn.Linear(1, 1)
    with torch.no_grad():
        with pytest.raises(RuntimeError):
            model(IDS[:, :SPLIT], **{CACHE: cache})
        model.model.layers[1].mlp = mlp
        for _ in range(2):
            with pytest.raises(ValueError, match="layer 2 has not seen all tokens in the cache"):
                model(IDS[:, SPLIT:], **{CACHE: cache})
        cache.reset()
        expected = masked_reference(llama(), MIXED, IDS)
        torch.testing.assert_close(model(IDS, **{CACHE: cache}).logits, expected, rtol=1e-5, atol=1e-5)


def test_what_a_cache_cannot_do_is_refused(model):
    with pytest.raises(TypeError, match="pattern: expected a prulong.Pattern or a model with one, found str"):
        prulong.Cache("masks")
    with pytest.raises(ValueError, match="LlamaForCausalLM has no pattern: call prulong.apply"):
        prulong.Cache(llama())
    with pytest.raises(ValueError, match="slack: expected 0 or more"):
        prulong.Cache(MIXED, slack=-1)
    with pytest.raises(ValueError, match="no tensors of keys and values to read or save"):
        pickle.dumps(prulong.Cache(MIXED))


def test_layers_called_without_the_model_are_refused(model):
    hidden, positions = torch.zeros(1, 4, 48), torch.arange(4)[None]
    rotation = model.model.rotary_emb(hidden, positions)
    with torch.no_grad(), pytest.raises(ValueError, match="call the whole language model"):
        model.model.layers[0](hidden, position_embeddings=rotation, position_ids=positions)


def test_prompts_beyond_the_models_positions_warn_once():
    model = LlamaForCausalLM(llama_config(max_position_embeddings=32)).eval()
    prulong.apply(model, MIXED)

    def said(ids):
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            model(ids)
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2)
        return [str(warning.message) for warning in caught if "max_position_embeddings" in str(warning.message)]

    assert said(IDS[:, :30]) == []
    assert len(first := said(IDS)) == 1 and "40 tokens goes beyond the model's 32 positions" in first[0]
    assert said(IDS) == []
