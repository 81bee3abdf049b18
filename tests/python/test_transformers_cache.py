# SPDX-License-Identifier: MIT
"""prulong.Cache in a model with a pattern: every way of generating gives what full passes give, in less memory."""

import copy
import inspect
import weakref

import pytest
import torch
import transformers
from masked_llama import CACHE, KV_HEADS, LAYERS, LOCAL, MIXED, SINK, VOCABULARY, WINDOW, following, llama
from masked_llama import llama_config, masked_reference, pattern_of, tokens
from transformers import DynamicCache, LlamaForCausalLM

import prulong

PAGE, SLACK, HEAD_DIM = 32, 64, 16
LENGTH = 200  # local heads have given pages back long before
CHUNKS = sorted({1, WINDOW - 1, WINDOW, WINDOW + 1, PAGE - 1, PAGE, PAGE + 1, LENGTH})
CROP_REMOVES = "tokens_to_remove" in inspect.signature(transformers.Cache.crop).parameters
VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))


@pytest.fixture
def model():
    model = llama()
    prulong.apply(model, MIXED)
    return model


def generate(model, ids, **options):
    """The new tokens."""
    mask = options.pop("attention_mask", torch.ones_like(ids))
    options = {"max_new_tokens": 16, "do_sample": False, **options}
    return model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()


def padded(length, pads):
    """A batch, its mask and its positions."""
    ids, mask = tokens(len(pads), length), torch.ones(len(pads), length, dtype=torch.long)
    for row, pad in enumerate(pads):
        ids[row, :pad], mask[row, :pad] = 0, 0
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def crop(cache, n):
    """Takes the last n tokens back."""
    cache.crop(-n if CROP_REMOVES else cache.get_seq_length() - n)


@torch.no_grad()
def run(model, cache, ids, chunk, **inputs):
    """Logits of `ids` in chunks; inputs by column go with them."""
    parts = []
    for begin in range(0, ids.shape[1], chunk):
        end = min(begin + chunk, ids.shape[1])
        more = {"attention_mask": inputs["attention_mask"][:, :end]} if "attention_mask" in inputs else {}
        more |= {"position_ids": inputs["position_ids"][:, begin:end]} if "position_ids" in inputs else {}
        parts.append(model(ids[:, begin:end], **{CACHE: cache}, **more).logits)
    return torch.cat(parts, 1)


# --- the same results -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("pattern", [MIXED, LOCAL], ids=["mixed", "local"])
def test_prefill_in_chunks_equals_full_passes(pattern, chunk):
    model, ids, cache = llama(), tokens(1, LENGTH), DynamicCache()
    prulong.apply(model, pattern)
    logits = run(model, cache, ids, chunk)
    assert type(cache) is prulong.Cache and cache.get_seq_length() == LENGTH
    torch.testing.assert_close(logits, masked_reference(llama(), pattern, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, PAGE - 1, LENGTH])
def test_double_precision(chunk):
    """The rule to the last digits: a full pass computes the same."""
    model, ids = llama().double(), tokens(2, LENGTH)
    prulong.apply(model, MIXED)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(run(model, DynamicCache(), ids, chunk), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [7, PAGE, LENGTH])
