// SPDX-License-Identifier: MIT
#include <algorithm>

#include "tests/emulation/machine.h"

/// What the machine has to say: errors, what a kernel's end leaves behind, deadlocks.
namespace prulong::kernels::device::emulation {

void Machine::finish_thread(Thread& thread) {
  if (!thread.open_stores.empty()) fail("the kernel ends with bulk stores that were not committed", thread.store_site);
  if (thread.stores_waited < static_cast<int64_t>(thread.store_groups.size())) {
    fail("the kernel ends without waiting until its bulk stores have read shared memory", thread.store_site);
  }
  if (thread.products_waited < thread.products) {
    fail("the kernel ends without waiting for its products", thread.product_site);
  }
}

void Machine::check_end() {
  for (Block& block : blocks_) {
    const Thread& first = block.threads.front();
    for (const auto& [address, barrier] : block.barriers) {
      const std::string name =
          "the kernel ends with barrier " + hexadecimal(address) + " in phase " + std::to_string(barrier.phase);
      if (barrier.pending != barrier.count) {
        fail(name + " half-arrived: " + std::to_string(barrier.count - barrier.pending) + " of " +
                 std::to_string(barrier.count) + " arrivals",
             barrier.site, &first);
      }
      if (barrier.bytes != 0) {
        fail(name + " out of balance by " + std::to_string(barrier.bytes) + " expected bytes", barrier.site, &first);
      }
    }
    for (const auto& [address, barrier] : block.barriers) {
      if (barrier.loaded > barrier.waited) {
        fail("the kernel ends without waiting for a load on barrier " + hexadecimal(address), barrier.load_site,
             &first);
      }
    }
    for (size_t number = 0; number < block.named.size(); ++number) {
      const NamedBarrier& barrier = block.named[number];
      if (barrier.threads != 0) {
        fail("the kernel ends with named barrier " + std::to_string(number) + " half-arrived: " +
                 std::to_string(barrier.arrived.size()) + " of " + std::to_string(barrier.threads) + " threads",
             barrier.site, &first);
      }
    }
    int registers = 0;
    const Warpgroup* last = nullptr;
    for (const Warpgroup& group : block.warpgroups) {
      if (group.register_calls % kWarpgroupThreads != 0) {
        fail("not every thread of a warpgroup has set its registers", group.register_site, &first);
      }
      if (group.registers != 0) last = &group;
      registers += group.registers != 0 ? group.registers : launched_registers(options.threads);
    }
    const int launched = launched_registers(options.threads) * static_cast<int>(block.warpgroups.size());
    if (last != nullptr && registers > launched) {
      fail("the warpgroups' registers per thread add up to " + std::to_string(registers) + ", " +
               std::to_string(launched) + " were launched",
           last->register_site, &first);
    }
  }
}

void Machine::fail(const std::string& what, Site site, const Thread* thread) const {
  if (thread == nullptr) thread = running;
  std::string message = what;
  if (site.line != 0) message += ", at " + text(site);
  if (thread != nullptr) {
    message += ", block " + std::to_string(thread->block->index) + ", warp " + std::to_string(thread->warp->index) +
               ", lane " + std::to_string(thread->index % kWarpThreads);
  }
  throw EmulationError(message + ", seed " + std::to_string(options.seed));
}

void Machine::report_abandoned(Site site) {
  if (error_) return;
  try {
    fail("a fragment ends while the product of " + text(site) + " may be using it", site);
  } catch (...) {
    error_ = std::current_exception();
  }
}

std::string Machine::describe(const Thread& thread) const {
  const std::string at = " at " + text(thread.site);
  switch (thread.wait) {
    case Thread::Wait::kBarrier: {
      const MemoryBarrier& barrier = thread.block->barriers.at(static_cast<Shared>(thread.waits_for));
      return "wait" + at + " for phase " + std::to_string(thread.waits_phase) + " of barrier " +
             hexadecimal(barrier.address) + " (initialised at " + text(barrier.site) + "): in phase " +
             std::to_string(barrier.phase) + ", " + std::to_string(barrier.count - barrier.pending) + " of " +
             std::to_string(barrier.count) + " arrivals, " + std::to_string(barrier.bytes) + " bytes missing";
    }
    case Thread::Wait::kNamed: {
      const NamedBarrier& barrier = thread.block->named[static_cast<size_t>(thread.waits_for)];
      return (thread.waits_for == 0 ? "sync_cta" : "sync_named") + at + ": barrier " +
             std::to_string(thread.waits_for) + " has " + std::to_string(barrier.arrived.size()) + " of " +
             std::to_string(barrier.threads) + " threads";
    }
    case Thread::Wait::kWarp:
      return std::string(thread.warp->call.name) + at + ": " + std::to_string(thread.warp->call.arrived) +
             " of 32 lanes";
    case Thread::Wait::kProducts: {
      const Warpgroup& group = *thread.warpgroup;
      return "wait_matrices" + at + " for product group " + std::to_string(thread.waits_for) + ": " +
             std::to_string(group.completed_groups) + " done, " + std::to_string(group.committed_groups) +
             " committed by all threads of the warpgroup";
    }
    case Thread::Wait::kStores:
      return "wait_stores" + at;
    case Thread::Wait::kPoll:
      return "load_acquire" + at + ": reads " + std::to_string(thread.polled_value) + " again and again";
  }
  return {};
}

void Machine::report_deadlock() {
  std::string report =
      "deadlock: no thread can run and no copy or product is pending, seed " + std::to_string(options.seed);
  for (const Block& block : blocks_) {
    for (const Warp& warp : block.warps) {
      std::map<std::string, int> waits;  // lanes by what they do
      for (const Thread* lane : warp.lanes) {
        ++waits[lane->state == Thread::State::kDone ? "ended" : describe(*lane)];
      }
      for (const auto& [wait, lanes] : waits) {
        report += "\n  block " + std::to_string(block.index) + ", warpgroup " + std::to_string(warp.index / 4) +
                  ", warp " + std::to_string(warp.index) + ", " + std::to_string(lanes) + " lanes: " + wait;
      }
    }
  }
  throw EmulationError(report);
}

}  // namespace prulong::kernels::device::emulation
