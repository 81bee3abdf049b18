# SPDX-License-Identifier: MIT
"""prulong.Engine: tokens against transformers, streaming, chats, stops, refusals."""

import copy
import json
import shutil

import pytest
import torch
import transformers

import prulong
from prulong import Engine, Pattern, Sampling
from tiny_world import KV_HEADS, LAYERS, ROOT, VOCAB

SMOLLM2 = ROOT / "models" / "SmolLM2-135M-Instruct"
NEEDS_MODEL = pytest.mark.skipif(not SMOLLM2.exists(), reason="run scripts/fetch_smollm2.py")
SHAPE = prulong.ModelShape("llama", LAYERS, KV_HEADS, 4, 16)
MIXED = Pattern.from_scores(SHAPE, [[0.9, 0.1], [0.2, 0.8], [0.3, 0.4]], 0.5, 4, 16)
STORY = (ROOT / "assets").rglob("*.txt")


def engine_of(world, pattern=None, **options):
    return Engine(world / "model", pattern, dtype="float32", device="cpu", **options)


def smollm2_pattern(sparsity=0.7):
    scores = torch.rand(30, 3, generator=torch.Generator().manual_seed(3))
    return Pattern.from_scores(prulong.ModelShape("llama", 30, 3, 9, 64), scores, sparsity, 16, 128)


