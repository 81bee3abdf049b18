# SPDX-License-Identifier: MIT
"""append_kv: what it writes. Both operators over pages: what they refuse, and how they work inside torch."""

import math

import pytest
import torch

import prulong  # noqa: F401  (loads the operators)
from prulong.ops import append_kv, paged_attention
from test_paged import bounds_of, device, make_cache, queries  # noqa: F401  (device: a fixture)

OPS = torch.ops.prulong
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NOT_A_NUMBER = dict(rtol=0, atol=0, equal_nan=True)


def new_rows(cache, rows, dtype):
    """The last entries of each list as append_kv takes them, and the pages without them."""
    k, v = (
        torch.cat([torch.stack([x[len(x) - n :] for x in heads], 1) for n, heads in zip(rows, whole)]).to(dtype)
        for whole in (cache.k, cache.v)
    )
    before = [cache.k_pages.clone(), cache.v_pages.clone()]
    page = before[0].shape[1]
    for b, n in enumerate(rows):
        for h, length in enumerate(cache.lengths[b].tolist()):
            for e in range(length - n, length):
                for pool in before:
                    pool[cache.table[b, h, e // page], e % page] = math.nan
    return k, v, before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "rows,lengths,head_dim,page",
    [
        ([1], [[1]], 1, 1),
        ([5, 0, 1], [[5, 9, 30], [0, 3, 8], [16, 17, 1]], 17, 16),
        ([40, 1], [[40, 99], [64, 65]], 64, 32),
        ([0, 0], [[3, 3], [0, 0]], 8, 4),
        ([700], [[700, 1000]], 8, 128),
    ],
    ids=str,
)
def test_append_writes_the_rows_and_nothing_else(rows, lengths, head_dim, page, dtype, device):  # noqa: F811
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("float64 is CPU only")
    cache = make_cache(lengths, head_dim, page, dtype)
    k, v, before = new_rows(cache, rows, dtype)
    pages = [x.to(device) for x in before]
    # Behind what is used of the table lie numbers of no page, before what is written they may as well be stale.
    table = cache.table.clone()
    for b, n in enumerate(rows):
        for h, length in enumerate(lengths[b]):
            table[b, h, : (length - n) // page] = 10**9
    lists = [x.to(device) for x in (table, cache.lengths, bounds_of(rows))]
    assert append_kv(k.to(device), v.to(device), *pages, *lists) is None
    for got, want in zip(pages, (cache.k_pages, cache.v_pages)):
        torch.testing.assert_close(got.cpu(), want, **NOT_A_NUMBER)


def test_append_reads_strided_rows(device):  # noqa: F811
    rows, lengths = [9, 3], [[12, 40], [3, 8]]
    cache = make_cache(lengths, 16, 8, torch.float32)
    k, v, before = new_rows(cache, rows, torch.float32)
    fused = torch.randn(24, 7, 16).to(device)
    fused[::2, 1:3], fused[::2, 3::3] = k.to(device), v.to(device)
    pages = [x.to(device) for x in before]
    apart = lambda x: x.to(device).repeat_interleave(2, -1)[..., ::2]  # noqa: E731
    append_kv(fused[::2, 1:3], fused[::2, 3::3], *pages, *map(apart, (cache.table, cache.lengths, bounds_of(rows))))
    for got, want in zip(pages, (cache.k_pages, cache.v_pages)):
        torch.testing.assert_close(got.cpu(), want, **NOT_A_NUMBER)


def arguments(device="cpu", dtype=torch.float32):
    """Of both operators by name: two sequences of two key heads, 3 and 1 new rows."""
    rows, lengths = [3, 1], [[11, 5], [8, 1]]
    cache = make_cache(lengths, 8, 4, dtype)
    k, v, before = new_rows(cache, rows, dtype)
    named = dict(
        q=queries(rows, 4, 8, dtype), k=k, v=v, k_pages=before[0], v_pages=before[1], table=cache.table,
        lengths=cache.lengths, is_global=torch.tensor([True, False]), cu=bounds_of(rows),
    )  # fmt: skip
    named = {name: x.to(device) for name, x in named.items()}
    return dict(named, longest=3, sink=1, window=2, scale=0.3)


def of_append(a):
    return [a[x] for x in ("k", "v", "k_pages", "v_pages", "table", "lengths", "cu")]


def of_attention(a):
    names = ("q", "k_pages", "v_pages", "table", "lengths", "is_global", "cu", "longest", "sink", "window", "scale")
    return [a[x] for x in names]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype, device):  # noqa: F811
    a = arguments(device, dtype)
    pages = a["k_pages"].nan_to_num(), a["v_pages"].nan_to_num()
    a.update(k_pages=pages[0], v_pages=pages[1])
    torch.library.opcheck(OPS.append_kv.default, of_append(a))
    torch.library.opcheck(OPS.paged_attention.default, of_attention(a))
    a.update(k=a["k"].requires_grad_(), v=a["v"].requires_grad_())
    torch.library.opcheck(OPS.append_kv.default, of_append(a))


def step(q, k, v, k_pages, v_pages, table, lengths, is_global, cu):
    append_kv(k * 2, v + 1, k_pages, v_pages, table, lengths, cu)
    out, lse = paged_attention(q, k_pages, v_pages, table, lengths, is_global, cu, 3, sink=1, window=2)
    return out.sin(), lse


def of_step(device):
    a = arguments(device)
    return [a[x] for x in ("q", "k", "v", "k_pages", "v_pages", "table", "lengths", "is_global", "cu")]


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile(device, dynamic):  # noqa: F811
    want_of, got_of = of_step(device), of_step(device)
    want = step(*want_of)
    got = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)(*got_of)
    for a, b in zip([*got, *got_of], [*want, *want_of]):
        torch.testing.assert_close(a, b, **NOT_A_NUMBER)


