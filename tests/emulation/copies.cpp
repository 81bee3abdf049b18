// SPDX-License-Identifier: MIT
#include "csrc/hopper/device/copy.h"

#include <algorithm>
#include <cstring>

#include "tests/emulation/machine.h"

namespace prulong::kernels::device {
namespace emulation {
namespace {
int64_t box_bytes(const TensorMap& map) { return int64_t{map.box[0]} * map.box[1] * map.box[2] * map.element_bytes; }

/// Calls visit(address in the box of 16 bytes, host address or null if outside the tensor) for every 16 bytes.
template <class Visit>
void for_each_chunk(const TensorMap& map, Shared begin, std::array<int, 3> start, Visit visit) {
  const int row_bytes = map.box[0] * map.element_bytes;
  Shared address = begin;
  for (int head = start[2]; head < start[2] + map.box[2]; ++head) {
    for (int row = start[1]; row < start[1] + map.box[1]; ++row) {
      const bool inside = head >= 0 && head < map.extent[2] && row >= 0 && row < map.extent[1];
      char* line = inside ? static_cast<char*>(map.base) + head * map.stride[2] + row * map.stride[1] : nullptr;
      for (int byte = 0; byte < row_bytes; byte += 16, address += 16) {
        // The swizzle goes by the address.
        const Shared place = map.swizzle ? address ^ ((address >> 7 & 7u) << 4) : address;
        visit(place, line, start[0] + byte / map.element_bytes);
      }
    }
  }
}

/// Elements of a 16-byte chunk that starts at `column` and lie inside the tensor: [first, last).
std::pair<int64_t, int64_t> inside_of(const TensorMap& map, int64_t column) {
  const int64_t count = 16 / map.element_bytes;
  const int64_t first = std::clamp<int64_t>(-column, 0, count);
  return {first, std::clamp<int64_t>(map.extent[0] - column, first, count)};
}

/// The box must start, and what is stored must end, where the GPU is exact, and every element of it inside the tensor
/// be in a registered buffer.
void check_box(const TensorMap& map, std::array<int, 3> start, bool write, const char* name, Site site) {
  if (start[0] * int64_t{map.element_bytes} % 16 != 0) {
    machine->fail(
        std::string(name) + ": column " + std::to_string(start[0]) + " does not begin at a multiple of 16 bytes", site);
  }
  if (write && (start[0] < 0 || start[1] < 0 || start[2] < 0)) {
    machine->fail(std::string(name) + ": a box that begins before the tensor", site);
  }
  if (const int64_t bytes = map.extent[0] * map.element_bytes; write && bytes % 16 != 0) {
    machine->fail(std::string(name) + ": rows of " + std::to_string(bytes) +
                      " bytes, of which the GPU would write the last 16, those after the end included",
                  site);
  }
  const int64_t first = std::max<int64_t>(start[0], 0);
  const int64_t last = std::min<int64_t>(start[0] + map.box[0], map.extent[0]);
  if (first >= last) return;
  for (int64_t head = std::max(start[2], 0); head < std::min<int64_t>(start[2] + map.box[2], map.extent[2]); ++head) {
    for (int64_t row = std::max(start[1], 0); row < std::min<int64_t>(start[1] + map.box[1], map.extent[1]); ++row) {
      const char* line = static_cast<const char*>(map.base) + head * map.stride[2] + row * map.stride[1];
      machine->check_global(line + first * map.element_bytes, static_cast<size_t>((last - first) * map.element_bytes),
                            write, name, site);
    }
  }
}

/// Issues a load of `bytes` to `to` that `copy` does later.
void load(Shared to, int64_t bytes, Shared barrier_address, const char* name, Site site, std::function<void()> copy) {
  Thread& thread = *running;
  Block& block = *thread.block;
  MemoryBarrier& barrier = barrier_at(barrier_address, name, site);
  if (!barrier.fenced) {
    machine->fail(std::string(name) + ": fence_barrier_init has not followed the initialisation of barrier " +
                      hexadecimal(barrier_address) + " at " + text(barrier.site),
                  site);
  }
  const auto size = static_cast<size_t>(bytes);
  const Actor actor = {*thread.knowledge, barrier.column, barrier.phase + 1, site, true};
  machine->require(block.shared.enter_write(to, size, actor), name, site);
  block.shared.set_in_flight(to, size, true);
  std::memset(block.shared.at(to), 0xff, size);  // NaN of every type
  barrier.loads.push_back(site);
  barrier.loaded = barrier.phase + 1;
  barrier.load_site = site;
  machine->counters.bytes_loaded += bytes;
  machine->later([&block, &barrier, &thread, to, bytes, size, site, copy = std::move(copy)] {
    copy();
    block.shared.set_in_flight(to, size, false);
    barrier.loads.erase(std::find_if(barrier.loads.begin(), barrier.loads.end(),
                                     [&](Site s) { return s.line == site.line && s.file == site.file; }));
    complete_bytes(barrier, bytes, site, thread);
    return true;
  });
}

/// Issues a store of `bytes` at `from` that `write` makes from a copy of them.
void store(Shared from, int64_t bytes, const char* name, Site site, std::function<void(const uint8_t*)> write) {
  Thread& thread = *running;
  Block& block = *thread.block;
  if (thread.store_column == 0) thread.store_column = block.columns++;
  const auto size = static_cast<size_t>(bytes);
  const auto clock = static_cast<uint32_t>(thread.store_groups.size()) + 1;
  const Actor actor = {*thread.knowledge, thread.store_column, clock, site, true};
  machine->require(block.shared.enter_read(from, size, actor), name, site);
  thread.store_site = site;
  thread.open_stores.push_back(std::make_shared<Store>(Store{from, size, {}, std::move(write)}));
}

/// Have all stores of the groups before `end` got there?
bool stores_done(const Thread& thread, size_t end, bool only_read) {
  for (size_t g = 0; g < end; ++g) {
    for (const std::shared_ptr<Store>& store : thread.store_groups[g]) {
      if (!(only_read ? store->read : store->written)) return false;
    }
  }
  return true;
}
}  // namespace

void wait_stores(int pending, bool only_read, Site site) {
  Thread& thread = *running;
  const auto groups = static_cast<int64_t>(thread.store_groups.size());
  const int64_t end = std::max<int64_t>(groups - pending, 0);
  while (!stores_done(thread, static_cast<size_t>(end), only_read)) {
    machine->block(Thread::Wait::kStores, site, end);
  }
  thread.stores_waited = std::max(thread.stores_waited, end);
  if (thread.store_column != 0) thread.own().see(thread.store_column, static_cast<uint32_t>(end));
}

TensorMap make_tensor_map(const void* base, int element_bytes, const std::array<int64_t, 3>& extent,
                          const std::array<int64_t, 2>& stride_bytes, const std::array<int32_t, 3>& box, bool swizzle) {
  const auto refuse = [](const std::string& what) { throw std::invalid_argument("make_tensor_map: " + what); };
  if (element_bytes != 2 && element_bytes != 4) refuse("elements of " + std::to_string(element_bytes) + " bytes");
  if (reinterpret_cast<uintptr_t>(base) % 16 != 0) refuse("the tensor is not aligned to 16 bytes");
  for (const int64_t size : extent) {
    if (size < 1 || size > (int64_t{1} << 32)) refuse("extent " + std::to_string(size));
  }
  for (const int64_t stride : stride_bytes) {
    if (stride < 0 || stride >= (int64_t{1} << 40) || stride % 16 != 0) refuse("stride " + std::to_string(stride));
  }
  for (const int32_t size : box) {
    if (size < 1 || size > 256) refuse("box of " + std::to_string(size) + " elements");
  }
  if (box[0] * element_bytes % 16 != 0) refuse("a box whose rows are no multiple of 16 bytes");
  if (swizzle && box[0] * element_bytes != 128) refuse("a swizzled box whose rows are not 128 bytes");
  return {const_cast<void*>(base),
          element_bytes,
          swizzle,
          {extent[0], extent[1], extent[2]},
          {element_bytes, stride_bytes[0], stride_bytes[1]},
          {box[0], box[1], box[2]}};
}
}  // namespace emulation

using emulation::machine;
using emulation::running;

void prefetch(const TensorMap&, Site) {}

void load_box(Shared to, const TensorMap& map, Shared barrier, int column, int row, int head, bool, Site site) {
  if (machine->omits("load_box", site)) return;
  emulation::SharedMemory& shared = running->block->shared;
  const int64_t bytes = emulation::box_bytes(map);
  machine->require(shared.check_place(to, static_cast<size_t>(bytes), map.swizzle ? 1024 : 128), "load_box:", site);
  const std::array<int, 3> start = {column, row, head};
  emulation::check_box(map, start, false, "load_box", site);
  machine->counters.boxes.push_back({running->block->index, map.base, column, row, head});
  emulation::load(to, bytes, barrier, "load_box", site, [map, to, start, &shared] {
    emulation::for_each_chunk(map, to, start, [&](Shared place, const char* line, int64_t at) {
      uint8_t* chunk = shared.at(place);
      std::memset(chunk, 0, 16);
      const auto [first, last] = emulation::inside_of(map, at);
      if (line == nullptr || first == last) return;
      const int64_t size = map.element_bytes;
      std::memcpy(chunk + first * size, line + (at + first) * size, static_cast<size_t>((last - first) * size));
    });
  });
}

void store_box(const TensorMap& map, Shared from, int column, int row, int head, Site site) {
  const int64_t bytes = emulation::box_bytes(map);
  machine->require(running->block->shared.check_place(from, static_cast<size_t>(bytes), map.swizzle ? 1024 : 128),
                   "store_box:", site);
  const std::array<int, 3> start = {column, row, head};
  emulation::check_box(map, start, true, "store_box", site);
  machine->counters.bytes_stored += bytes;
  emulation::store(from, bytes, "store_box", site, [map, from, start](const uint8_t* data) {
    emulation::for_each_chunk(map, from, start, [&](Shared place, char* line, int64_t at) {
      const auto [first, last] = emulation::inside_of(map, at);
      if (line == nullptr || first == last) return;
      const int64_t size = map.element_bytes;
      std::memcpy(line + (at + first) * size, data + (place - from) + first * size,
                  static_cast<size_t>((last - first) * size));
    });
  });
}

void load_bulk(Shared to, const void* from, int bytes, Shared barrier, Site site) {
  emulation::SharedMemory& shared = running->block->shared;
  if (bytes < 16 || bytes % 16 != 0) machine->fail("load_bulk: " + std::to_string(bytes) + " bytes", site);
  machine->require(shared.check_place(to, static_cast<size_t>(bytes), 16), "load_bulk:", site);
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) machine->fail("load_bulk: source not aligned to 16 bytes", site);
  machine->check_global(from, static_cast<size_t>(bytes), false, "load_bulk", site);
  emulation::load(to, bytes, barrier, "load_bulk", site,
                  [&shared, to, from, bytes] { std::memcpy(shared.at(to), from, static_cast<size_t>(bytes)); });
}

