# SPDX-License-Identifier: MIT
"""A pattern reads keys by position: caches that lack keys and other positions are refused, the rest is right."""

import copy
import inspect
import warnings

import pytest
import torch
import transformers
from masked_llama import LAYERS, MIXED, llama, llama_config, masked_reference, tokens
from transformers import DynamicCache, LlamaForCausalLM, LlamaModel, StaticCache

import prulong

IDS = tokens(1, 40)
SPLIT = 25  # tokens of the first call
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


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


def keep(cache, kept, layers=range(LAYERS)):
    for layer in (cache.layers[i] for i in layers):
        layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]


def crop(cache, tokens):
    cache.crop(-tokens if transformers.__version__ >= "5" else cache.get_seq_length() - tokens)


EVICTIONS = {
    "first": lambda cache: keep(cache, range(4, SPLIT)),
    "middle": lambda cache: keep(cache, [0, 1, 2, *range(9, SPLIT)]),
    "all but sink and window": lambda cache: keep(cache, [0, 1, 2, *range(SPLIT - 7, SPLIT)]),
    "first layer": lambda cache: keep(cache, range(4, SPLIT), [0]),
    "last layer": lambda cache: keep(cache, range(4, SPLIT), [LAYERS - 1]),
}


@pytest.mark.parametrize("told", ["nothing", "position_ids", "attention_mask"])
@pytest.mark.parametrize("eviction", EVICTIONS)
def test_keys_removed_from_the_cache_are_refused(model, eviction, told):
    arguments = {
        "nothing": {},
        "position_ids": {"position_ids": torch.arange(SPLIT, 40)[None]},
        "attention_mask": {"attention_mask": torch.ones(1, 40, dtype=torch.long)},
    }[told]
    with pytest.raises(ValueError, match="by position|keys missing from the cache"):
        continued(model, EVICTIONS[eviction], **arguments)


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


def test_sequences_in_turns(model):
    """What the first layer remembers of the last call says nothing about another sequence's cache."""
    sequences, caches = [tokens(1, n, seed=n) for n in (30, 40)], [DynamicCache(config=model.config) for _ in range(2)]
    with torch.no_grad():
        for start, end in ((0, 11), (11, 12), (12, 25), (25, 30)):
            for ids, cache in zip(sequences, caches):
                logits = model(ids[:, start:end], **{CACHE: cache}).logits
                expected = masked_reference(llama(), MIXED, ids[:, :end])[:, start:]
                torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_refused_call_is_refused_again(model):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS[:, :SPLIT], **{CACHE: cache})
        EVICTIONS["first"](cache)
        for _ in range(2):
            with pytest.raises(ValueError, match="by position"):
                model(IDS[:, SPLIT:], **{CACHE: cache})


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


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_are_refused(model, side):
    ids, mask = tokens(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[1, slice(0, 4) if side == "left" else slice(16, 20)] = 0
    with torch.no_grad(), pytest.raises(ValueError, match="padding"):
        model(ids, attention_mask=mask)
    with pytest.raises(ValueError, match="padding"):
        model.generate(ids, attention_mask=mask, max_new_tokens=3)
    with pytest.raises(ValueError, match="padding"):  # generate finds the padding itself
        model.generate(ids * mask, max_new_tokens=3)


def test_a_mask_of_other_length_is_refused(model):
    """A mask of the new tokens alone leaves out the cached ones."""
    with pytest.raises(ValueError, match="attention_mask covers 15 tokens, the cache and the input hold 40"):
        continued(model, lambda cache: None, attention_mask=torch.ones(1, 15, dtype=torch.long))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_other_caches_are_refused(model):
    with torch.no_grad(), pytest.raises(ValueError, match="only the ordinary DynamicCache"):
        model(IDS, **{CACHE: StaticCache(config=model.config, max_cache_len=64)})
    with pytest.raises(ValueError, match="DynamicCache"):
        model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, cache_implementation="static")
    sliding = DynamicCache(config=transformers.MistralConfig(num_hidden_layers=LAYERS, sliding_window=8))
    with torch.no_grad(), pytest.raises(ValueError, match="DynamicCache"):
        model(IDS[:, :20], **{CACHE: sliding})
        model(IDS[:, 20:], **{CACHE: sliding})


def test_layers_called_without_the_model_are_refused(model):
    hidden, positions = torch.zeros(1, 4, 48), torch.arange(4)[None]
    rotation = model.model.rotary_emb(hidden, positions)
    with torch.no_grad(), pytest.raises(ValueError, match="call the whole language model"):
        model.model.layers[0](hidden, position_embeddings=rotation, position_ids=positions)


def test_every_way_of_decoding_gives_the_same_tokens(model):
    """Beams reorder the cache, drafts are taken back from its end."""
    ids, mask = tokens(2, 30), torch.ones(2, 30, dtype=torch.long)
    generate = lambda model, ids, **more: model.generate(  # noqa: E731
        ids, attention_mask=mask[: len(ids)], max_new_tokens=8, do_sample=False, **more
    )[:, 30:].tolist()
    greedy = generate(model, ids[:1])
    draft = LlamaForCausalLM(llama_config(num_hidden_layers=1)).eval()
    assert generate(model, ids[:1], use_cache=False) == greedy
    assert generate(model, ids[:1], assistant_model=draft) == greedy
    beams = generate(model, ids, num_beams=3)
    assert beams == generate(model, ids, num_beams=3, use_cache=False)
    assert beams[0] != greedy[0]  # or the test shows nothing


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