def test_inference_mode_and_autocast(device):  # noqa: F811
    """Autocast leaves all as it is: the pages have the dtype."""
    want_of = of_step(device)
    want = step(*want_of)
    contexts = [torch.inference_mode(), torch.autocast(device, torch.bfloat16), torch.no_grad()]
    for context in contexts:
        with context:
            got_of = of_step(device)
            got = step(*got_of)
            assert got[0].dtype == torch.float32
            for a, b in zip([*got, *got_of], [*want, *want_of]):
                torch.testing.assert_close(a, b, **NOT_A_NUMBER)


def test_shapes_without_data():
    a = arguments("meta", torch.bfloat16)
    out, lse = OPS.paged_attention(*of_attention(a))
    assert out.shape == (4, 4, 8) and out.dtype == torch.bfloat16
    assert lse.shape == (4, 4) and lse.dtype == torch.float32
    assert OPS.append_kv(*of_append(a)) is None


def test_what_is_not_read_is_not_checked():
    """Lists of sequences without new rows, and table entries past a list."""
    a = arguments()
    OPS.append_kv(*of_append(a))
    want = OPS.paged_attention(*of_attention(a))
    a["table"] = torch.cat([a["table"], torch.full((1, 2, a["table"].shape[2]), -9, dtype=torch.int32)])
    a["lengths"] = torch.cat([a["lengths"], torch.tensor([[-5, 10**9]], dtype=torch.int32)])
    a["cu"] = torch.tensor([0, 3, 4, 4], dtype=torch.int32)
    OPS.append_kv(*of_append(a))
    for x, y in zip(OPS.paged_attention(*of_attention(a)), want):
        assert torch.equal(x, y)


def changed(name, index, value):
    """The arguments with one number of a list replaced."""
    tensor = arguments()[name].clone()
    tensor[index] = value
    return {name: tensor}


