# SPDX-License-Identifier: MIT
"""The decode benchmark's caches hold what their masks need, and its contestants read the same keys. (Its times need a GPU.)"""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import prulong  # noqa: F401  (loads the operators)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import bench_decode as bench  # noqa: E402


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(bench, "DEVICE", "cpu")
    torch.manual_seed(0)


def test_local_lists_keep_what_new_tokens_see():
    for tokens in (1, 8):
        for length in (8, 129, 1000, 1152, 1153, 1280, 4000, 4096, 131072):
            kept = bench.Cache.kept(length, tokens)
            missing = length - kept
            first_seen = length - tokens - bench.WINDOW + 1  # by the first of the new tokens
            assert missing % bench.PAGE == 0 and (missing == 0 or bench.SINK + missing <= first_seen)
            assert kept <= bench.SINK + bench.WINDOW + tokens + bench.PAGE


@pytest.mark.parametrize("lengths, tokens", [([300, 300], 1), ([300, 77, 1500], 1), ([200, 1400], 3)])
def test_contestants_read_the_same_keys(lengths, tokens):
    for is_global in (bench.ALL_GLOBAL, bench.SIX_LOCAL):
        cache = bench.Cache(lengths, is_global, tokens)
        q = torch.randn(tokens * len(lengths), bench.HEADS, bench.DIM).bfloat16()
        run, read = bench.ours(cache, q)
        ours = read(run())
        k, _ = cache.packed()
        assert len(k) == sum(map(sum, cache.lists)) and k.isfinite().all()
        assert cache.bytes() <= k.nbytes * 2
        if len(set(lengths)) == 1 and is_global == bench.ALL_GLOBAL:
            keys, values = cache.dense()
            plain = F.scaled_dot_product_attention(q[:, :, None].float(), keys.float(), values.float(), enable_gqa=True)
            assert bench.error(ours, plain[:, :, 0]) < 1e-2
            assert len(bench.contestants(lengths, tokens)) == 6
        else:
            assert ours.shape == q.shape and ours.isfinite().all()
