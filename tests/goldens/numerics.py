# SPDX-License-Identifier: MIT
"""Goldens of the operators on the CPU, and of SmolLM2-135M-Instruct with and without a pattern."""

import itertools
import os
import random
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from build import ROOT, Build, Failure
from store import sha256_of

SHAPES = 50
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HEAD_DIMS = (16, 64, 80, 128)
HEADS = ((1, 1), (4, 1), (4, 2), (6, 2), (3, 3), (8, 1), (8, 2), (5, 1))  # query heads, key heads
SINKS = (0, 4, 1, 16, 100)
WINDOWS = (1, 33, 128, 1 << 30, 7, 300)
ENDS = ((0.0, 1.0), (0.3, 0.0, 1.0, 1e-6), (1.0,), (0.0,), (0.2, 0.9, 0.5))  # gates, taken in turn by the key heads


def _bounds(draw: random.Random) -> list[int]:
    """Of one to five documents, some empty or of one token."""
    lengths = [draw.choice((0, 1, draw.randint(2, 90), draw.randint(90, 400))) for _ in range(draw.randint(1, 5))]
    return list(itertools.accumulate([draw.randint(40, 330), *lengths], initial=0))


def _case(number: int) -> tuple[str, dict]:
    draw = random.Random(2026 + number)
    dtype, head_dim = DTYPES[number % 4], HEAD_DIMS[(number // 4 + number) % 4]
    query_heads, key_heads = HEADS[number % 8 if number < 8 else draw.randrange(8)]
    sink, window = SINKS[number % 5], WINDOWS[draw.randrange(6)]
    bounds, ends = _bounds(draw), ENDS[draw.randrange(5)]
    generator = torch.Generator().manual_seed(number)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    tokens = bounds[-1]
    if number % 3 == 0:  # views of one tensor, as a fused projection gives them
        fused = normal(tokens, query_heads + 2 * key_heads, head_dim)
        q, k, v = fused.split([query_heads, key_heads, key_heads], 1)
    else:
        q, k, v = (normal(tokens, heads, head_dim) for heads in (query_heads, key_heads, key_heads))
    gate = torch.tensor([ends[head % len(ends)] for head in range(key_heads)],
                        dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    lengths = map(int.__sub__, bounds[1:], bounds)
    queries = [draw.choice((0, 1, length // 2, length)) if length else 0 for length in lengths]
    is_global = torch.tensor([draw.random() < 0.5 for _ in range(key_heads)])
    name = (f"{number}: {str(dtype)[6:]} {query_heads}/{key_heads}x{head_dim} {bounds} sink {sink} window {window} "
            f"gates {gate.tolist() if dtype == torch.float64 else [round(z, 6) for z in gate.tolist()]}")
    return name, dict(q=q, k=k, v=v, gate=gate, dout=normal(tokens, query_heads, head_dim), bounds=bounds, sink=sink,
                      window=window, queries=queries, is_global=is_global)


def _operators(case: dict) -> dict:
    q, k, v, gate, bounds = (case[key] for key in ("q", "k", "v", "gate", "bounds"))
    longest = max(map(int.__sub__, bounds[1:], bounds))
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    common = (case["sink"], case["window"], q.shape[-1] ** -0.5)
    inputs = [tensor.detach().requires_grad_() for tensor in (q, k, v, gate)]
    out = torch.ops.prulong.gated_attention(*inputs, cu_seqlens, longest, *common)
    names = ("dq", "dk", "dv", "dgate")
    found = {"out": out.detach(), **dict(zip(names, torch.autograd.grad(out, inputs, case["dout"])))}
    alone = gate.detach().clone().requires_grad_()
    out = torch.ops.prulong.gated_attention(q, k, v, alone, cu_seqlens, longest, *common)
    (found["dgate_alone"],) = torch.autograd.grad(out, alone, case["dout"])

    ends = torch.tensor(list(itertools.accumulate(case["queries"], initial=0)), dtype=torch.int32)
    rows = torch.cat([torch.arange(end - length, end) for end, length in zip(bounds[1:], case["queries"])])
    for name, queries, cu in (("", q, cu_seqlens), ("_last", q[rows], ends)):
        arguments = (queries, k, v, case["is_global"], cu, cu_seqlens, longest, longest, *common)
        found["masked" + name], found["lse" + name] = torch.ops.prulong.masked_attention(*arguments)
    return found


def record_operators(build: Build, add) -> None:
    torch.ops.load_library(str(build.operators))
    threads = torch.get_num_threads()
    for number in range(SHAPES):
        name, case = _case(number)
        add(name, inputs={key: case[key] for key in ("q", "k", "v", "gate", "dout")}, **_operators(case))
        if number % 5 == 0:
            torch.set_num_threads(2)
            add(f"{name}, two threads", **_operators(case))
            torch.set_num_threads(threads)


def record_smollm2(build: Build, add) -> None:
    folder = ROOT / "models" / "SmolLM2-135M-Instruct"
    if not folder.is_dir():
        raise Failure(f"{folder}: no such folder; fetch it with scripts/fetch_smollm2.py")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer((ROOT / "assets" / "prose" / "eval.txt").read_text()[:4000]).input_ids[:200]
    documents = [ids[:120], ids[120:121], ids[121:]]
    torch.manual_seed(3)
    gates = torch.rand(30, 3)
    mask = gates < 0.4
    for dtype in ("float32", "bfloat16"):
        for name, values in (("gates", gates), ("mask", mask.float())):
            found = build.logits(f"smollm2/{dtype}-{name}", str(folder), dtype, documents, values, 16, 64)
            found["saved_model"] = sha256_of(found["saved_model"])
            if name == "mask":
                del found["logits"], found["greedy"]  # computed without gates: as before
            add(f"{dtype} {name}", ids=torch.tensor(ids), **found)

    os.environ["PRULONG_OPS_LIBRARY"] = str(build.operators)
    sys.path.insert(0, str(ROOT / "python_bindings"))
    import prulong

    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        shape = prulong.ModelShape.of(model.config)
        pattern = prulong.Pattern.from_scores(shape, gates.tolist(), 0.6, 16, 64)
        prulong.apply(model, pattern)
        with torch.no_grad():
            whole = model(torch.tensor([ids]), use_cache=True)
            chunks, cache = [], None
            for start, end in ((0, 90), (90, 91), (91, 200)):
                step = model(torch.tensor([ids[start:end]]), past_key_values=cache, use_cache=True)
                chunks.append(step.logits[0])
                cache = step.past_key_values
            written = model.generate(torch.tensor([ids[:100]]), max_new_tokens=24, do_sample=False)
        add(f"transformers {str(dtype)[6:]}", logits=whole.logits[0], chunked=torch.cat(chunks),
            written=written[0].tolist())