def shared_rejections():
    """(name, change to the arguments of both operators, message)"""
    z = torch.zeros
    i32 = dict(dtype=torch.int32)
    a = arguments()
    pages = a["k_pages"].shape
    most = a["table"].shape[2] * 4
    wide = z(pages[0], 4, 16)[..., ::2]
    yield "k_pages dims", dict(k_pages=z(5, 8)), r"k_pages must be \[pages, page, head_dim\], got shape \[5, 8\]"
    yield "v_pages dims", dict(v_pages=z(5)), r"v_pages must be \[pages, page, head_dim\], got shape \[5\]"
    yield "no entries", dict(k_pages=z(5, 0, 8)), "k_pages must have at least one entry per page"
    yield "k_pages head_dim", dict(k_pages=z(5, 4, 7)), "k_pages must have .'s head_dim 8, got 7"
    yield "v_pages head_dim", dict(v_pages=z(5, 4, 9)), "v_pages must have .'s head_dim 8, got 9"
    yield "k_pages dtype", dict(k_pages=a["k_pages"].half()), "k_pages must have .'s dtype Float, got Half"
    yield "v_pages dtype", dict(v_pages=a["v_pages"].double()), "v_pages must have .'s dtype Float, got Double"
    yield "v_pages device", dict(v_pages=a["v_pages"].to("meta")), "v_pages must be on .'s device cpu, got meta"
    yield "k_pages strides", dict(k_pages=wide), r"k_pages must be dense, got layout Strided and strides \[64, 16, 2\]"
    yield "v_pages strides", dict(v_pages=z(4, 8, 8).transpose(0, 1)), "v_pages must be dense|v_pages must have k_pages"
    yield "v_pages shape", dict(v_pages=z(pages[0], 5, 8)), "v_pages must have k_pages' shape"
    yield "v_pages count", dict(v_pages=z(pages[0] - 1, 4, 8)), "v_pages must have k_pages' shape"
    yield "cu dims", dict(cu=z(2, 2, **i32)), r"cu_seqlens_q must be \[documents \+ 1\], got shape \[2, 2\]"
    yield "cu none", dict(cu=z(0, **i32)), r"cu_seqlens_q must be \[documents \+ 1\], got shape \[0\]"
    yield "cu dtype", dict(cu=a["cu"].long()), "cu_seqlens_q must be int32, got Long"
    yield "cu device", dict(cu=a["cu"].to("meta")), "cu_seqlens_q must be on .'s device cpu, got meta"
    yield "cu start", changed("cu", 0, 1), "cu_seqlens_q must start at 0, got 1"
    yield "cu end", changed("cu", 2, 5), "cu_seqlens_q must end at the number of tokens, 4, got 5"
    yield "cu order", dict(changed("cu", 1, 5), longest=5), "cu_seqlens_q must not decrease, got 5 then 4 for document 1"
    yield "cu negative", changed("cu", 1, -1), "cu_seqlens_q must not decrease, got 0 then -1 for document 0"
    yield "table dims", dict(table=z(2, 2, **i32)), r"page_table must be \[sequences, key heads, pages\], got shape"
    yield "table sequences", dict(table=z(3, 2, 3, **i32)), "as many sequences as cu_seqlens_q, 2, got 3"
    yield "table heads", dict(table=z(2, 0, 3, **i32)), "page_table must have at least one key head"
    yield "table dtype", dict(table=a["table"].long()), "page_table must be int32, got Long"
    yield "table device", dict(table=a["table"].to("meta")), "page_table must be on .'s device cpu, got meta"
    yield "lengths shape", dict(lengths=z(2, **i32)), r"lengths must be \[sequences, key heads\] as page_table, \[2, 2\]"
    yield "lengths heads", dict(lengths=z(2, 3, **i32)), r"as page_table, \[2, 2\], got \[2, 3\]"
    yield "lengths dtype", dict(lengths=a["lengths"].long()), "lengths must be int32, got Long"
    yield "lengths device", dict(lengths=a["lengths"].to("meta")), "lengths must be on .'s device cpu, got meta"
    yield (
        "length past the table", changed("lengths", (1, 1), most + 1),
        f"at most the entries that page_table has room for, {most}, got {most + 1} for sequence 1, key head 1",
    )  # fmt: skip
    yield "length too large", changed("lengths", (0, 0), 2**31 - 1), f"room for, {most}, got 2147483647 for sequence 0"
    yield (
        "length below rows", changed("lengths", (0, 1), 2),
        "lengths must count the new rows of a sequence, 3, got 2 for sequence 0, key head 1",
    )  # fmt: skip
    yield "length negative", changed("lengths", (1, 0), -4), "must count the new rows of a sequence, 1, got -4"
    in_pool = rf"page_table must name pages in \[0, {pages[0]}\), got "
    yield "page negative", changed("table", (1, 1, 0), -1), in_pool + "-1 for sequence 1, key head 1, page 0"
    yield "page too large", changed("table", (0, 0, 2), pages[0]), in_pool + f"{pages[0]} for sequence 0, key head 0"
    yield "no pages", dict(k_pages=z(0, 4, 8), v_pages=z(0, 4, 8)), r"page_table must name pages in \[0, 0\), got"


