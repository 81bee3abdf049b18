# SPDX-License-Identifier: MIT
"""The benchmark's masks for FlexAttention are our masks; a peer that is not installed is left out and named; its picture is
drawn. (Its times need a GPU.)"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import bench_attention as bench  # noqa: E402


def visible(queries: int, keys: int, local: bool) -> torch.Tensor:
    i = torch.arange(keys - queries, keys)[:, None]
    j = torch.arange(keys)[None, :]
    near = (j < bench.SINK) | (i - j < bench.WINDOW)
    return (j <= i) & near if local else j <= i


def by_block(mask: torch.Tensor) -> torch.Tensor:
    blocks = [n // bench.BLOCK for n in mask.shape]
    return mask.view(blocks[0], bench.BLOCK, blocks[1], bench.BLOCK).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("queries, keys", [(2048, 2048), (256, 2048), (128, 128)])
def test_block_kinds(queries, keys, local, monkeypatch):
    for sink, window in ((128, 1024), (4, 100), (0, 1), (200, 513)):
        monkeypatch.setattr(bench, "SINK", sink)
        monkeypatch.setattr(bench, "WINDOW", window)
        blocks = by_block(visible(queries, keys, local))
        some, every = bench.block_kinds(queries, keys, local, "cpu")
        assert torch.equal(every, blocks.all(-1))
        assert torch.equal(some, blocks.any(-1) & ~blocks.all(-1))


def test_head_mask_has_each_heads_blocks():
    flags = torch.tensor([True, False])
    mask = bench.head_mask(flags, 2, 512, 2048, backward=True)
    q, k = torch.meshgrid(torch.arange(512), torch.arange(2048), indexing="ij")
    for head in range(4):
        expected = visible(512, 2048, local=not flags[head // 2])
        assert torch.equal(mask.mask_mod(0, head, q, k), expected)
        assert torch.equal(mask.to_dense()[0, head].bool(), by_block(expected).any(-1))


def test_streaming_is_block_granular():
    some, every = bench.streaming_kinds(2048, "cpu")
    seen = some | every
    assert seen[15].nonzero().flatten().tolist() == [0, *range(8, 16)]
    assert some.nonzero().tolist() == [[n, n] for n in range(16)]


@pytest.mark.parametrize("as_tuple", [False, True])
def test_flash_attention_4_is_a_peer_where_installed(as_tuple, monkeypatch):
    def attention(q, k, v, causal):
        assert causal and q.shape == (1, 8, 4, 16) and k.shape == v.shape == (1, 8, 2, 16)
        return (q * 2, None) if as_tuple else q * 2

    monkeypatch.setattr(bench, "flash_attention_4", attention)
    q, kv = torch.randn(8, 4, 16), torch.randn(8, 2, 16)
    assert torch.equal(bench.flash_4(q, kv, kv)[0], q * 2)
    assert bench.peers_left_out() == []
    assert list(bench.flex_names().values()) == [False, True]


def test_flash_attention_4_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr(bench, "flash_attention_4", None)
    assert bench.peers_left_out() == ["FlashAttention 4"]
    assert bench.flex_names() == {"FlexAttention, 70 % local": False}


def test_picture(tmp_path):
    shape = {"tokens": 4096, "head_dim": 128}
    rows = [{"section": "causal", "name": "ours", **shape, "forward_ms": 1.5, "backward_ms": 3.0},
            {"section": "causal", "name": "SDPA flash", **shape, "error": "none"},
            {"section": "chunk", "name": "ours", "queries": 8, "keys": 16, "head_dim": 128, "forward_ms": 2.0}]
    bench.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
