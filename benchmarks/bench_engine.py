#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prompts and decoding of Llama-3.1-8B's shape on one GPU: the engine with and without a mask, beside transformers.

Random bfloat16 weights. Ours: prulong_bench_engine with every KV head global and with 70 % local (sink 128, window 1,024), the
same layers and kernels as the engine's; batch 0 is the largest that fits. transformers: DynamicCache with SDPA, and under
prulong.apply with the same mask; its prompts run in chunks of 8,192 tokens too. Decode steps are medians. Writes JSON after
each case, and the ratios at the end.

Usage: benchmarks/bench_engine.py [--lengths 32768 131072] [--bin build/cuda/bin] [--out docs/bench/engine_gpu.json]
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import bench_record
from bench_generate import cache_argument
from bench_train import run

ROOT = bench_record.ROOT
sys.path.insert(0, str(ROOT / "python_bindings"))
SINK, WINDOW, CHUNK = 128, 1024, 8192
LLAMA_8B = dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                num_key_value_heads=8, head_dim=128, max_position_embeddings=131072 + 4096, rms_norm_eps=1e-5)


def transformers_side(local: float, lengths: list[int], batch: int, steps: int, layers: int) -> None:
    """One JSON line per length: a prompt, the faster one of two counts, then decoding."""
    import torch
    import transformers

    import prulong

    torch.manual_seed(1)
    shape = LLAMA_8B | ({"num_hidden_layers": layers} if layers else {})
    config = transformers.LlamaConfig(**shape, rope_theta=500000.0, attn_implementation="sdpa")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cuda").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config, device="cuda")
    if local > 0:
        heads = shape["num_hidden_layers"] * 8
        scores = [[float((8 * layer + head) * 97 % heads) for head in range(8)] for layer in range(shape["num_hidden_layers"])]
        prulong.apply(model, prulong.Pattern.from_scores(prulong.ModelShape("llama", shape["num_hidden_layers"], 8, 32, 128),
                                                         scores, local, SINK, WINDOW))
    name = cache_argument(model)

    def forward(ids, cache):
        with torch.no_grad():
            return model(input_ids=ids, use_cache=True, logits_to_keep=1, **{name: cache}).logits[:, -1].argmax(-1, True)

    for length in lengths:
        # With the ordinary cache one prompt is computed and repeated; forks of ours would share pages.
        prompts = batch if local > 0 else 1
        prompt = torch.randint(config.vocab_size, (prompts, length), device="cuda")
        seconds = []
        for _ in range(2 if batch == 1 else 1):
            cache = prulong.Cache(model) if local > 0 else transformers.DynamicCache(config=config)
            torch.cuda.synchronize()
            start = time.perf_counter()
            for i in range(0, length, CHUNK):
                following = forward(prompt[:, i : i + CHUNK], cache)
            following.cpu()
            seconds.append(time.perf_counter() - start)
        if prompts < batch:
            cache.batch_repeat_interleave(batch)
            following = following.repeat(batch, 1)
        times = []
        for _ in range(steps + 2):
            start = time.perf_counter()
            following = forward(following, cache)
            following.cpu()
            times.append(time.perf_counter() - start)
        held = cache.bytes()["peak"] if local > 0 else sum(x.keys.nbytes + x.values.nbytes for x in cache.layers)
        step = statistics.median(times[2:])
        print(json.dumps({"tokens": length, "batch": batch, "local": local, "prompt_s": min(seconds), "all_prompt_s": seconds,
                          "prompt_tokens_per_s": prompts * length / min(seconds), "decode_step_s": step,
                          "decode_tokens_per_s": batch / step, "kv_bytes": held,
                          "peak_allocated_gib": torch.cuda.max_memory_allocated() / 2**30}), flush=True)
        del cache