@torch.no_grad()
def masked_argmax(model, pattern, tokens):
    """The likeliest token after each of `tokens`, by transformers' eager attention under the mask spelled out."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    place = torch.arange(len(tokens))
    query, key = place[:, None], place[None, :]
    causal = key <= query
    local = causal & ((key < pattern.sink) | (query - key < pattern.window))
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    for attention in (module for module in model.modules() if type(module).__name__ == "LlamaAttention"):
        visible = torch.stack([causal if is_global else local for is_global in pattern.mask[attention.layer_idx]])
        visible = visible.repeat_interleave(group, dim=0)[None]
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        attention.register_forward_pre_hook(
            lambda module, args, kwargs, mask=mask: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True)
    return model(torch.tensor([tokens]), use_cache=False).logits[0].argmax(-1).tolist()


@NEEDS_MODEL
def test_greedy_tokens_are_those_of_transformers_over_300_tokens():
    text = " ".join(next(iter(sorted(STORY))).read_text().split()[:180])
    model = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(SMOLLM2)
    prompt = tokenizer(text)["input_ids"]
    endless = Sampling(max_new_tokens=300, stop_tokens=[])
    with torch.no_grad():
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=300, min_new_tokens=300, do_sample=False)
    expected = expected[0, len(prompt):].tolist()
    assert Engine(SMOLLM2, dtype="float32", device="cpu").generate([prompt], endless)[0].tokens == expected

    pattern = smollm2_pattern()
    alone = Engine(SMOLLM2, pattern, dtype="float32", device="cpu").generate([prompt], endless)[0].tokens
    assert alone == masked_argmax(model, pattern, prompt + alone)[len(prompt) - 1 : -1]
    # In a batch whose members come and go, with other chunks.
    engine = Engine(SMOLLM2, pattern, dtype="float32", device="cpu", tokens_per_step=50)
    short = Sampling(max_new_tokens=5, stop_tokens=[])
    ids = {engine.submit(prompt, endless): alone}
    others = [prompt[:70], prompt[30:60], prompt[5:190]]
    expected_others = [Engine(SMOLLM2, pattern, dtype="float32", device="cpu").generate([p], short)[0].tokens for p in others]
    steps = 0
    while engine.busy:
        if steps % 6 == 0 and others:
            ids[engine.submit(others.pop(), short)] = expected_others.pop()
        for id, generation in engine.step()[1]:
            assert generation.tokens == ids.pop(id)
        steps += 1
    assert not ids


def test_greedy_tokens_of_the_tiny_model_with_a_mask(world):
    model = transformers.AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32).eval()
    prompt = torch.randint(1, VOCAB, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    for tokens_per_step in (7, 64, 512):
        engine = engine_of(world, MIXED, tokens_per_step=tokens_per_step)
        tokens = engine.generate([prompt], Sampling(max_new_tokens=120, stop_tokens=[]))[0].tokens
        assert tokens == masked_argmax(model, MIXED, prompt + tokens)[len(prompt) - 1 : -1]
    assert engine.stats()["peak_kv_bytes"] < 0.85 * engine.stats()["peak_full_kv_bytes"]


def test_a_text_goes_in_and_comes_out(world):
    engine = engine_of(world)
    sampling = Sampling(max_new_tokens=30, temperature=1.0, seed=4, stop_tokens=[])
    answer = engine.generate("The old man went to", sampling)
    assert answer.text == engine.tokenizer.decode(answer.tokens, skip_special_tokens=True)
    assert (answer.reason, len(answer.tokens)) == ("length", 30)
    assert "".join(engine.stream("The old man went to", sampling)) == answer.text
    both = engine.generate(["The old man went to", engine.tokenizer("The dog")["input_ids"]], sampling)
    assert both[0] == answer and len(both[1].tokens) == 30
    assert not engine.busy


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(world):
    engine = engine_of(world)
    free = Sampling(max_new_tokens=40, temperature=1.0, seed=2, stop_tokens=[])
    text = engine.generate("The old man", free).text
    stop = text[11:15]
    cut = engine.generate("The old man", Sampling(max_new_tokens=40, temperature=1.0, seed=2, stop=[stop], stop_tokens=[]))
    assert (cut.text, cut.reason) == (text[: text.index(stop)], "stop")
    pieces = list(engine.stream("The old man", Sampling(max_new_tokens=40, temperature=1.0, seed=2, stop=stop, stop_tokens=[])))
    assert "".join(pieces) == cut.text
    assert not engine.busy


def test_leaving_a_stream_frees_its_memory(world):
    engine = engine_of(world)
    for _ in engine.stream("The old man", Sampling(max_new_tokens=100, stop_tokens=[])):
        break
    assert not engine.busy


def test_messages_go_through_the_chat_template(world):
    engine = engine_of(world)
    engine.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}The{% endif %}")
    sampling = Sampling(max_new_tokens=5, stop_tokens=[])
    chat = engine.generate([[{"role": "user", "content": "The red dog"}]], sampling)[0]
    text = engine.tokenizer.apply_chat_template([{"role": "user", "content": "The red dog"}], tokenize=False,
                                                add_generation_prompt=True)
    assert chat.tokens == engine.generate([engine.tokenizer(text, add_special_tokens=False)["input_ids"]], sampling)[0].tokens


def test_the_models_own_end_of_text_ends_an_answer(world, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(world / "model", folder)
    free = Sampling(max_new_tokens=20, temperature=1.0, stop_tokens=[])
    tokens = engine_of(world).generate([[5, 6, 7]], free)[0].tokens
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokens[3]]}))
    answer = Engine(folder, dtype="float32").generate([[5, 6, 7]], Sampling(max_new_tokens=20, temperature=1.0))[0]
    assert answer.reason == "stop" and answer.tokens == tokens[: tokens.index(tokens[3]) + 1]


@pytest.mark.parametrize("sampling, message", [
    (dict(temperature=-1.0), "temperature: expected"), (dict(top_p=0.0), "top_p: expected a number above 0, at most 1"),
    (dict(top_p=1.01), "top_p"), (dict(max_new_tokens=0), "max_new_tokens"), (dict(stop=[""]), "stop: expected"),
    (dict(repetition_penalty=0.0), "repetition_penalty"), (dict(top_k=-1), "top_k"), (dict(stop_tokens=[VOCAB]), "stop_tokens")])
def test_sampling_out_of_range_is_refused_by_name(world, sampling, message):
    with pytest.raises(ValueError, match=message):
        engine_of(world).generate("The old man", Sampling(**sampling))


def test_prompts_that_do_not_fit_are_refused_by_name(world):
    engine = engine_of(world)
    for prompt, message in (([], "prompt: expected at least one token"), ([VOCAB], f"token {VOCAB} at place 0"),
                            ([1] * 600, "at most 512 tokens, the positions")):
        with pytest.raises(ValueError, match=message):
            engine.generate([prompt])
    with pytest.raises(TypeError, match="prompt: expected"):
        engine.generate([[1.5]])
    assert not engine.busy
    assert len(engine_of(world, allow_beyond_positions=True).generate([[1] * 600], Sampling(max_new_tokens=2))[0].tokens) == 2


def test_engines_that_cannot_be_are_refused_by_name(world):
    other = Pattern.from_scores(prulong.ModelShape("llama", LAYERS + 1, KV_HEADS, 4, 16),
                                [[0.0] * KV_HEADS] * (LAYERS + 1), 0.5, 4, 16)
    with pytest.raises(ValueError, match="layers"):
        engine_of(world, other)
    with pytest.raises(ValueError, match="page"):
        engine_of(world, kv_gib=1e-9)
    with pytest.raises(ValueError, match="dtype: expected one of auto, float32, bfloat16, found half"):
        Engine(world / "model", dtype="half")
    with pytest.raises(TypeError, match="pattern: expected a prulong.Pattern"):
        Engine(world / "model", "masks")
    with pytest.raises((ValueError, OSError), match="config.json"):
        Engine(world / "nowhere")
