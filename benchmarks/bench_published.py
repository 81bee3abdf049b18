#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""One masks training step the published way, on today's PyTorch and transformers, timed on one GPU or on a CPU.

As PruLong's trainer does it (arXiv 2506.17121): the model frozen, every head computes full and streaming attention, a
sampled hard-concrete gate per KV head mixes them, each layer is computed again in the backward pass, logits exist 2,048
tokens at a time. Full attention by scaled_dot_product_attention (flash: FlashAttention-2; cudnn), streaming by compiled
FlexAttention over 128-token blocks (the first, and 8 up to the query's own). Random weights, made on the device. Prints one
JSON line per case and writes them all to --out.

On a CPU FlexAttention has no gradients: there streaming attention is token-exact (--sink, --window), a stretch of queries
after the other by scaled_dot_product_attention with only the keys they may see. benchmarks/bench_train_step.py runs that.

Usage: benchmarks/bench_published.py --cases flash:32768 cudnn:32768 [--steps 2] [--out FILE]      BACKEND:TOKENS
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import bench_record

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: E402

BLOCK, SINK_BLOCKS, LOCAL_BLOCKS = 128, 1, 8
LOGITS_AT_A_TIME = 2048
STRETCH = 128  # queries of one streaming call on a CPU
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}
MODELS = {
    "llama-3.1-8b": dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                         num_attention_heads=32, num_key_value_heads=8),
    "small": dict(vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8,
                  num_key_value_heads=2),
}


def sampled_gates(log_alpha: torch.Tensor) -> torch.Tensor:
    """Hard-concrete draws, differentiable in log_alpha."""
    u = torch.rand_like(log_alpha).clamp(1e-6, 1 - 1e-6)
    s = torch.sigmoid((torch.logit(u) + log_alpha) / (2 / 3))
    return (1.2 * s - 0.1).clamp(0, 1)


class WideLinear(torch.autograd.Function):
    """A frozen linear layer in float32 for narrower dtypes: many CPUs multiply bfloat16 in a slow loop."""

    @staticmethod
    def forward(ctx, x, weight, out_dtype):
        ctx.save_for_backward(weight)
        return F.linear(x.float(), weight.float()).to(out_dtype)

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return (grad.float() @ weight.float()).to(weight.dtype), None, None


