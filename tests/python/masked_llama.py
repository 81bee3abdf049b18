# SPDX-License-Identifier: MIT
"""A tiny random Llama, patterns for it, and its logits under a pattern as transformers computes them itself."""

import copy
import functools
import inspect

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

import prulong
from prulong import Pattern

LAYERS, KV_HEADS, VOCABULARY = 3, 2, 97
SINK, WINDOW = 3, 7
# What transformers calls the cache, as an argument and in what a model returns.
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


def llama_config(**changes):
    shape = dict(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=KV_HEADS,
        head_dim=16,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaConfig(**(shape | changes))


@functools.cache
def _llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config()).eval()


def llama():
    """The model with its own attention: a copy, the same weights every time."""
    return copy.deepcopy(_llama())


def pattern_of(mask):
    """The pattern with this mask, [layers][KV_HEADS]."""
    flat = [value for row in mask for value in row]
    pattern = Pattern.from_scores(
        prulong.ModelShape("llama", len(mask), KV_HEADS, 6, 16), mask, 1 - sum(flat) / len(flat), SINK, WINDOW
    )
    assert pattern.mask == tuple(tuple(bool(value) for value in row) for row in mask)
    return pattern


MIXED = pattern_of([[1, 0], [0, 0], [0, 1]])
GLOBAL = pattern_of([[1, 1]] * LAYERS)
LOCAL = pattern_of([[0, 0]] * LAYERS)


def tokens(batch, length, seed=1):
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def following(model, pattern):
    """A copy of `model` in which transformers' own eager attention follows `pattern`, by the rule spelled out: each
    layer gets its own 4-D mask. For calls without a cache; the batch may be padded at its left."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")

    def put_mask(module, args, kwargs):
        mask = kwargs["attention_mask"]  # [B, 1, S, S]; what the last query does not see is padding
        pads, length = (mask[:, 0, -1] != 0).sum(-1)[:, None, None], mask.shape[-1]
        query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
        causal = (key <= query) & (key >= pads)
        local = causal & ((key - pads < pattern.sink) | (query - key < pattern.window))
        heads = [causal if is_global else local for is_global in pattern.mask[module.layer_idx]]
        visible = torch.stack(heads, 1).repeat_interleave(module.num_key_value_groups, dim=1)
        mask = torch.zeros(visible.shape, dtype=mask.dtype).masked_fill(~visible, torch.finfo(mask.dtype).min)
        return args, {**kwargs, "attention_mask": mask}

    for attention in model.modules():
        if type(attention).__name__ == "LlamaAttention":
            attention.register_forward_pre_hook(put_mask, with_kwargs=True)
    return model


@torch.no_grad()
def masked_reference(model, pattern, ids, **inputs):
    """Logits of `model` under `pattern`, as `following` computes them."""
    return following(model, pattern)(ids, use_cache=False, **inputs).logits
