// SPDX-License-Identifier: MIT
#include <array>
#include <set>
#include <stdexcept>
#include <utility>

#include "csrc/hopper/device/barrier.h"
#include "csrc/hopper/device/copy.h"
#include "csrc/hopper/device/memory.h"
#include "csrc/hopper/device/thread.h"
#include "csrc/hopper/device/wgmma.h"
#include "tests/csrc/hopper/planted.h"
#include "tests/emulation/emulator.h"

using namespace prulong::kernels;
using namespace prulong::kernels::device;
using emulation::EmulationError;
using emulation::GlobalMemory;
using planted::check_reported;
using planted::kSeeds;

// --- One mistake, one small kernel.

namespace {
/// `shared` bytes, one block of `threads`, no global memory unless given.
template <class Kernel>
void check_small(int threads, int shared, Kernel kernel, std::initializer_list<std::string> parts) {
  check_reported({1, threads, shared}, {}, kernel, parts);
}
}  // namespace

TEST_CASE("shared memory is held to its bounds, alignment and order") {
  check_small(32, 256, [] { PLANT(store_shared(shared_memory() + 256, 1)); },
              {"store_shared", "outside the block's 256"});
  check_small(32, 256, [] { PLANT(load_shared<int>(shared_memory() - 4)); }, {"load_shared", "outside"});
  check_small(32, 256, [] { PLANT(store_shared(shared_memory() + 4, Word4{})); }, {"not aligned to 16"});
  check_small(32, 256, [] { PLANT(load_shared<float>(shared_memory())); }, {"which nothing has written"});
  check_small(32, 256, [] { PLANT(store_shared(shared_memory(), 1)); }, {"nothing orders it after the write"});
  // What a lane wrote, another reads: after sync_warp only.
  const auto exchange = [](bool synchronise) {
    store_shared(shared_memory() + 4 * lane_index(), lane_index());
    if (synchronise) sync_warp();
    if (PLANT(load_shared<int>(shared_memory() + 4 * (lane_index() ^ 1))) != (lane_index() ^ 1))
      throw std::logic_error("");
  };
  check_small(32, 256, [&] { exchange(false); }, {"load_shared"});
  CHECK_NOTHROW(emulation::emulate({1, 32, 256}, {}, [&] { exchange(true); }));
  check_small(32, 256,
              [] {
                if (thread_index() == 0) init_barrier(shared_memory() + 8, 1);
                sync_warp();
                PLANT(store_shared(shared_memory() + 8, 1));
              },
              {"which is a barrier"});
}

TEST_CASE("global memory is held to the registered buffers") {
  std::vector<float> inside(8), outside(8);
  GlobalMemory memory;
  memory.add(std::as_const(inside), "inside");
  const auto check = [&](auto kernel, const char* part) { check_reported({1, 32, 0}, memory, kernel, {part}); };
  check([&] { PLANT(load_global(outside.data())); }, "load_global reads 4 bytes of global memory outside");
  check([&] { PLANT(load_global(inside.data() + 8)); }, "load_global reads 4 bytes of global memory outside");
  check([&] { PLANT(store_global(inside.data(), 1.0f)); }, "store_global writes the input inside");
  check([&] { PLANT(load_global(reinterpret_cast<const double*>(inside.data() + 1))); }, "not aligned to 8");
}

TEST_CASE("bulk copies are held to the registered buffers") {
  alignas(16) std::array<float, 64> values = {};
  GlobalMemory memory;
  memory.add(values.data(), 128, "half");
  const auto with_barrier = [](auto body) {
    return [body] {
      const Shared barrier = shared_memory() + 1024;
      if (thread_index() != 0) return;
      init_barrier(barrier, 1);
      fence_barrier_init();
      body(barrier);
    };
  };
  check_reported({1, 32, 2048}, memory,
                 with_barrier([&](Shared barrier) { PLANT(load_bulk(shared_memory(), values.data(), 256, barrier)); }),
                 {"load_bulk reads 256 bytes of global memory outside"});
  check_reported({1, 32, 2048}, memory,
                 with_barrier([&](Shared barrier) { PLANT(load_bulk(shared_memory(), values.data(), 24, barrier)); }),
                 {"load_bulk: 24 bytes"});
  const TensorMap map = emulation::make_tensor_map(values.data(), 4, {16, 4, 1}, {64, 256}, {16, 4, 1}, false);
  check_reported({1, 32, 2048}, memory,
                 with_barrier([&](Shared barrier) { PLANT(load_box(shared_memory(), map, barrier, 0, 0, 0, false)); }),
                 {"load_box reads 64 bytes of global memory outside"});
}

