// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>

#include "csrc/hopper/paged.h"
#include "csrc/tile.h"

/// The work items of the attention kernels and their order. A small kernel (schedule_plan.h) writes the plan on the
/// device from the gates and the documents' bounds, so that the host waits for nothing; the functions here turn an
/// item's index into its work. Persistent CTAs take indices from a counter; all grids have one CTA per multiprocessor,
/// whatever the data, so a CUDA graph replays them.
///
/// Order of query items: heads that look at all keys or at the complement, in sections of KV heads whose keys and
/// values fit in the L2 cache together; within a section the longest tiles of all documents first, and the query heads
/// of a KV head side by side. Then the local items, short ones that fill the tail. Key items alike: blocks with the
/// most queries after them first, so that a block never comes before one further left in its document and head.
///
/// Of a paged batch (Batch::paged) every KV head has its own number of keys; tiles are planned for the longest list of
/// a sequence, of its global heads if there are any, and query_item() gives the steps of the item's own head.
///
/// Data that cannot be refused without waiting for the device: if bounds do not rise from 0 to the number of tokens, or
/// a document has more queries than keys, more keys than its table has places for or a page outside the pool, there are
/// no items and `invalid` is set (combine.h then fills outputs with NaN). Gates outside [0, 1], NaN among them, count
/// as fractional, and combine.h turns their heads' outputs into NaN.
namespace prulong::kernels {

/// What is known on the host of a batch of documents, and where the rest lies on the device.
struct Batch {
  int documents, q_tokens, k_tokens;
  int query_heads, kv_heads;  // query_heads a multiple of kv_heads
  int head_dim;
  Locality locality;
  const int* q_bounds;    // [documents + 1]
  const int* k_bounds;    // [documents + 1], the same array for as many queries as keys
  const float* gate;      // [kv_heads]; null: is_global counts
  const bool* is_global;  // [kv_heads]
  /// Keys in pages; without a page table they are packed. Of a paged batch k_tokens are the entries that a table has
  /// places for, and there are no k_bounds.
  PagedKeys paged = {};