def test_each_row_of_a_padded_batch_equals_its_own_run(model, chunk):
    pads = (0, 25, LENGTH - 1, 44)
    ids, mask, positions = padded(LENGTH, pads)
    inputs = {"attention_mask": mask, "position_ids": positions}
    cache = DynamicCache()
    logits = run(model, cache, ids, chunk, **inputs)
    with torch.no_grad():
        whole = model(ids, use_cache=False, **inputs).logits
    for row, pad in enumerate(pads):
        expected = masked_reference(llama(), MIXED, ids[row : row + 1, pad:])[0]
        torch.testing.assert_close(logits[row, pad:], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(whole[row, pad:], expected, rtol=1e-5, atol=1e-5)
    assert cache.bytes()["full"] == (4 * LENGTH - sum(pads)) * LAYERS * KV_HEADS * HEAD_DIM * 2 * 4  # no padding in it


def test_every_way_of_generating_gives_the_same_tokens(model):
    ids = tokens(2, 150)
    ids[:, 75:] = ids[:, :75]  # something to look up
    reference = following(llama(), MIXED)
    greedy = generate(reference, ids, use_cache=False)
    assert greedy != generate(llama(), ids)  # or the test shows nothing
    assert generate(model, ids) == greedy
    assert generate(model, ids, use_cache=False) == greedy
    if VERSION == (5, 2):  # gives each chunk the positions of the prompt's end, whatever the attention
        with pytest.raises(ValueError, match="position_ids .* prefill_chunk_size in transformers 5.2"):
            generate(model, ids, prefill_chunk_size=7)
    else:
        assert generate(model, ids, prefill_chunk_size=7) == greedy
    assert generate(model, ids, **{CACHE: prulong.Cache(model)}) == greedy
    unused = next(token for token in range(VOCABULARY) if token not in sum(greedy, []))  # earlier versions need one
    assert generate(model, ids[:1], prompt_lookup_num_tokens=5, eos_token_id=unused) == greedy[:1]
    for layers, pattern in ((1, None), (1, pattern_of([[0, 0]])), (LAYERS, MIXED)):
        draft = LlamaForCausalLM(llama_config(num_hidden_layers=layers)).eval() if layers == 1 else model
        if pattern is not None:
            prulong.apply(draft, pattern)
        assert generate(model, ids[:1], assistant_model=draft) == greedy[:1]
    for beams in ({"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}):
        found = generate(model, ids, **beams)
        assert found == generate(reference, ids, use_cache=False, **beams)
    torch.manual_seed(1)
    sampled = generate(model, ids, do_sample=True, num_return_sequences=2)
    torch.manual_seed(1)
    assert sampled == generate(reference, ids, use_cache=False, do_sample=True, num_return_sequences=2)


@pytest.mark.skipif(VERSION == (5, 2), reason="this version of transformers fails in it")
def test_an_assistant_out_of_the_models_own_first_layers(model):
    ids = tokens(1, 150)
    assert generate(model, ids, assistant_early_exit=1) == generate(following(llama(), MIXED), ids, use_cache=False)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"prefill_chunk_size": 7}], ids=["greedy", "beams", "chunks"]
)
def test_padded_batches_generate_the_same_tokens(model, options):
    ids, mask, _ = padded(150, (0, 25, 70))
    expected = generate(following(llama(), MIXED), ids, attention_mask=mask, use_cache=False,
                        num_beams=options.get("num_beams", 1))
    if "prefill_chunk_size" in options and VERSION <= (5, 2):
        with pytest.raises(ValueError, match="a padded batch in chunks goes wrong there with any attention"):
            generate(model, ids, attention_mask=mask, **options)
    else:
        assert generate(model, ids, attention_mask=mask, **options) == expected


def test_a_chat_in_one_cache(model):
    """Further calls of generate go on where the cache ends, with all tokens so far as their prompt."""
    ids, caches = tokens(2, 120), (DynamicCache(config=model.config), prulong.Cache(MIXED))
    for turn in range(3):
        ids = torch.cat([ids, tokens(2, 30, seed=turn)], 1)
        expected = generate(following(llama(), MIXED), ids, use_cache=False, max_new_tokens=10)
        for cache in caches:
            assert generate(model, ids, max_new_tokens=10, **{CACHE: cache}) == expected
            assert cache.get_seq_length() == ids.shape[1] + 9
        ids = torch.cat([ids, torch.tensor(expected)], 1)


def test_a_long_run(model):
    """Far beyond the window, pages come and go."""
    ids = tokens(1, 100)
    expected = generate(following(llama(), MIXED), ids, use_cache=False, max_new_tokens=110)
    assert generate(model, ids, max_new_tokens=110) == expected


def test_tokens_taken_back_leave_no_trace(model):
    ids, wrong = tokens(2, LENGTH), tokens(2, LENGTH, seed=5)
    expected = masked_reference(llama(), MIXED, ids)
    cache = prulong.Cache(MIXED)
    run(model, cache, ids[:, :150], 50)
    for n in (1, 20, 30):
        run(model, cache, wrong[:, :n], n)
        crop(cache, n)
        assert cache.get_seq_length() == 150
    crop(cache, 0)
    crop(cache, SLACK - 34)
    logits = run(model, cache, ids[:, 120:], 80)
    torch.testing.assert_close(logits, expected[:, 120:], rtol=1e-5, atol=1e-5)