def widen(model: LlamaForCausalLM) -> None:
    """Computes every linear layer in float32; the logits stay so, as the loss wants them."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            dtype = torch.float32 if name == "lm_head" else module.weight.dtype
            module.forward = lambda x, weight=module.weight, dtype=dtype: WideLinear.apply(x, weight, dtype)


class Streaming:
    """Streaming attention on a CPU, query j to all of the first `sink` and the last `window` keys up to its own."""

    def __init__(self, tokens: int, sink: int, window: int):
        self.sink, self.parts = sink, []  # of each stretch: begin, end, first near key, mask
        for begin in range(0, tokens, STRETCH):
            end = min(begin + STRETCH, tokens)
            near = max(begin - window + 1, sink)
            q = torch.arange(begin, end)[:, None]
            k = torch.cat([torch.arange(min(sink, end)), torch.arange(near, max(near, end))])
            self.parts.append((begin, end, near, (k <= q) & ((k < sink) | (q - k < window))))

    def __call__(self, query, key, value, block_mask, scale, enable_gqa):
        def keys(x, near, end):
            return torch.cat([x[:, :, :self.sink], x[:, :, near:end]], 2) if near > self.sink else x[:, :, :end]
        return torch.cat([F.scaled_dot_product_attention(query[:, :, begin:end], keys(key, near, end),
                                                         keys(value, near, end), attn_mask=mask, scale=scale,
                                                         enable_gqa=enable_gqa)
                          for begin, end, near, mask in self.parts], 2)


class Published:
    """A frozen model whose attention mixes full and streaming attention by self.gates [layers, kv_heads].

    model: a name of MODELS (random weights) or a Hugging Face folder. recompute: each layer in the backward pass, and logits
    in blocks; otherwise everything is kept and all logits exist at once. wide: matrix products and attention in float32.
    """

    def __init__(self, model: str, device: str, dtype=torch.bfloat16, recompute=True, wide=False):
        self.device, self.recompute, self.wide = device, recompute, wide
        ALL_ATTENTION_FUNCTIONS.register("published", self.attention)
        if model in MODELS:
            config = LlamaConfig(**MODELS[model], rope_theta=500000.0, max_position_embeddings=131072, rms_norm_eps=1e-5,
                                 tie_word_embeddings=False, use_cache=False, dtype=dtype)
            config._attn_implementation = "published"
            torch.set_default_dtype(dtype)
            with torch.device(device):
                self.model = LlamaForCausalLM(config)
            torch.set_default_dtype(torch.float32)
        else:
            self.model = LlamaForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="published").to(device)
            self.model.config.use_cache = False
        config = self.model.config
        self.model.requires_grad_(False)
        if recompute:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if wide:
            widen(self.model)
        self.model.train()
        self.log_alpha = torch.full((config.num_hidden_layers, config.num_key_value_heads), 3.0, device=device,
                                    requires_grad=True)
        self.gates = None
        self.backend, self.block_mask = SDPBackend.MATH, None
        self.streaming = torch.compile(flex_attention) if device == "cuda" else None

    def attention(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, **unused):
        dtype = query.dtype
        if self.wide:
            query, key, value = query.float(), key.float(), value.float()
        with sdpa_kernel(self.backend):
            full = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        streaming = self.streaming(query, key, value, block_mask=self.block_mask, scale=scaling, enable_gqa=True)
        group = query.shape[1] // key.shape[1]
        z = self.gates[module.layer_idx].repeat_interleave(group)[None, :, None, None].to(query.dtype)
        return (full * z + streaming * (1 - z)).transpose(1, 2).contiguous().to(dtype), None

    def prepare(self, backend: str, tokens: int, sink: int, window: int) -> None:
        def visible(batch, head, q, k):
            near = (k // BLOCK < SINK_BLOCKS) | (q // BLOCK - k // BLOCK < LOCAL_BLOCKS)
            return (q >= k) & near
        self.backend = BACKENDS[backend]
        if self.device == "cuda":
            self.block_mask = create_block_mask(visible, 1, 1, tokens, tokens, device=self.device, BLOCK_SIZE=BLOCK,
                                                _compile=True)
        else:
            self.streaming = Streaming(tokens, sink, window)

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        self.gates = sampled_gates(self.log_alpha)
        if not self.recompute:
            return self.model(input_ids=ids, labels=ids).loss
        hidden = self.model.model(input_ids=ids).last_hidden_state[0]
        labels = ids[0].roll(-1)

        def part(h, y):
            return F.cross_entropy(self.model.lm_head(h).float(), y, reduction="sum")
        total = 0
        for begin in range(0, len(labels), LOGITS_AT_A_TIME):
            rows = slice(begin, begin + LOGITS_AT_A_TIME)
            total = total + checkpoint(part, hidden[rows], labels[rows], use_reentrant=False)
        return total / len(labels)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed_step(published: Published, ids: torch.Tensor) -> float:
    """Seconds."""
    synchronize(published.device)
    start = time.perf_counter()
    published.loss(ids).backward()
    assert published.log_alpha.grad.isfinite().all()  # waits for the device
    published.log_alpha.grad = None
    synchronize(published.device)
    return time.perf_counter() - start


def measure(published: Published, ids: torch.Tensor, warm_up: int, steps: int) -> dict:
    seconds = []
    for step in range(warm_up + steps):
        if step == warm_up and published.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds.append(timed_step(published, ids))
        print(f"  step {step}: {seconds[-1]:.3f} s", file=sys.stderr, flush=True)
    measured = sorted(seconds[warm_up:])
    median = measured[len(measured) // 2]
    result = {"step_s": median, "fastest_step_s": measured[0], "slowest_step_s": measured[-1],
              "tokens_per_s": ids.numel() / median}
    if published.device == "cuda":
        result["peak_allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
        result["peak_reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    return result


def peak_resident_gib() -> float:
    """Of this process so far."""
    (line,) = (x for x in bench_record.lines_of(Path("/proc/self/status").read_text()) if x.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**20


def on_request(published: Published, ids: torch.Tensor) -> None:
    """A step for every line of standard input, so that another program alternates with this one."""
    for _ in sys.stdin:
        print(json.dumps({"step_s": timed_step(published, ids), "peak_resident_gib": peak_resident_gib()}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["flash:32768", "cudnn:32768", "flash:65536", "cudnn:65536"])
    parser.add_argument("--model", default="llama-3.1-8b", help=f"{', '.join(MODELS)} or a Hugging Face folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--wide", action="store_true", help="matrix products and attention in float32")
    parser.add_argument("--keep", action="store_true", help="activations and all logits, instead of computing layers again")
    parser.add_argument("--sink", type=int, default=128, help="tokens; on a CPU")
    parser.add_argument("--window", type=int, default=1024, help="tokens; on a CPU")
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--on-request", action="store_true", help="one case, a step for each line of standard input")
    parser.add_argument("--out", type=bench_record.output)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    published = Published(arguments.model, arguments.device, getattr(torch, arguments.dtype), not arguments.keep,
                          arguments.wide)

    def prepare(backend: str, tokens: int) -> torch.Tensor:
        published.prepare(backend, tokens, arguments.sink, arguments.window)
        return torch.randint(published.model.config.vocab_size, (1, tokens), device=arguments.device)

    results = []
    for case in arguments.cases:
        backend, tokens = case.split(":")
        row = {"full_attention": backend, "tokens": int(tokens)}
        if arguments.on_request:
            on_request(published, prepare(backend, int(tokens)))
            return 0
        try:
            results.append({**row, **measure(published, prepare(backend, int(tokens)), arguments.warm_up, arguments.steps)})
        except Exception as error:  # the other cases still count
            results.append({**row, "error": bench_record.first_line(error)})
            published.log_alpha.grad = None
            if arguments.device == "cuda":
                torch.cuda.empty_cache()
        print(json.dumps(results[-1]), flush=True)
        if arguments.out:
            bench_record.write(arguments.out, {"results": results})
    return int(any("error" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
