# SPDX-License-Identifier: MIT
"""paged_attention: a row's result is its own. Bit for bit on a CPU, however it is computed; and what is not a number
reaches those rows alone that see it."""

import math

import pytest
import torch

import prulong  # noqa: F401  (loads the operators)
from prulong.ops import paged_attention
from test_paged import Cache, bounds_of, device, make_cache, queries, run  # noqa: F401  (device: a fixture)

SINK, WINDOW, PAGE = 20, 33, 16
FLAGS = [True, False, False]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def part_of(q, cache, rows, sequence, begin, end, sink=SINK, window=WINDOW):
    """Rows [begin, end) of a sequence alone, as they are computed before the later ones are appended."""
    start, n = sum(rows[:sequence]), rows[sequence]
    one = slice(sequence, sequence + 1)
    earlier = Cache(cache.k_pages, cache.v_pages, cache.table[one], cache.lengths[one] - (n - end), [], [])
    return run(q[start + begin : start + end], earlier, FLAGS, [end - begin], sink, window)


def joined(parts):
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts], 1)


def assert_same(a, b):
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_the_same_in_any_split(dtype):
    rows, lengths = [50, 1, 33], [[200, 77, 50], [9, 130, 1], [64, 40, 190]]
    cache = make_cache(lengths, 80, PAGE, dtype)
    q = queries(rows, 9, 80, dtype)
    whole = run(q, cache, FLAGS, rows, SINK, WINDOW)
    for chunk in (1, 7, 16, 49, 50):
        parts = [
            part_of(q, cache, rows, b, begin, min(begin + chunk, n))
            for b, n in enumerate(rows)
            for begin in range(0, n, chunk)
        ]
        assert_same(joined(parts), whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_the_same_in_any_batch(dtype):
    rows, lengths = [50, 1, 33], [[200, 77, 50], [9, 130, 1], [64, 40, 190]]
    cache = make_cache(lengths, 40, PAGE, dtype)
    q = queries(rows, 6, 40, dtype)
    parts = q.split(rows)
    whole = [x for x in zip(*(y.split(rows, d) for d, y in enumerate(run(q, cache, FLAGS, rows, SINK, WINDOW))))]
    for order in ([2, 1, 0], [1], [0, 0, 2, 1, 1, 2], [1] * 40, [2] * 9 + [0]):
        batch = Cache(cache.k_pages, cache.v_pages, cache.table[order], cache.lengths[order], [], [])
        got = run(torch.cat([parts[b] for b in order]), batch, FLAGS, [rows[b] for b in order], SINK, WINDOW)
        assert_same(got, joined([whole[b] for b in order]))


@pytest.mark.parametrize("rows", [[1], [1, 1, 1], [2], [300], [1, 200, 1], [3, 0, 1, 90]], ids=str)
def test_rows_are_the_same_with_any_number_of_threads(rows, threads):
    lengths = [[n + 1500 * (n > 0) - 700 * h * (n > 0) for h in range(3)] for n in rows]
    cache = make_cache(lengths, 64, PAGE, torch.float32)
    q = queries(rows, 6, 64, torch.float32)
    for flags in (FLAGS, [True] * 3):
        threads(1)
        whole = run(q, cache, flags, rows, SINK, WINDOW)
        for count in (2, 3, 5):
            threads(count)
            assert_same(run(q, cache, flags, rows, SINK, WINDOW), whole)


@pytest.mark.parametrize("sink", [0, 1, PAGE, SINK, 1000])
def test_rows_are_the_same_with_pages_dropped_and_renumbered(sink):
    """Local heads without the whole pages that no query sees any more (engine/kv_cache.h)."""
    rows, lengths = [5, 40], [[300, 200, 131], [90, 400, 41]]
    cache = make_cache(lengths, 24, PAGE, torch.float32)
    q = queries(rows, 6, 24, torch.float32)
    whole = run(q, cache, FLAGS, rows, sink, WINDOW)

    order = torch.randperm(len(cache.k_pages), generator=torch.Generator().manual_seed(3))
    table, fresh = torch.full_like(cache.table, -1), cache.lengths.clone()
    dropped = 0
    for b, n in enumerate(rows):
        for h, is_global in enumerate(FLAGS):
            length = lengths[b][h]
            pages = cache.table[b, h, : -(-length // PAGE)].tolist()
            if not is_global:
                near = max(0, length - n - WINDOW + 1) // PAGE
                kept = pages[: min(-(-sink // PAGE), near)]
                fresh[b, h] -= PAGE * (near - len(kept))
                dropped += near - len(kept)
                pages = kept + pages[near:]
            table[b, h, : len(pages)] = order.argsort()[pages].to(torch.int32)
    assert dropped > 0 or sink == 1000
    moved = Cache(cache.k_pages[order], cache.v_pages[order], table, fresh, [], [])
    assert_same(run(q, moved, FLAGS, rows, sink, WINDOW), whole)


def test_uninitialised_memory_is_never_read(device):  # noqa: F811
    """With every new tensor full of NaN, nothing may change."""
    rows, lengths = [40, 1], [[70, 40], [1, 300]]
    for dtype in (torch.float32, torch.bfloat16):
        cache = make_cache(lengths, 20, PAGE, dtype)
        q = queries(rows, 4, 20, dtype)
        clean = run(q, cache, [True, False], rows, 5, 20, device=device)
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.empty(3).isnan().all()
            assert_same(run(q, cache, [True, False], rows, 5, 20, device=device), clean)
        finally:
            torch.use_deterministic_algorithms(False)


def planted(cache, pool, sequence, head, entry, value):
    """The cache with one entry of a list replaced."""
    pages = [cache.k_pages.clone(), cache.v_pages.clone()]
    pages[pool][cache.table[sequence, head, entry // PAGE], entry % PAGE] = value
    return Cache(*pages, cache.table, cache.lengths, [], [])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("page", [16, 64])
def test_what_is_no_number_reaches_only_rows_that_see_it(dtype, value, page):
    """On a CPU. A stored key or value, even in a page that other rows see."""
    rows, length = 45, 120
    for sink, window in ((0, 1), (5, 9), (20, 33)):
        cache = make_cache([[length, length]], 20, page, dtype, seed=window)
        q = queries([rows], 2, 20, dtype)
        out, lse = run(q, cache, [True, False], [rows], sink, window)
        place = torch.arange(length - rows, length)
        for entry in (0, 4, 13, 63, 75, 76, 90, 100, 118, 119):
            for pool in (0, 1):
                for head in (0, 1):
                    pages = [cache.k_pages.clone(), cache.v_pages.clone()]
                    pages[pool][cache.table[0, head, entry // page], entry % page] = value
                    bad = Cache(*pages, cache.table, cache.lengths, [], [])
                    got, got_lse = run(q, bad, [True, False], [rows], sink, window)
                    seen = place >= entry
                    if head == 1:
                        seen &= (entry < sink) | (place - entry < window)
                    assert torch.equal(got[:, 1 - head], out[:, 1 - head])
                    assert torch.equal(got[~seen], out[~seen]) and torch.equal(got_lse[:, ~seen], lse[:, ~seen])
                    if pool == 1:
                        assert not got[seen, head].isfinite().any()
                        assert torch.equal(got_lse, lse)
                    elif math.isnan(value):
                        assert got[seen, head].isnan().all() and got_lse[head, seen].isnan().all()


@pytest.mark.parametrize("window", [1, 5, 100])
def test_scores_of_minus_infinity(window):
    """Weigh nothing; where there is no other, no softmax exists."""
    cache = make_cache([[40]], 8, PAGE, torch.float32)
    q = torch.ones(40, 1, 8)
    want = run(q, cache, [False], [40], 0, window)
    for last in (39, 12, 0):
        bad = cache
        for entry in range(last + 1):
            bad = planted(bad, 0, 0, 0, entry, -math.inf)
        # The same caches without weight: keys so small that their weights vanish.
        small = cache
        for entry in range(last + 1):
            small = planted(small, 0, 0, 0, entry, -1e4)
        out, lse = run(q, bad, [False], [40], 0, window)
        nothing = torch.arange(40) <= last
        assert out[nothing].isnan().all() and (lse[:, nothing] == -math.inf).all()
        same, same_lse = run(q, small, [False], [40], 0, window)
        assert_same((out[~nothing], lse[:, ~nothing]), (same[~nothing], same_lse[:, ~nothing]))
        apart = torch.arange(40) >= last + window
        assert torch.equal(out[apart], want[0][apart])


def test_nothing_is_kept_for_a_backward():
    cache = make_cache([[9]], 8, 4, torch.float32)
    q = queries([3], 2, 8, torch.float32)
    with torch.no_grad():
        want = run(q, cache, [True], [3], 1, 2)
    out, _ = paged_attention(q, *cache.tensors, torch.tensor([True]), bounds_of([3]), 3, sink=1, window=2)
    assert not out.requires_grad and torch.equal(out, want[0])