def append_rejections():
    z = torch.zeros
    yield "k dims", dict(k=z(4, 8)), r"k must be \[tokens, heads, head_dim\], got shape \[4, 8\]"
    yield "v dims", dict(v=z(4, 8)), r"v must be \[tokens, heads, head_dim\], got shape \[4, 8\]"
    yield "k dtype", dict(k=z(4, 2, 8, dtype=torch.int32)), "k must be float32, bfloat16, float16 or float64, got Int"
    yield "k no head_dim", dict(k=z(4, 2, 0)), "k must have at least one head and head_dim >= 1"
    yield "k strides", dict(k=z(4, 8, 2).mT), "k must be contiguous in its last dimension, got strides"
    yield "v strides", dict(v=z(4, 8, 2).mT), "v must be contiguous in its last dimension, got strides"
    yield "v dtype", dict(v=z(4, 2, 8).half()), "v must have k's dtype Float, got Half"
    yield "v device", dict(v=z(4, 2, 8, device="meta")), "v must be on k's device cpu, got meta"
    yield "v tokens", dict(v=z(3, 2, 8)), r"v must have k's shape \[4, 2, 8\], got \[3, 2, 8\]"
    yield "v heads", dict(v=z(4, 1, 8)), r"v must have k's shape \[4, 2, 8\], got \[4, 1, 8\]"
    yield "k heads", dict(k=z(4, 3, 8), v=z(4, 3, 8)), "page_table must have k's heads, 3, got 2"
    yield "tokens", dict(k=z(5, 2, 8), v=z(5, 2, 8)), "cu_seqlens_q must end at the number of tokens, 5, got 4"


def attention_rejections():
    z = torch.zeros
    flags = torch.tensor([True, False])
    yield "q dims", dict(q=z(4, 8)), r"q must be \[tokens, heads, head_dim\], got shape \[4, 8\]"
    yield "q dtype", dict(q=z(4, 4, 8, dtype=torch.int32)), "q must be float32, bfloat16, float16 or float64, got Int"
    yield "q other dtype", dict(q=z(4, 4, 8).half()), "k_pages must have q's dtype Half, got Float"
    yield "q strides", dict(q=z(4, 8, 4).mT), "q must be contiguous in its last dimension, got strides"
    yield "q heads", dict(q=z(4, 3, 8)), "q's heads must be a multiple of page_table's, got 3 query heads and 2 key"
    yield "q fewer heads", dict(q=z(4, 1, 8)), "q's heads must be a multiple of page_table's, got 1 query heads and 2"
    yield "q tokens", dict(q=z(5, 4, 8)), "cu_seqlens_q must end at the number of tokens, 5, got 4"
    yield "kinds", dict(is_global=torch.zeros(4, dtype=torch.bool)), r"one value per key head, shape \[2\], got \[4\]"
    yield "kinds dtype", dict(is_global=z(2)), "is_global must be Bool for Float inputs, got Float"
    yield "kinds device", dict(is_global=flags.to("meta")), "is_global must be on q's device cpu, got meta"
    yield "longest", dict(longest=2), "max_seqlen_q must be at least the longest document's length, got 2 but document 0"
    yield "sink", dict(sink=-1), "sink must be >= 0, got -1"
    yield "window", dict(window=0), r"window must be >= 1 \(it includes the query itself\), got 0"
    yield "scale", dict(scale=math.inf), "scale must be finite, got inf"
    yield "stale page", changed("table", (0, 0, 0), -3), r"page_table must name pages in \[0, .*\), got -3 for sequence 0"


def cases(*lists):
    return dict(argnames="change,message", argvalues=[r[1:] for r in lists], ids=[r[0] for r in lists])


def refused(op, args, message):
    with pytest.raises(RuntimeError, match=message) as raised:
        op(*args)
    assert "\n" not in str(raised.value).strip()


@pytest.mark.parametrize(**cases(*shared_rejections(), *append_rejections()))
def test_append_refuses_and_writes_nothing(change, message):
    a = {**arguments(), **change}
    before = a["k_pages"].clone(), a["v_pages"].clone()
    refused(OPS.append_kv, of_append(a), "append_kv: .*(" + message + ")")
    for name, pages in zip(("k_pages", "v_pages"), before):
        if a[name].device.type == "cpu":
            torch.testing.assert_close(a[name], pages, **NOT_A_NUMBER)


@pytest.mark.parametrize(**cases(*shared_rejections(), *attention_rejections()))
def test_attention_refuses(change, message):
    refused(OPS.paged_attention, of_attention({**arguments(), **change}), "paged_attention: .*(" + message + ")")


def test_a_default_scale_needs_a_head_dim():
    a = arguments()
    for shape in ((), (4, 4, 0)):
        with pytest.raises(RuntimeError, match="paged_attention: q must "):
            paged_attention(torch.zeros(shape), *of_attention(a)[1:8], sink=1, window=2)
