# SPDX-License-Identifier: MIT
"""Where models with a pattern live: quantised and offloaded weights, the meta device, other processes, copied configs,
models with towers, wrappers, files, compiled code."""

import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import accelerate
import pytest
import torch
import transformers
from masked_llama import GLOBAL, LOCAL, MIXED, VOCABULARY, llama, llama_config, masked_reference, pattern_of, tokens
from transformers import AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

import prulong

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
IDS = tokens(1, 40)


def applied(model, pattern=MIXED):
    prulong.apply(model, pattern)
    return model


@torch.no_grad()
def assert_follows(model, pattern=MIXED, like=None, **inputs):
    """`model` gives the logits of `like` (the tiny Llama) under `pattern`, None being its own attention."""
    like = like or llama()
    expected = like(IDS, **inputs).logits if pattern is None else masked_reference(like, pattern, IDS, **inputs)
    torch.testing.assert_close(model(IDS, **inputs).logits, expected, rtol=1e-5, atol=1e-5)


def configs(model):
    return [module.config for module in model.modules() if "config" in module.__dict__]


# --- weights: none, packed, elsewhere ---------------------------------------------------------------------------------


class BufferLinear(torch.nn.Module):
    """A projection without parameters, as GPTQ's and AWQ's are."""

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("qweight", linear.weight.detach().clone())

    def forward(self, x):
        return torch.nn.functional.linear(x, self.qweight)


def test_weights_in_buffers():
    model = llama()
    for layer in model.model.layers:
        for name in PROJECTIONS:
            setattr(layer.self_attn, name, BufferLinear(getattr(layer.self_attn, name)))
    assert_follows(applied(model))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("order", ["before", "after"])
def test_weights_packed_as_int8(order):
    if not set(torch.backends.quantized.supported_engines) - {"none"}:
        pytest.skip("this build of torch has no int8 kernels")

    def pack(model):
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    model = pack(applied(llama())) if order == "after" else applied(pack(llama()))
    assert_follows(model, like=pack(llama()))


def saved(tmp_path):
    llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_device_map(tmp_path, place):
    parts = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    parts |= {"model.layers.0": "cpu", "model.layers.1": place, "model.layers.2": place}
    model = AutoModelForCausalLM.from_pretrained(
        saved(tmp_path), dtype=torch.float32, device_map=parts, offload_folder=tmp_path / "offload"
    )
    assert_follows(applied(model))
    prulong.remove(model)
    assert_follows(model, None)