def test_more_tokens_than_the_slack_cannot_be_taken_back(model):
    ids = tokens(1, LENGTH)
    cache = prulong.Cache(MIXED, slack=8)
    run(model, cache, ids, LENGTH)
    with pytest.raises(ValueError, match="only the last .* can be taken back, not 100: local heads gave back"):
        crop(cache, 100)
    crop(cache, 8)
    expected = masked_reference(llama(), MIXED, ids)[:, LENGTH - 8 :]
    torch.testing.assert_close(run(model, cache, ids[:, LENGTH - 8 :], 8), expected, rtol=1e-5, atol=1e-5)
    if CROP_REMOVES:
        with pytest.raises(ValueError, match="as a negative number, found 3"):
            cache.crop(3)
    draft = LlamaForCausalLM(llama_config(num_hidden_layers=1)).eval()
    draft.generation_config.num_assistant_tokens = 50
    with pytest.raises(ValueError, match="a larger slack keeps more"):
        generate(model, ids, assistant_model=draft, max_new_tokens=53, **{CACHE: prulong.Cache(MIXED, slack=0)})


def test_rows_are_taken_back_together_or_not_at_all(model):
    pads = (0, 150)
    ids, mask, positions = padded(LENGTH, pads)
    inputs = {"attention_mask": mask, "position_ids": positions}
    cache = prulong.Cache(MIXED, slack=8)
    run(model, cache, ids[:, :180], 180, **inputs)
    with pytest.raises(ValueError, match="local heads gave back"):
        cache.batch_select_indices(torch.tensor([1, 0]))
        crop(cache, 29)  # the row that is short has what it needs
    cache.batch_select_indices(torch.tensor([1, 0]))
    inputs = {"attention_mask": mask, "position_ids": positions[:, 180:]}
    with torch.no_grad():
        logits = model(ids[:, 180:], **{CACHE: cache}, **inputs).logits
    for row, pad in enumerate(pads):
        expected = masked_reference(llama(), MIXED, ids[row : row + 1, pad:])[0, -20:]
        torch.testing.assert_close(logits[row], expected, rtol=1e-5, atol=1e-5)


def test_rows_change_places(model):
    ids = tokens(3, LENGTH)
    expected = masked_reference(llama(), MIXED, ids)
    for change, rows in (
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), [2, 1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([True, False, True])), [0, 2]),
    ):
        cache = DynamicCache()
        run(model, cache, ids[:, :150], 150)
        change(cache)
        logits = run(model, cache, ids[rows, 150:], 9)
        torch.testing.assert_close(logits, expected[rows, 150:], rtol=1e-5, atol=1e-5)


def test_copies_go_their_own_ways(model):
    """A prefix that many prompts share is computed and stored once."""
    ids = [torch.cat([tokens(1, 150), tokens(1, 50, seed=seed)], 1) for seed in range(2)]
    prefix = prulong.Cache(MIXED)
    run(model, prefix, ids[0][:, :150], 150)
    alone = prefix.bytes()["in_use"]
    for copied in (copy.deepcopy, copy.copy):
        caches = [copied(prefix) for _ in ids]
        assert prefix.bytes()["in_use"] == alone
        for own, cache in zip(ids, caches):
            expected = masked_reference(llama(), MIXED, own)[:, 150:]
            torch.testing.assert_close(run(model, cache, own[:, 150:], 20), expected, rtol=1e-5, atol=1e-5)
        assert prefix.bytes()["in_use"] > alone and prefix.get_seq_length() == 150
        del caches, cache
        assert prefix.bytes()["in_use"] == alone


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    ids = tokens(1, LENGTH)
    expected = masked_reference(llama(), MIXED, ids)
    unavoidable = (masked_reference(llama().to(dtype), MIXED, ids).float() - expected).abs().max()
    model = llama().to(dtype)
    prulong.apply(model, MIXED)
    logits = run(model, DynamicCache(), ids, 33)
    assert logits.dtype == dtype and (logits.float() - expected).abs().max() <= 2 * unavoidable


def test_autocast(model):
    ids = tokens(1, LENGTH)
    expected = masked_reference(llama(), MIXED, ids)
    with torch.autocast("cpu", torch.bfloat16):
        unavoidable = (masked_reference(llama(), MIXED, ids).float() - expected).abs().max()
        logits = run(model, DynamicCache(), ids, 33)
    assert (logits.float() - expected).abs().max() <= 2 * unavoidable


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_over_two_gpus(model):
    import accelerate

    ids = tokens(2, 150)
    expected = generate(model, ids)
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0, "model.layers.1": 1}
    places |= {"model.layers.2": 1, "model.norm": 1, "lm_head": 1}
    assert generate(accelerate.dispatch_model(model, places), ids.cuda()) == expected


