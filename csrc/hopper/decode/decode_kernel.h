// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/decode/decode_consumer.h"
#include "csrc/hopper/decode/decode_loader.h"
#include "csrc/hopper/device/platform.h"
#include "csrc/hopper/poison.h"

/// The decode kernel: softmax(scale Q K^T) V of a few queries over long lists of keys in pages, at the speed of memory.
///
/// As many CTAs as multiprocessors, each with an equal share of all key blocks that must be read. All threads find out
/// where the CTA's share begins; then one warp loads tiles and two warpgroups compute.
namespace prulong::kernels::decode {

/// Where a CTA's share begins.
struct Start {
  bool valid;  // else some sequence's queries are not where they should be
  Row row;
  int list, unit;
};

/// By all threads of the CTA, which share out the lists for this.
template <class Shape>
PRULONG_DEVICE Start find_start(const DecodeArguments& a, Shared memory) {
  struct alignas(8) Pair {
    int first, second;
  };
  const Batch& batch = a.batch;
  const int lists = batch.documents * batch.kv_heads;
  const int each = kernels::detail::divide_up(lists, Shape::kThreads);
  const int first = kernels::detail::lesser(thread_index() * each, lists);
  const int last = kernels::detail::lesser(first + each, lists);
  int own = 0;
  bool good = true;
  for (int n = first; n < last; ++n) {
    good = good && good_sequence(batch, n / batch.kv_heads);
    own += list_at(batch, n).cost();
  }
  int up_to = own;  // of the warp's lanes up to this one
  for (int step = 1; step < kWarpThreads; step *= 2) {
    const int other = shuffle(up_to, kernels::detail::greater(lane_index() - step, 0));
    if (lane_index() >= step) up_to += other;
  }
  const Pair of_warp = {shuffle(up_to, kWarpThreads - 1), any(!good) ? 1 : 0};
  if (lane_index() == 0) store_shared(memory + Shape::kSums + 8 * warp_index(), of_warp);
  sync_cta();
  Start start = {true, {0, block_count()}, 0, 0};
  int before = up_to - own;
  for (int w = 0; w < Shape::kThreads / kWarpThreads; ++w) {
    const Pair sums = load_shared<Pair>(memory + Shape::kSums + 8 * w);
    if (w < warp_index()) before += sums.first;
    start.row.units += sums.first;
    start.valid = start.valid && sums.second == 0;
  }
  if (!start.valid || block_index() >= start.row.shares()) return start;
  const int begin = start.row.begin(block_index());
  if (before <= begin && begin < before + own) {
    int list = first, unit = before;
    for (int cost; unit + (cost = list_at(batch, list).cost()) <= begin; ++list) unit += cost;
    store_shared(memory + Shape::kStart, Pair{list, unit});
  }
  sync_cta();
  const Pair found = load_shared<Pair>(memory + Shape::kStart);
  start.list = found.first;
  start.unit = found.second;
  return start;
}

template <class Shape>
PRULONG_DEVICE void run(const DecodeArguments& a) {
  const Shared memory = shared_memory();
  if (thread_index() == 0) {
    prefetch(a.k);
    prefetch(a.v);
    Barriers<Shape>{memory + Shape::kBarriers}.init();
  }
  const Start start = find_start<Shape>(a, memory);
  if (!start.valid) {
    const int64_t rows = int64_t{a.batch.q_tokens} * a.batch.query_heads;
    poison<Shape::kThreads>(a.out, rows * Shape::kHeadDim * 2);
    poison<Shape::kThreads>(a.lse, rows * 4);
    return;
  }
  const int cta = block_index();
  if (cta >= start.row.shares()) return;
  const Walk walk(a.batch, start.row, cta, start.list, start.unit);
  const int warpgroup = warpgroup_index();
  if (warpgroup == 0) {
    decrease_registers<Shape::kProducerRegisters>();
    if (warp_index() == 0) Loader<Shape>(a, memory).run(walk);
  } else {
    increase_registers<Shape::kConsumerRegisters>();
    Consumer<Shape>(a, memory, warpgroup - 1).run(walk, cta);
  }
}

}  // namespace prulong::kernels::decode