  PRULONG_HOST_DEVICE bool is_paged() const { return paged.page_table != nullptr; }
  PRULONG_HOST_DEVICE int group() const { return query_heads / kv_heads; }
};

PRULONG_HOST_DEVICE HeadKind head_kind(const Batch& batch, int kv_head) {
  return head_kind(batch.gate != nullptr ? batch.gate[kv_head] : batch.is_global[kv_head] ? 1.0f : 0.0f);
}

/// Some rows of a document: a query tile or a key block, or one of the pieces into which a query tile's key blocks are
/// split.
struct Tile {
  DocumentRows document;
  int first;          // first row, of the document's queries or keys
  int piece, pieces;  // 0 of 1: not split
  int slot;           // of this piece's partial result among those of a query head; -1: not split
};

/// What the plan counts. All on the device.
struct ScheduleState {
  int invalid;                               // 1: the batch's data are wrong; nothing to do
  int long_heads, short_heads, local_heads;  // KV heads with gate > 0, with gate < 1, with gate == 0
  int query_tiles, long_tiles, key_tiles;
  int slots;                 // partial results per query head of a long head
  int next_query, next_key;  // counters from which CTAs take the next item; 0 after the plan
};

struct Schedule {
  Batch batch;
  int query_rows;  // of a query tile
  int q_section;   // KV heads in a section of query items
  int k_section;   // KV heads in a section of key items
  int processors;  // see ScheduleOptions
  // Written by the plan.
  ScheduleState* state;
  int* heads;         // [kv_heads] with gate > 0, then [kv_heads] with gate < 1: those with gate == 0 first
  Tile* query_tiles;  // longest first, uncut
  Tile* long_tiles;   // what items of long heads do: query_tiles itself, or a list of cut tiles
  Tile* key_tiles;    // null: no key items
  int* buckets;       // scratch of the plan
};

namespace detail {
PRULONG_HOST_DEVICE int divide_up(int a, int b) { return (a + b - 1) / b; }

/// One of equal shares of `count` things; the first ones take what is left over.
PRULONG_HOST_DEVICE Range share_of(int count, int share, int shares) {
  const int each = count / shares, left = count - each * shares;
  const int begin = share * each + lesser(share, left);
  return {begin, begin + each + (share < left ? 1 : 0)};
}

/// One item among heads x members x tiles.
struct Place {
  int head, member, tile;
};
/// Sections of `section` heads; in each, tile by tile, all heads and their members.
PRULONG_HOST_DEVICE Place place_of(int index, int heads, int section, int members, int tiles) {
  const int n = index / (section * members * tiles);
  const int here = lesser(section, heads - n * section);
  const int in_section = index - n * section * members * tiles;
  const int tile = in_section / (here * members);
  const int in_tile = in_section - tile * here * members;
  const int head = in_tile / members;
  return {n * section + head, in_tile - head * members, tile};
}
}  // namespace detail

/// Number of items of the forward kernels.
PRULONG_HOST_DEVICE int query_item_count(const Schedule& schedule) {
  const ScheduleState& state = *schedule.state;
  return schedule.batch.group() * (state.long_heads * state.long_tiles + state.short_heads * state.query_tiles);
}

/// kPaged: of a paged batch, whose heads have lists of their own lengths.
template <bool kPaged = false>
PRULONG_HOST_DEVICE QueryItem query_item(const Schedule& schedule, int index) {
  const ScheduleState& state = *schedule.state;
  const Batch& batch = schedule.batch;
  const int group = batch.group();
  const int long_items = group * state.long_heads * state.long_tiles;
  const bool is_long = index < long_items;
  const detail::Place place =
      is_long ? detail::place_of(index, state.long_heads, schedule.q_section, group, state.long_tiles)
              : detail::place_of(index - long_items, state.short_heads, state.short_heads, group, state.query_tiles);
  const Tile& tile = (is_long ? schedule.long_tiles : schedule.query_tiles)[place.tile];
  QueryItem item;
  item.kv_head = schedule.heads[is_long ? place.head : batch.kv_heads + place.head];
  item.query_head = item.kv_head * group + place.member;
  item.branch = !is_long                                                  ? Branch::kLocal
                : head_kind(batch, item.kv_head) == HeadKind::kFractional ? Branch::kComplement
                                                                          : Branch::kGlobal;
  item.document = tile.document;
  if (kPaged) item.document.k_length = batch.paged.lengths[item.document.index * batch.kv_heads + item.kv_head];
  item.rows = {tile.first, detail::lesser(tile.first + schedule.query_rows, tile.document.q_length)};
  const int first = item.document.first_position();
  const int steps = key_blocks(item.branch, batch.locality, {first + item.rows.begin, first + item.rows.end}).size();
  item.steps = detail::share_of(steps, tile.piece, tile.pieces);
  item.partial = tile.slot < 0 ? -1 : (tile.slot * state.long_heads + place.head) * group + place.member;
  return item;
}

/// Number of items of the backward kernel.
PRULONG_HOST_DEVICE int key_item_count(const Schedule& schedule) {
  const ScheduleState& state = *schedule.state;
  return (state.long_heads + state.local_heads) * state.key_tiles;
}

PRULONG_HOST_DEVICE KeyItem key_item(const Schedule& schedule, int index) {
  const ScheduleState& state = *schedule.state;
  const Batch& batch = schedule.batch;
  const int long_items = state.long_heads * state.key_tiles;
  const bool is_long = index < long_items;
  const detail::Place place =
      is_long ? detail::place_of(index, state.long_heads, schedule.k_section, 1, state.key_tiles)
              : detail::place_of(index - long_items, state.local_heads, state.local_heads, 1, state.key_tiles);
  const Tile& tile = schedule.key_tiles[place.tile];
  KeyItem item;
  item.kv_head = schedule.heads[is_long ? place.head : batch.kv_heads + place.head];
  item.fractional = head_kind(batch, item.kv_head) == HeadKind::kFractional;
  item.branch = is_long ? Branch::kGlobal : Branch::kLocal;
  item.document = tile.document;
  item.keys = {tile.first, detail::lesser(tile.first + kKeyBlock, tile.document.k_length)};
  return item;
}

/// How to plan.
struct ScheduleOptions {
  int query_rows = 128;    // of a query tile
  bool with_keys = false;  // key items too
  /// Multiprocessors among which the work of the long heads is to be shared evenly: where there are too few tiles for
  /// that, tiles are cut into items that leave partial results. 0: no tile is cut.
  int processors = 0;
};

/// Bytes of the memory in which a plan is written.
size_t schedule_bytes(const Batch& batch, const ScheduleOptions& options);

/// A schedule whose plan will lie in `memory`, schedule_bytes() on the device, aligned to 16. The plan must be made
/// (schedule_plan.h) before anything reads it.
Schedule make_schedule(const Batch& batch, const ScheduleOptions& options, void* memory);

/// Most partial results there can be: QueryItem::partial is less.
int partial_capacity(const Schedule& schedule);

}  // namespace prulong::kernels
