// SPDX-License-Identifier: MIT
#include "csrc/hopper/device/barrier.h"

#include <algorithm>

#include "tests/emulation/machine.h"

namespace prulong::kernels::device {
namespace emulation {
namespace {
constexpr int64_t kMaxExpected = (1 << 20) - 1;  // of a phase's byte count
constexpr int kMaxArrivals = (1 << 20) - 1;

std::string name_of(const MemoryBarrier& barrier) {
  return "barrier " + hexadecimal(barrier.address) + " (initialised at " + text(barrier.site) + ", phase " +
         std::to_string(barrier.phase) + ")";
}

void try_complete(MemoryBarrier& barrier, Site site, const Thread& thread) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  if (!barrier.loads.empty()) {
    machine->fail(name_of(barrier) + " completes while the load of " + text(barrier.loads.front()) +
                      " is still on its way: too few bytes expected",
                  site, &thread);
  }
  for (const Thread* waiter : barrier.waiting) {
    if (waiter->waits_phase != barrier.phase) {
      machine->fail(name_of(barrier) + " completes again before the thread that waits at " + text(waiter->site) +
                        " for phase " + std::to_string(waiter->waits_phase) + " has seen that",
                    site, &thread);
    }
  }
  barrier.completed = barrier.arriving;
  barrier.completed.see(barrier.column, barrier.phase + 1);
  ++barrier.phase;
  barrier.pending = barrier.count;
  for (Thread* waiter : barrier.waiting) machine->wake(*waiter);
}

void arrive_at(MemoryBarrier& barrier, const char* name, Site site) {
  Thread& thread = *running;
  if (barrier.pending == 0) {
    machine->fail(std::string(name) + ": one arrival too many at " + name_of(barrier) + ", which has had its " +
                      std::to_string(barrier.count) + " and waits for " + std::to_string(barrier.bytes) + " bytes",
                  site);
  }
  thread.release_to(barrier.arriving);
  --barrier.pending;
  try_complete(barrier, site, thread);
}

NamedBarrier& arrive_at_named(int number, int threads, const char* name, Site site) {
  Thread& thread = *running;
  if (number < 0 || number > 15 || threads < kWarpThreads || threads % kWarpThreads != 0 ||
      threads > machine->options.threads) {
    machine->fail(
        std::string(name) + ": no barrier " + std::to_string(number) + " of " + std::to_string(threads) + " threads",
        site);
  }
  converge(name, site);
  NamedBarrier& barrier = thread.block->named[static_cast<size_t>(number)];
  if (barrier.threads == 0) {
    barrier.threads = threads;
    barrier.site = site;
  }
  if (barrier.threads != threads) {
    machine->fail(std::string(name) + ": barrier " + std::to_string(number) + " of " + std::to_string(threads) +
                      " threads, but " + text(barrier.site) + " named " + std::to_string(barrier.threads),
                  site);
  }
  if (std::find(barrier.arrived.begin(), barrier.arrived.end(), &thread) != barrier.arrived.end()) {
    machine->fail(
        std::string(name) + ": the thread arrives twice at barrier " + std::to_string(number) + " before it completes",
        site);
  }
  barrier.arrived.push_back(&thread);
  thread.release_to(barrier.knowledge);
  return barrier;
}

bool complete_named(NamedBarrier& barrier) {
  if (static_cast<int>(barrier.arrived.size()) < barrier.threads) return false;
  for (Thread* waiter : barrier.waiting) waiter->own().join(barrier.knowledge);
  machine->wake_all(barrier.waiting);
  barrier.threads = 0;
  barrier.arrived.clear();
  return true;
}

void sync_numbered(int number, int threads, const char* name, Site site) {
  NamedBarrier& barrier = arrive_at_named(number, threads, name, site);
  if (complete_named(barrier)) {
    running->own().join(barrier.knowledge);
    return;
  }
  barrier.waiting.push_back(running);
  machine->block(Thread::Wait::kNamed, site, number);
}
}  // namespace

MemoryBarrier& barrier_at(Shared address, const char* name, Site site) {
  Block& block = *running->block;
  const auto found = block.barriers.find(address);
  if (found == block.barriers.end()) {
    machine->fail(std::string(name) + ": no barrier was initialised at shared " + hexadecimal(address), site);
  }
  MemoryBarrier& barrier = found->second;
  if (!running->knowledge->has_seen(static_cast<uint32_t>(barrier.initialiser->index), barrier.init_clock)) {
    machine->fail(std::string(name) + ": nothing orders this after the initialisation of " + name_of(barrier), site);
  }
  return barrier;
}

void complete_bytes(MemoryBarrier& barrier, int64_t bytes, Site site, const Thread& thread) {
  barrier.bytes -= bytes;
  if (barrier.bytes < -kMaxExpected) machine->fail(name_of(barrier) + " counts too many bytes", site, &thread);
  try_complete(barrier, site, thread);
}
}  // namespace emulation