@pytest.mark.parametrize("offload", [accelerate.cpu_offload, accelerate.disk_offload], ids=["cpu", "disk"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_offload_before_and_after(tmp_path, offload, order):
    options = {"execution_device": torch.device("cpu")}
    if offload is accelerate.disk_offload:
        options["offload_dir"] = tmp_path
    model = llama()
    model = applied(offload(model, **options)) if order == "after" else offload(applied(model), **options)
    assert_follows(model)


@pytest.mark.parametrize("assign", [False, True])
def test_meta_model_then_weights(assign):
    """What a pattern keeps in a layer is no weight: nothing that empties or loads weights reaches it."""
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config()).eval()
        prulong.apply(model, MIXED)
    if not assign:
        model.to_empty(device="cpu")
    model.load_state_dict(llama().state_dict(), assign=assign)
    model.model.rotary_emb = llama().model.rotary_emb
    assert_follows(model)


def test_nothing_that_moves_or_empties_a_model_reaches_the_pattern():
    model = applied(llama())
    model.half().float().to(torch.bfloat16).to("meta").to_empty(device="cpu").load_state_dict(llama().state_dict())
    model = model.float()
    model.load_state_dict(llama().state_dict())
    model.model.rotary_emb = llama().model.rotary_emb
    assert_follows(model)


def test_a_refusal_changes_nothing():
    model = llama()
    model.model.layers[1].self_attn.q_proj = None
    del model.model.layers[1].self_attn.q_proj  # a fused layer, say
    before, names = configs(model), [sorted(module.__dict__) for module in model.modules()]
    with pytest.raises(ValueError, match=r"expected attention modules of layers 0 to 2, found \[0, 2\]"):
        prulong.apply(model, MIXED)
    assert all(a is b for a, b in zip(configs(model), before))
    assert [sorted(module.__dict__) for module in model.modules()] == names


# --- copies, files, processes -----------------------------------------------------------------------------------------


def test_copies_and_pickles_keep_the_pattern():
    model = applied(llama())
    assert_follows(copy.deepcopy(model))
    assert_follows(pickle.loads(pickle.dumps(model)))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert_follows(loaded)
    prulong.remove(loaded)
    assert_follows(loaded, None)
    assert loaded.model.config is loaded.config
    assert_follows(model)


def work(queue, model):
    with torch.no_grad():
        queue.put(model(IDS).logits.tolist())


def test_a_spawned_process():
    context = torch.multiprocessing.get_context("spawn")
    queue, model = context.Queue(), applied(llama())
    process = context.Process(target=work, args=(queue, model))
    process.start()
    logits = torch.tensor(queue.get(timeout=300))
    process.join()
    torch.testing.assert_close(logits, masked_reference(llama(), MIXED, IDS), rtol=1e-5, atol=1e-5)


def test_a_file_in_a_fresh_process(tmp_path):
    """Reading the file is enough: what it names imports the package, and registers the attention function."""
    torch.save(applied(llama()), tmp_path / "model.pt")
    torch.save(IDS, tmp_path / "ids.pt")
    code = (
        "import sys, torch; folder = sys.argv[1]\n"
        "model = torch.load(folder + '/model.pt', weights_only=False); ids = torch.load(folder + '/ids.pt')\n"
        "with torch.no_grad(): torch.save(model(ids).logits, folder + '/logits.pt')"
    )
    path = os.pathsep.join([str(Path(prulong.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env=os.environ | {"PYTHONPATH": path})
    logits = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(logits, masked_reference(llama(), MIXED, IDS), rtol=1e-5, atol=1e-5)


def test_saved_weights_and_config_know_nothing_of_the_pattern(tmp_path):
    model = applied(llama())
    assert model.state_dict().keys() == llama().state_dict().keys()
    model.save_pretrained(tmp_path)
    model.model.save_pretrained(tmp_path / "inner")
    assert "prulong" not in (tmp_path / "config.json").read_text() + (tmp_path / "inner/config.json").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_follows(loaded, None)
    assert_follows(applied(loaded))


# --- configs ----------------------------------------------------------------------------------------------------------


def test_models_from_the_config_of_a_model_with_a_pattern(tmp_path):
    first = applied(llama())
    for config in (first.config, copy.deepcopy(first.config), copy.deepcopy(first.model.config)):
        second = LlamaForCausalLM(config).eval()
        second.load_state_dict(llama().state_dict())
        assert_follows(second, None)
        assert_follows(applied(second, LOCAL), LOCAL)
        assert_follows(first)
        prulong.remove(second)
        assert_follows(second, None)
    third = AutoModelForCausalLM.from_pretrained(saved(tmp_path), config=first.config)
    assert_follows(third, None)
    assert_follows(applied(third))
    assert_follows(first)


def test_a_model_of_the_inner_config_itself_says_what_to_do():
    """The one config that carries the attention's name: no model of it computes anything before it has a pattern."""
    second = LlamaForCausalLM(applied(llama()).model.config).eval()
    second.load_state_dict(llama().state_dict())
    with torch.no_grad(), pytest.raises(ValueError, match="no pattern: call prulong.apply"):
        second(IDS)
    assert_follows(applied(second))
    prulong.remove(second)
    assert_follows(second, None)


def test_many_models_in_one_process():
    config = llama_config()
    models = [LlamaForCausalLM(config).eval() for _ in range(3)]
    for model, pattern in zip(models, (MIXED, LOCAL, GLOBAL)):
        model.load_state_dict(llama().state_dict())
        prulong.apply(model, pattern)
    for model, pattern in zip(models, (MIXED, LOCAL, GLOBAL)):
        assert_follows(model, pattern)
    prulong.remove(models[1])
    prulong.remove(models[1])
    assert_follows(models[0], MIXED)
    assert_follows(models[1], None)


def test_applied_inside_removed_outside_and_the_other_way_round():
    model = llama()
    before = configs(model)
    for outer, inner in ((model, model.model), (model.model, model)):
        prulong.apply(outer, MIXED)
        prulong.apply(inner, LOCAL)
        assert_follows(model, LOCAL)
        prulong.remove(inner)
        assert_follows(model, None)
        assert all(a is b for a, b in zip(configs(model), before))


def test_other_things_than_a_model_are_refused():
    model = llama()
    with pytest.raises(ValueError, match="not the transformers model that calls them"):
        prulong.apply(model.model.layers, MIXED)
    prulong.apply(model, MIXED)
    with pytest.raises(ValueError, match="call prulong.remove with the whole model"):
        prulong.remove(model.model.layers)
    assert_follows(model)
    with pytest.raises(TypeError, match="pattern: expected a prulong.Pattern, found str: read one with"):
        prulong.apply(model, "pattern.json")
    for call in (lambda: prulong.apply(MIXED, model), lambda: prulong.remove(model.config)):
        with pytest.raises(TypeError, match="model: expected a transformers model"):
            call()
    mamba = transformers.MambaModel(transformers.MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=8))
    with pytest.raises(ValueError, match="MambaConfig tells no layers and heads of attention"):
        prulong.apply(mamba, MIXED)
    with pytest.raises(ValueError, match="holds 2 models that the pattern fits"):
        prulong.apply(torch.nn.ModuleList([llama(), llama()]), MIXED)


def test_another_attention_is_for_afterwards():
    """A pattern stays until it is removed; what was set meanwhile comes then."""
    model = applied(llama())
    with pytest.warns(UserWarning, match="the pattern of this model stays in force, attention 'sdpa' comes after"):
        model.model.config._attn_implementation = "sdpa"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # only newer versions of transformers reach the inner config
        model.set_attn_implementation("eager")
    assert_follows(model)
    prulong.remove(model)
    assert model.config._attn_implementation == "eager" and model.model.config is model.config


# --- models around models ---------------------------------------------------------------------------------------------


class Wrapper(torch.nn.Module):
    """As PEFT's: the model is within, its attributes are found on the wrapper too."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)


def test_wrappers():
    model = Wrapper(llama())
    assert_follows(applied(model))
    prulong.remove(model)
    assert_follows(model, None)
    with pytest.raises(ValueError, match="layers 3 in the pattern, 2 in the model"):
        prulong.apply(Wrapper(LlamaForCausalLM(llama_config(num_hidden_layers=2))), MIXED)


def test_a_replica_of_data_parallel():
    model = applied(llama())
    attention = model.model.layers[0].self_attn
    replica = attention._replicate_for_data_parallel()
    assert replica.prulong_is_global.tolist() == [True, False] and replica.config is attention.config


def llava(**changes):
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = llama_config(**changes)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=VOCABULARY - 1, vision_feature_layer=-1
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


def test_a_model_with_a_vision_tower():
    """Only the language model's layers change, and images come through."""
    model, image = llava(), torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    ids = IDS.where(IDS != VOCABULARY - 1, 1)
    ids[0, 2:6] = VOCABULARY - 1  # the patches of the image
    plain, before = copy.deepcopy(model), configs(model)
    prulong.apply(model, MIXED)
    holders = [module for module in model.modules() if "config" in module.__dict__]
    changed = {type(module).__name__ for module, config in zip(holders, before) if module.config is not config}
    assert changed == {"LlamaModel", "LlamaAttention"}
    again = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        expected = masked_reference(plain, MIXED, ids, pixel_values=image)
        torch.testing.assert_close(model(ids, pixel_values=image).logits, expected, rtol=1e-5, atol=1e-5)
        own = plain(ids, pixel_values=image).logits
        assert (own - expected).abs().max() > 1e-3  # or the test shows nothing
        out = model.generate(ids, pixel_values=image, attention_mask=torch.ones_like(ids), max_new_tokens=3)
        assert out.shape == (1, 43)
        torch.testing.assert_close(again(ids, pixel_values=image).logits, expected, rtol=1e-5, atol=1e-5)
        second = transformers.LlavaForConditionalGeneration(copy.deepcopy(model.config))
        prulong.apply(second, LOCAL)
        prulong.remove(model)
        assert torch.equal(model(ids, pixel_values=image).logits, own)
    assert all(a is b for a, b in zip(configs(model), before))
    with pytest.raises(ValueError, match="layers 3 in the pattern, 1 in the model"):
        prulong.apply(llava(num_hidden_layers=1), MIXED)


# --- code that runs them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["before", "after"])
def test_torch_compile(order):
    torch._dynamo.reset()
    model = llama()
    if order == "before":
        compiled = torch.compile(applied(model), backend="eager")
    else:
        compiled = torch.compile(model, backend="eager")
        assert_follows(compiled, None)
        prulong.apply(compiled, MIXED)
    assert_follows(compiled)
    prulong.remove(compiled)
    assert_follows(compiled, None)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_training_with_checkpointed_layers_is_refused():
    model = applied(llama()).train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="no gradients"):
        model(IDS, labels=IDS).loss.backward()


def test_bare_models():
    model = LlamaModel(llama_config()).eval()
    model.load_state_dict(llama().model.state_dict())
    prulong.apply(model, pattern_of([[1, 0], [0, 0], [0, 1]]))
    full = llama()
    full.model = model
    assert_follows(full)
