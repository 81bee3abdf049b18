// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "csrc/hopper/device/platform.h"
#include "csrc/hopper/schedule.h"

namespace prulong::kernels {

/// Writes the schedule's plan on the device, in stream order.
cudaError_t launch_plan(const Schedule& schedule, cudaStream_t stream);

/// Writes the plan of a schedule in host memory, for tests.
void plan_on_host(const Schedule& schedule);

namespace detail {

/// Key blocks that make a piece of a cut tile worth its prologue, its partial result and the merge.
constexpr int kMinPieceBlocks = 16;
/// Shares of the work of a multiprocessor, each about a piece: enough of them to end together.
constexpr int kShares = 3;

/// Longest piece, in key blocks, for tiles of `shortest` to `longest` blocks, of which a multiprocessor gets `each`
/// blocks in all. Taken longest first, tiles of all lengths share out well, unless one alone takes longest.
PRULONG_HOST_DEVICE int longest_piece(int shortest, int longest, int64_t each) {
  if (longest <= each && int64_t{shortest} * kShares <= each) return longest;
  const int64_t share = each / kShares + 1;
  return share < kMinPieceBlocks ? kMinPieceBlocks : share > longest ? longest : static_cast<int>(share);
}

/// Keys of a document: of a paged batch the longest list, of its global heads if there are any.
PRULONG_HOST_DEVICE int key_length(const Batch& batch, int document) {
  if (!batch.is_paged()) return batch.k_bounds[document + 1] - batch.k_bounds[document];
  int longest_global = 0, longest = 0;
  for (int h = 0; h < batch.kv_heads; ++h) {
    const int length = batch.paged.lengths[document * batch.kv_heads + h];
    longest = greater(longest, length);
    if (batch.is_global[h]) longest_global = greater(longest_global, length);
  }
  return longest_global > 0 ? longest_global : longest;
}

/// The tile in a place of a list that has a place for every tile of every document, and some empty ones; false if it is
/// empty. Document d's places start at bounds[d] / rows + d: that leaves enough for each, and no counting is needed.
PRULONG_HOST_DEVICE bool tile_in(const Batch& batch, const int* bounds, int rows, int place, Tile* tile) {
  int low = 0, high = batch.documents;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (bounds[middle] / rows + middle <= place ? low : high) = middle;
  }
  const int q = batch.q_bounds[low], k = batch.is_paged() ? 0 : batch.k_bounds[low];
  tile->document = {q, batch.q_bounds[low + 1] - q, k, key_length(batch, low), low};
  tile->first = (place - bounds[low] / rows - low) * rows;
  tile->piece = 0;
  tile->pieces = 1;
  tile->slot = -1;
  return tile->first < bounds[low + 1] - bounds[low];
}

/// Key blocks up to the last row of a query tile.
PRULONG_HOST_DEVICE int query_cost(const Tile& tile, int rows) {
  const int end = lesser(tile.first + rows, tile.document.q_length);
  return divide_up(tile.document.first_position() + end, kKeyBlock);
}

/// Blocks of queries from a key block on, itself included.
PRULONG_HOST_DEVICE int key_cost(const Tile& tile) { return divide_up(tile.document.k_length - tile.first, kKeyBlock); }

/// Sorts what `visit(place, emit)` emits as (tile, cost) for all places, by descending cost <= max_cost, in linear
/// time. Returns how many there are.
template <class Crew, class Visit>
PRULONG_DEVICE int sort_tiles(Crew& crew, int* buckets, int max_cost, int places, Visit visit, Tile* sorted) {
  for (int b = crew.rank(); b < max_cost; b += crew.size()) buckets[b] = 0;
  crew.sync();
  for (int p = crew.rank(); p < places; p += crew.size()) {
    visit(p, [&](const Tile&, int cost) { crew.add(&buckets[max_cost - cost], 1); });
  }
  crew.sync();
  // Exclusive prefix sum: every member its own segment of the buckets.
  const int segment = divide_up(max_cost, crew.size());
  const int begin = lesser(crew.rank() * segment, max_cost), end = lesser(begin + segment, max_cost);
  int own = 0;
  for (int b = begin; b < end; ++b) own += buckets[b];
  int64_t total = 0;
  int before = static_cast<int>(crew.sum_before(own, &total));
  for (int b = begin; b < end; ++b) {
    const int count = buckets[b];
    buckets[b] = before;
    before += count;
  }
  crew.sync();
  for (int p = crew.rank(); p < places; p += crew.size()) {
    visit(p, [&](const Tile& tile, int cost) { sorted[crew.add(&buckets[max_cost - cost], 1)] = tile; });
  }
  crew.sync();
  return static_cast<int>(total);
}

/// Lists the heads by kind and counts them.
template <class Crew>
PRULONG_DEVICE void plan_heads(const Schedule& schedule, Crew& crew) {
  const Batch& batch = schedule.batch;
  const int heads = batch.kv_heads;
  for (int h = crew.rank(); h < heads; h += crew.size()) {
    int local = 0, local_before = 0, global_before = 0;
    for (int other = 0; other < heads; ++other) {
      const HeadKind kind = head_kind(batch, other);
      local += kind == HeadKind::kLocal;
      local_before += kind == HeadKind::kLocal && other < h;
      global_before += kind == HeadKind::kGlobal && other < h;
    }
    const HeadKind kind = head_kind(batch, h);
    const int long_place = h - local_before, fractional_before = long_place - global_before;
    if (kind != HeadKind::kLocal) schedule.heads[long_place] = h;
    if (kind == HeadKind::kLocal) schedule.heads[heads + local_before] = h;
    if (kind == HeadKind::kFractional) schedule.heads[heads + local + fractional_before] = h;
    if (h == heads - 1) {
      schedule.state->local_heads = local;
      schedule.state->long_heads = heads - local;
      schedule.state->short_heads = heads - global_before - (kind == HeadKind::kGlobal);
    }
  }
}

/// Do the bounds rise from 0 to the number of tokens, with at least as many keys as queries in each document?
template <class Crew>
PRULONG_DEVICE void check_bounds(const Schedule& schedule, Crew& crew) {
  const Batch& batch = schedule.batch;
  const int* q = batch.q_bounds;
  const int* k = batch.is_paged() ? q : batch.k_bounds;
  const int k_tokens = batch.is_paged() ? batch.q_tokens : batch.k_tokens;
  const int last = batch.documents;
  for (int d = crew.rank(); d <= last; d += crew.size()) {
    bool good = true;
    if (d == 0) good = q[0] == 0 && k[0] == 0;
    if (d == last) good = good && q[last] == batch.q_tokens && k[last] == k_tokens;
    // Differences that could overflow are compared as 64-bit numbers.
    if (d < last) {
      const int64_t queries = static_cast<int64_t>(q[d + 1]) - q[d], keys = static_cast<int64_t>(k[d + 1]) - k[d];
      good = good && queries >= 0 && keys >= queries;
    }
    if (!good) schedule.state->invalid = 1;
  }
}

/// Has every list of a paged batch, whose bounds are good, as many entries as queries at least, and all its pages?
template <class Crew>
PRULONG_DEVICE void check_lists(const Schedule& schedule, Crew& crew) {
  const Batch& batch = schedule.batch;
  const PagedKeys& paged = batch.paged;
  const int64_t places = int64_t{batch.documents} * batch.kv_heads * paged.table_pages;
  for (int64_t p = crew.rank(); p < places; p += crew.size()) {
    const int list = static_cast<int>(p / paged.table_pages), block = static_cast<int>(p % paged.table_pages);
    const int document = list / batch.kv_heads, length = paged.lengths[list];
    const int queries = batch.q_bounds[document + 1] - batch.q_bounds[document];
    if (queries == 0) continue;
    if (!paged.fits(length, queries)) schedule.state->invalid = 1;
    if (block < length / kKeyBlock + (length % kKeyBlock > 0) && !paged.in_pool(paged.page_table[p])) {
      schedule.state->invalid = 1;
    }
  }
}

/// The plan, by a crew of threads that share memory. Crew: rank(), size(); sync(); add(int*, int), atomic, returns what
/// was there; sum_before(value, int64_t* total), the sum over members of lower rank, and over all.
template <class Crew>
PRULONG_DEVICE void make_plan(const Schedule& schedule, Crew& crew) {
  const Batch& batch = schedule.batch;
  ScheduleState* state = schedule.state;
  if (crew.rank() == 0) *state = {};
  crew.sync();
  check_bounds(schedule, crew);
  crew.sync();
  if (batch.is_paged() && state->invalid == 0) check_lists(schedule, crew);
  crew.sync();
  if (state->invalid != 0) return;  // all counts are 0
  plan_heads(schedule, crew);
  if (batch.documents == 0) return;

  const int rows = schedule.query_rows;
  const int max_cost = divide_up(batch.k_tokens, kKeyBlock);
  const int q_places = batch.q_tokens / rows + batch.documents;
  const auto visit_queries = [&](int place, auto emit) {
    Tile tile;
    if (tile_in(batch, batch.q_bounds, rows, place, &tile)) emit(tile, query_cost(tile, rows));
  };
  const int tiles = sort_tiles(crew, schedule.buckets, max_cost, q_places, visit_queries, schedule.query_tiles);
  if (crew.rank() == 0) state->query_tiles = state->long_tiles = tiles;

  if (schedule.processors > 0 && state->long_heads > 0 && tiles > 0) {
    int64_t own = 0, work = 0;
    for (int t = crew.rank(); t < tiles; t += crew.size()) own += query_cost(schedule.query_tiles[t], rows);
    crew.sum_before(own, &work);
    const int longest =
        longest_piece(query_cost(schedule.query_tiles[tiles - 1], rows), query_cost(schedule.query_tiles[0], rows),
                      work * state->long_heads * batch.group() / schedule.processors);
    crew.sync();
    // Slots are given once, before the sort visits every tile twice.
    for (int t = crew.rank(); t < tiles; t += crew.size()) {
      Tile& tile = schedule.query_tiles[t];
      const int pieces = divide_up(query_cost(tile, rows), longest);
      if (pieces > 1) {
        tile.pieces = pieces;
        tile.slot = crew.add(&state->slots, pieces);
      }
    }
    crew.sync();
    const auto visit_pieces = [&](int t, auto emit) {
      Tile tile = schedule.query_tiles[t];
      const int cost = query_cost(tile, rows), first_slot = tile.slot;
      for (int piece = 0; piece < tile.pieces; ++piece) {
        tile.piece = piece;
        if (first_slot >= 0) tile.slot = first_slot + piece;
        emit(tile, divide_up(cost, tile.pieces));
      }
    };
    const int pieces = sort_tiles(crew, schedule.buckets, max_cost, tiles, visit_pieces, schedule.long_tiles);
    if (crew.rank() == 0) state->long_tiles = pieces;
    for (int t = crew.rank(); t < tiles; t += crew.size()) {
      schedule.query_tiles[t].pieces = 1;
      schedule.query_tiles[t].slot = -1;
    }
  }

  if (schedule.key_tiles != nullptr) {
    const auto visit_keys = [&](int place, auto emit) {
      Tile tile;
      if (tile_in(batch, batch.k_bounds, kKeyBlock, place, &tile)) emit(tile, key_cost(tile));
    };
    const int k_places = batch.k_tokens / kKeyBlock + batch.documents;
    const int blocks = sort_tiles(crew, schedule.buckets, max_cost, k_places, visit_keys, schedule.key_tiles);
    if (crew.rank() == 0) state->key_tiles = blocks;
  }
}

}  // namespace detail
}  // namespace prulong::kernels