using emulation::machine;
using emulation::running;

void init_barrier(Shared address, int count, Site site) {
  emulation::Block& block = *running->block;
  machine->require(block.shared.check_place(address, 8, 8), "init_barrier:", site);
  if (count < 1 || count > emulation::kMaxArrivals) machine->fail("init_barrier: count out of range", site);
  if (block.barriers.count(address) != 0) {
    machine->fail("init_barrier: there is a barrier at " + emulation::hexadecimal(address) + " already", site);
  }
  machine->require(block.shared.enter_write(address, 8, running->actor(site)), "init_barrier", site);
  block.shared.make_barrier(address);
  emulation::MemoryBarrier& barrier = block.barriers[address];
  barrier.address = address;
  barrier.count = barrier.pending = count;
  barrier.column = block.columns++;
  barrier.initialiser = running;
  barrier.init_clock = running->clock();
  barrier.site = site;
}

void fence_barrier_init(Site site) {
  if (machine->omits("fence_barrier_init", site)) return;
  for (auto& [address, barrier] : running->block->barriers) {
    if (barrier.initialiser == running) barrier.fenced = true;
  }
}

void arrive(Shared address, Site site) {
  if (machine->omits("arrive", site)) return;
  emulation::arrive_at(emulation::barrier_at(address, "arrive", site), "arrive", site);
}

void arrive_expecting(Shared address, int bytes, Site site) {
  if (machine->omits("arrive_expecting", site)) return;
  emulation::MemoryBarrier& barrier = emulation::barrier_at(address, "arrive_expecting", site);
  barrier.bytes += bytes;
  if (bytes < 0 || barrier.bytes > emulation::kMaxExpected) {
    machine->fail("arrive_expecting: " + std::to_string(bytes) + " bytes are out of range", site);
  }
  emulation::arrive_at(barrier, "arrive_expecting", site);
}

void wait(Shared address, int parity, Site site) {
  if (machine->omits("wait", site)) return;
  emulation::MemoryBarrier& barrier = emulation::barrier_at(address, "wait", site);
  if (parity != 0 && parity != 1) machine->fail("wait: parity " + std::to_string(parity), site);
  const uint32_t phase = barrier.phase;
  if ((phase & 1u) == static_cast<uint32_t>(parity)) {
    barrier.waiting.push_back(running);
    machine->block(emulation::Thread::Wait::kBarrier, site, address, phase);
    barrier.waiting.erase(std::find(barrier.waiting.begin(), barrier.waiting.end(), running));
  }
  barrier.waited = barrier.phase;
  running->own().join(barrier.completed);
}

void sync_named(int number, int threads, Site site) {
  if (machine->omits("sync_named", site)) return;
  if (number == 0) machine->fail("sync_named: number 0 belongs to sync_cta", site);
  emulation::sync_numbered(number, threads, "sync_named", site);
}
void arrive_named(int number, int threads, Site site) {
  if (machine->omits("arrive_named", site)) return;
  if (number == 0) machine->fail("arrive_named: number 0 belongs to sync_cta", site);
  emulation::complete_named(emulation::arrive_at_named(number, threads, "arrive_named", site));
}
void sync_cta(Site site) {
  if (machine->omits("sync_cta", site)) return;
  emulation::sync_numbered(0, machine->options.threads, "sync_cta", site);
}

void sync_warp(Site site) {
  if (machine->omits("sync_warp", site)) return;
  emulation::call_together("sync_warp", site, 0, {}, [](emulation::Warp& warp, Site) {
    emulation::Knowledge all;
    for (emulation::Thread* lane : warp.lanes) lane->release_to(all);
    for (emulation::Thread* lane : warp.lanes) lane->own().join(all);
  });
}

void fence_async_proxy(Site site) {
  if (machine->omits("fence_async_proxy", site)) return;
  emulation::Thread& thread = *running;
  const auto column = static_cast<size_t>(thread.index);
  thread.own().fenced[column] = thread.clock();
  thread.tick();
}

}  // namespace prulong::kernels::device