void add_bulk(float* to, Shared from, int bytes, Site site) {
  if (bytes < 16 || bytes % 16 != 0) machine->fail("add_bulk: " + std::to_string(bytes) + " bytes", site);
  machine->require(running->block->shared.check_place(from, static_cast<size_t>(bytes), 16), "add_bulk:", site);
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) machine->fail("add_bulk: target not aligned to 16 bytes", site);
  machine->check_global(to, static_cast<size_t>(bytes), true, "add_bulk", site);
  machine->counters.bytes_added += bytes;
  emulation::store(from, bytes, "add_bulk", site, [to, bytes](const uint8_t* data) {
    for (int i = 0; i < bytes / 4; ++i) {
      float addend;
      std::memcpy(&addend, data + 4 * i, 4);
      to[i] += addend;
    }
  });
}

void commit_stores(Site) {
  emulation::Thread& thread = *running;
  for (const std::shared_ptr<emulation::Store>& store : thread.open_stores) {
    // Two steps: read shared memory, write global memory.
    machine->later([store, &thread] {
      if (!store->read) {
        const uint8_t* begin = thread.block->shared.at(store->from);
        store->data.assign(begin, begin + store->size);
        store->read = true;
      } else {
        store->write(store->data.data());
        store->written = true;
        machine->global_written();
      }
      if (thread.state == emulation::Thread::State::kWaiting && thread.wait == emulation::Thread::Wait::kStores) {
        machine->wake(thread);
      }
      return store->written;
    });
  }
  thread.store_groups.push_back(std::move(thread.open_stores));
  thread.open_stores.clear();
}

}  // namespace prulong::kernels::device