TEST_CASE("boxes begin where the GPU accepts them") {
  alignas(16) std::array<float, 64> values = {};
  GlobalMemory memory;
  memory.add(values.data(), sizeof values, "values");
  const TensorMap map = emulation::make_tensor_map(values.data(), 4, {16, 4, 1}, {64, 256}, {16, 4, 1}, false);
  const auto load_at = [&](int column, int row) {
    return [&map, column, row] {
      const Shared barrier = shared_memory() + 1024;
      if (thread_index() != 0) return;
      init_barrier(barrier, 1);
      fence_barrier_init();
      arrive_expecting(barrier, 256);
      PLANT(load_box(shared_memory(), map, barrier, column, row, 0, false));
      wait(barrier, 0);
    };
  };
  const auto store_at = [&](int column, int row) {
    return [&map, column, row] {
      if (thread_index() != 0) return;
      for (int i = 0; i < 64; ++i) store_shared(shared_memory() + 4 * i, 0.0f);
      fence_async_proxy();
      PLANT(store_box(map, shared_memory(), column, row, 0));
      commit_stores();
      wait_stores<0>();
    };
  };
  for (const int column : {-5, -2, 1, 6}) {
    check_reported({1, 32, 2048}, memory, load_at(column, 0), {"load_box: column", "a multiple of 16 bytes"});
  }
  CHECK_NOTHROW(emulation::emulate({1, 32, 2048}, memory, load_at(-4, -1)));
  check_reported({1, 32, 2048}, memory, store_at(2, 0), {"store_box: column 2"});
  check_reported({1, 32, 2048}, memory, store_at(-4, 0), {"store_box: a box that begins before the tensor"});
  check_reported({1, 32, 2048}, memory, store_at(0, -1), {"store_box: a box that begins before the tensor"});
  CHECK_NOTHROW(emulation::emulate({1, 32, 2048}, memory, store_at(4, 1)));
}

TEST_CASE("boxes are stored to rows that end on 16 bytes") {
  alignas(16) std::array<float, 64> values = {};
  GlobalMemory memory;
  memory.add(values.data(), sizeof values, "values");
  const TensorMap map = emulation::make_tensor_map(values.data(), 4, {14, 4, 1}, {64, 256}, {16, 4, 1}, false);
  const auto store = [&map] {
    if (thread_index() != 0) return;
    for (int i = 0; i < 64; ++i) store_shared(shared_memory() + 4 * i, 0.0f);
    fence_async_proxy();
    PLANT(store_box(map, shared_memory(), 0, 0, 0));
    commit_stores();
    wait_stores<0>();
  };
  check_reported({1, 32, 2048}, memory, store, {"store_box: rows of 56 bytes"});
}

TEST_CASE("barriers by number are held to their rules") {
  check_small(96, 0,
              [] {
                if (warp_index() < 2) sync_named(1, 64 + 32 * warp_index());
              },
              {"sync_named: barrier 1 of"});
  check_small(64, 0,
              [] {
                if (warp_index() == 0) arrive_named(2, 64);
              },
              {"named barrier 2 half-arrived: 32 of 64"});
  check_small(64, 0,
              [] {
                if (warp_index() == 0) sync_named(2, 64);
              },
              {"deadlock", "barrier 2 has 32 of 64 threads"});
  check_small(64, 0,
              [] {
                if (warp_index() == 0) {
                  arrive_named(2, 64);
                  PLANT(sync_named(2, 64));
                }
              },
              {"arrives twice"});
  check_small(32, 0, [] { PLANT(sync_named(16, 32)); }, {"no barrier 16"});
  check_small(32, 0, [] { PLANT(sync_named(0, 32)); }, {"belongs to sync_cta"});
}

TEST_CASE("a memory barrier left half-arrived is reported") {
  check_small(32, 64,
              [] {
                if (thread_index() != 0) return;
                PLANT(init_barrier(shared_memory(), 2));
                arrive(shared_memory());
              },
              {"half-arrived: 1 of 2"});
  check_small(32, 64, [] { PLANT(arrive(shared_memory())); }, {"no barrier was initialised"});
}

TEST_CASE("a phase that ends before a waiter saw the one before is reported") {
  // Whoever waits can be passed only if it is slow: under some schedules.
  int reported = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    try {
      emulation::emulate({1, 64, 64, seed}, {}, [] {
        if (thread_index() == 0) init_barrier(shared_memory(), 1);
        sync_cta();
        if (thread_index() == 0) wait(shared_memory(), 0);
        if (thread_index() == 32) {
          arrive(shared_memory());
          arrive(shared_memory());
        }
      });
    } catch (const EmulationError& error) {
      const std::string report = error.what();
      reported += report.find("completes again before the thread that waits at test_emulator.cpp") != std::string::npos;
    }
  }
  CHECK(reported > 0);
}