@pytest.mark.parametrize("modes", [(torch.inference_mode, torch.no_grad), (torch.no_grad, torch.inference_mode)])
def test_inference_mode_for_a_part(model, modes):
    ids, cache = tokens(2, LENGTH), DynamicCache()
    expected = masked_reference(llama(), MIXED, ids)
    with modes[0]():
        model(ids[:, :150], **{CACHE: cache})
    cache.reorder_cache(torch.tensor([1, 1]))  # the rows write to shared pages
    with modes[1]():
        logits = model(ids[[1, 1], 150:], **{CACHE: cache}).logits
    torch.testing.assert_close(logits, expected[[1, 1], 150:], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu(model):
    ids, mask, positions = padded(LENGTH, (0, 25, 70))
    expected = generate(model, ids, attention_mask=mask)
    model, ids, mask, positions = (x.cuda() for x in (model, ids, mask, positions))
    assert generate(model, ids, attention_mask=mask) == expected
    cache = DynamicCache()
    logits = run(model, cache, ids, 33, attention_mask=mask, position_ids=positions)
    with torch.no_grad():
        whole = model(ids, use_cache=False, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits[mask.bool()], whole[mask.bool()], rtol=1e-3, atol=1e-3)
    cache.reorder_cache(torch.tensor([2, 2, 0], device="cuda"))
    assert cache.bytes()["in_use"] < cache.bytes()["full"]


def test_torch_compile(model):
    torch._dynamo.reset()
    ids = tokens(1, LENGTH)
    logits = run(torch.compile(model, backend="eager"), DynamicCache(), ids, 150)
    torch.testing.assert_close(logits, masked_reference(llama(), MIXED, ids), rtol=1e-5, atol=1e-5)


# --- less memory ------------------------------------------------------------------------------------------------------


def pages(length, chunk=0):
    """Pages of a sequence of so many tokens, most of one pass included (chunk: its tokens)."""

    def of(is_global, tokens, seen_from):
        hidden = 0 if is_global else max(0, max(0, seen_from - SLACK - WINDOW + 1) // PAGE - -(-SINK // PAGE))
        return -(-tokens // PAGE) - hidden

    rest = [[of(is_global, length, length) for is_global in row] for row in MIXED.mask]
    if not chunk:
        return sum(map(sum, rest))
    before = [[of(is_global, length - chunk, length - chunk) for is_global in row] for row in MIXED.mask]
    during = [[of(is_global, length, length - chunk) for is_global in row] for row in MIXED.mask]
    return max(sum(map(sum, rest[:i] + [during[i]] + before[i + 1 :])) for i in range(LAYERS))


@pytest.mark.parametrize("chunk", [1, 40, 100, LENGTH])
def test_bytes_are_those_of_what_is_kept(model, chunk):
    page_bytes = PAGE * HEAD_DIM * 2 * 4
    cache = prulong.Cache(MIXED)
    assert cache.bytes() == {"allocated": 0, "in_use": 0, "peak": 0, "full": 0}
    run(model, cache, tokens(1, LENGTH), chunk)
    held = cache.bytes()
    assert held["full"] == LENGTH * LAYERS * KV_HEADS * HEAD_DIM * 2 * 4
    assert held["in_use"] == pages(LENGTH) * page_bytes
    assert held["peak"] == max(pages(end, chunk) for end in range(chunk, LENGTH + 1, chunk)) * page_bytes
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.bytes()["allocated"] == 0


def test_generate_frees_memory_without_another_word(model):
    ids = tokens(1, LENGTH)
    out = model.generate(ids, max_new_tokens=20, do_sample=False, return_dict_in_generate=True)
    cache = getattr(out, CACHE)
    assert type(cache) is prulong.Cache
    held = cache.bytes()
    assert held["full"] == (LENGTH + 19) * LAYERS * KV_HEADS * HEAD_DIM * 2 * 4
    assert held["in_use"] < 0.8 * held["full"] and held["allocated"] >= held["in_use"]
    alive = weakref.ref(cache)
    del out, cache
    assert alive() is None
    with torch.no_grad():
        assert type(getattr(model(ids), CACHE)) is prulong.Cache


def test_beams_share_their_prompt(model):
    options = {"max_new_tokens": 10, "do_sample": False, "return_dict_in_generate": True}
    ids = tokens(1, LENGTH)
    in_use = {
        beams: getattr(model.generate(ids, num_beams=beams, **options), CACHE).bytes()["in_use"] for beams in (1, 4)
    }
    assert in_use[4] < 2 * in_use[1]