def ratios(rows: list[dict]) -> dict:
    found = {}

    def row(side, local, tokens, batch):
        wanted = {"side": side, "local": local, "tokens": tokens, "batch": batch}
        return next((r for r in rows if wanted.items() <= r.items() and "error" not in r), None)

    def add(name, ours, peer, figure):
        if ours and peer:
            found[name] = ours[figure] / peer[figure]

    for tokens in sorted({r["tokens"] for r in rows if "tokens" in r}):
        for batch in (1, 4):
            masked, full = row("engine", 0.7, tokens, batch), row("engine", 0.0, tokens, batch)
            add(f"decode_{tokens}_x{batch}_70_local_of_engine", masked, full, "decode_tokens_per_s")
            add(f"decode_{tokens}_x{batch}_70_local_of_transformers", masked, row("transformers", 0.0, tokens, batch),
                "decode_tokens_per_s")
            add(f"decode_{tokens}_x{batch}_engine_of_transformers", full, row("transformers", 0.0, tokens, batch),
                "decode_tokens_per_s")
            add(f"decode_{tokens}_x{batch}_apply_70_local_of_transformers", row("transformers", 0.7, tokens, batch),
                row("transformers", 0.0, tokens, batch), "decode_tokens_per_s")
            if batch == 1:
                add(f"prompt_{tokens}_70_local_of_engine", masked, full, "prompt_tokens_per_s")
                add(f"prompt_{tokens}_engine_of_transformers", full, row("transformers", 0.0, tokens, 1), "prompt_tokens_per_s")
                add(f"fitting_batch_{tokens}_70_local_of_engine", masked, full, "fitting_batch")
                if masked:
                    found[f"kv_bytes_{tokens}_70_local_of_full"] = masked["kv_bytes_of_full"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32768, 131072])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 0], help="0: as many as fit")
    parser.add_argument("--sides", nargs="+", choices=("engine", "transformers"), default=["engine", "transformers"])
    parser.add_argument("--layers", type=int, default=0, help="0: the model's")
    parser.add_argument("--kv-gib", type=float, default=112, help="memory for the engine's keys and values")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--limit", type=int, default=150, help="seconds a case may take")
    parser.add_argument("--bin", type=Path, default=ROOT / "build" / "cuda" / "bin")
    parser.add_argument("--out", type=bench_record.output, default=ROOT / "docs" / "bench" / "engine_gpu.json")
    parser.add_argument("--transformers", nargs="+", help=argparse.SUPPRESS)  # LOCAL BATCH LENGTH...: this process is that side
    a = parser.parse_args()
    if a.transformers:
        local, batch, *lengths = a.transformers
        transformers_side(float(local), [int(length) for length in lengths], int(batch), a.steps, a.layers)
        return 0
    rows = []

    def add(side, results):
        for result in results:
            rows.append({"side": side, **result})
            print(json.dumps(rows[-1]), flush=True)
        bench_record.write(a.out, {"sink": SINK, "window": WINDOW, "chunk": CHUNK, "ratios": ratios(rows), "rows": rows})

    if "engine" in a.sides:
        program = bench_record.built(a.bin, "prulong_bench_engine")
        for length in a.lengths:
            for batch in a.batches:
                for local in (0.0, 0.7):
                    prompts = 2 if batch == 1 else 1
                    command = [program, "--tokens", length, "--batch", batch, "--local", local, "--sink", SINK, "--window", WINDOW,
                               "--chunk", CHUNK, "--kv-gib", a.kv_gib, "--new", a.steps, "--prompts", prompts,
                               "--layers", a.layers]
                    add("engine", run(f"engine {length} x {batch}, local {local}", command, a.limit))
    if "transformers" in a.sides:
        for local in (0.0, 0.7):
            for batch in (1, 4):
                command = [sys.executable, "benchmarks/bench_engine.py", "--layers", a.layers, "--steps", a.steps,
                           "--transformers", local, batch, *(a.lengths if batch == 1 else a.lengths[-1:])]
                add("transformers", run(f"transformers x {batch}, local {local}", command, 2 * a.limit))
    print(json.dumps(ratios(rows), indent=1))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