TEST_CASE("lanes of a warp must call together") {
  check_small(32, 0,
              [] {
                if (lane_index() < 16)
                  sync_warp();
                else
                  shuffle(1, 0);
              },
              {"other lanes of the warp call"});
  check_small(32, 0,
              [] {
                if (lane_index() < 16) sync_warp();
              },
              {"deadlock", "16 lanes: sync_warp"});
  check_small(64, 0,
              [] {
                if (lane_index() == 3) sync_named(1, 64);
              },
              {"deadlock", "1 lanes: sync_named", "1 of 32 lanes"});
  check_small(128, 0,
              [] {
                if (lane_index() != 3) wait_matrices<0>();
              },
              {"deadlock", "wait_matrices", "31 of 32 lanes"});
  check_small(32, 0,
              [] {
                if (thread_index() == 0) warpgroup_index();
              },
              {"deadlock", "1 of 32 lanes"});
}

TEST_CASE("warpgroups share the registers that were launched") {
  const auto set = [](auto take) {
    return [take] {
      if (warpgroup_index() == 0) {
        decrease_registers<24>();
      } else {
        take();
      }
    };
  };
  CHECK_NOTHROW(emulation::emulate({1, 384, 0}, {}, set([] { increase_registers<240>(); })));
  check_small(512, 0, set([] { PLANT(increase_registers<168>()); }), {"add up to 528, 512 were launched"});
  check_small(384, 0, set([] { PLANT(decrease_registers<176>()); }), {"from 168 to 176"});
  check_small(384, 0, set([] { PLANT(increase_registers<244>()); }), {"a multiple of 8"});
}

TEST_CASE("a semaphore orders blocks, and one that nobody raises is a deadlock") {
  std::vector<int> state(1), order;
  GlobalMemory memory;
  memory.add(state, "state");
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    state[0] = 0;
    order.clear();
    emulation::emulate({3, 32, 0, seed}, memory, [&] {
      if (thread_index() != 0) return;
      while (load_acquire(state.data()) != block_index()) {
      }
      order.push_back(block_index());
      add_release(state.data(), 1);
    });
    CHECK(order == std::vector<int>{0, 1, 2});
  }
  check_reported({1, 32, 0}, memory,
                 [&] {
                   while (PLANT(load_acquire(state.data())) != 17) {
                   }
                 },
                 {"deadlock", "load_acquire"});
}

TEST_CASE("a seed decides the schedule") {
  std::vector<int> next(1);
  GlobalMemory memory;
  memory.add(next, "next");
  const auto order = [&](uint64_t seed) {
    std::vector<int> blocks;
    emulation::emulate({3, 64, 0, seed}, memory, [&] {
      sync_cta();
      if (thread_index() == 0) blocks.push_back(block_index());
      if (thread_index() == 0) fetch_add(next.data(), 1);
    });
    return blocks;
  };
  std::set<std::vector<int>> orders;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    CHECK(order(seed) == order(seed));
    orders.insert(order(seed));
  }
  CHECK(orders.size() == 6);
}

TEST_CASE("tensor maps are refused where the GPU's encoder refuses them") {
  alignas(128) static std::array<uint16_t, 1024> data = {};
  using Extent = std::array<int64_t, 3>;
  const auto make = [](int shift, Extent extent, std::array<int64_t, 2> stride, std::array<int32_t, 3> box,
                       bool swizzle) {
    return emulation::make_tensor_map(data.data() + shift, 2, extent, stride, box, swizzle);
  };
  CHECK_NOTHROW(make(0, {64, 8, 1}, {128, 1024}, {64, 8, 1}, true));
  CHECK_THROWS_WITH(make(1, {64, 8, 1}, {128, 1024}, {64, 8, 1}, true), ContainsSubstring("aligned to 16"));
  CHECK_THROWS_WITH(make(0, {64, 0, 1}, {128, 1024}, {64, 8, 1}, true), ContainsSubstring("extent 0"));
  CHECK_THROWS_WITH(make(0, {64, 8, 1}, {136, 1024}, {64, 8, 1}, true), ContainsSubstring("stride 136"));
  CHECK_THROWS_WITH(make(0, {64, 8, 1}, {128, 1024}, {64, 257, 1}, true), ContainsSubstring("box of 257"));
  CHECK_THROWS_WITH(make(0, {64, 8, 1}, {128, 1024}, {32, 8, 1}, true), ContainsSubstring("128 bytes"));
  CHECK_THROWS_WITH(make(0, {64, 8, 1}, {128, 1024}, {12, 8, 1}, false), ContainsSubstring("16 bytes"));
}
