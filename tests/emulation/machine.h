// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <boost/context/fiber.hpp>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "csrc/hopper/device/memory.h"
#include "csrc/hopper/device/thread.h"
#include "csrc/hopper/device/wgmma.h"
#include "tests/emulation/emulator.h"
#include "tests/emulation/shared_memory.h"

/// The emulated machine, for the files of this folder.
namespace prulong::kernels::device::emulation {

struct Block;
struct Thread;
struct Warp;
struct Warpgroup;

/// An mbarrier. Its phases are counted from 0.
struct MemoryBarrier {
  Shared address = 0;
  int count = 0;      // arrivals per phase
  int pending = 0;    // arrivals missing in this phase
  int64_t bytes = 0;  // expected minus arrived
  uint32_t phase = 0;
  Knowledge arriving, completed;
  uint32_t column = 0;              // of its bulk loads: those of phase p have clock p + 1
  bool fenced = false;              // fence_barrier_init
  uint32_t loaded = 0, waited = 0;  // the latest phases, plus 1, that a load was issued for and that a thread saw end
  Site load_site = {};
  const Thread* initialiser = nullptr;
  uint32_t init_clock = 0;
  Site site = {};                // of its initialisation
  std::vector<Site> loads;       // issued in this phase and not complete
  std::vector<Thread*> waiting;  // for this phase, or woken and not run since
};

/// A barrier by number.
struct NamedBarrier {
  int threads = 0;  // 0: nobody has arrived
  Site site = {};   // of the first arrival
  std::vector<const Thread*> arrived;
  std::vector<Thread*> waiting;
  Knowledge knowledge;
};

/// A product of a warpgroup, from its first thread's call on.
struct Product {
  ElementType type;
  int columns;
  Descriptor a, b;
  Major major_a, major_b;
  bool a_in_registers, accumulate;
  Site site;
  int64_t group;
  int arrived = 0;
  std::array<float*, kWarpgroupThreads> d = {};
  std::array<std::array<uint32_t, 4>, kWarpgroupThreads> words = {};
  std::array<std::shared_ptr<Knowledge>, kWarpgroupThreads> knows = {};
};

/// Products run in the order of their issue, each at some time after its group's commit.
struct Warpgroup {
  struct Group {
    Site site;
    int64_t products_end;  // products issued up to its commit
    int arrived = 0;
  };
  uint32_t column = 0;  // products of group g read with clock g + 1
  std::deque<Product> products;
  int64_t first_product = 0;  // index of products.front(): all before it have run
  std::vector<Group> groups;
  int64_t committed_groups = 0;  // by all 128 threads
  int64_t completed_groups = 0;
  bool running = false;  // an event is pending that runs the next product
  std::vector<Thread*> waiting;
  int registers = 0;  // per thread; 0: as launched
  int register_calls = 0;
  Site register_site = {};
  // What all threads knew at the last product, and by whose knowledge.
  std::array<std::shared_ptr<Knowledge>, kWarpgroupThreads> last_knows = {};
  Knowledge common;
};

/// A function that all lanes of a warp call together.
struct WarpCall {
  const char* name = nullptr;
  Site site = {};
  int arrived = 0;
  std::array<Shared, kWarpThreads> address = {};
  std::array<Word4, kWarpThreads> in = {}, out = {};
};

struct Warp {
  Block* block;
  int index;  // in its block
  int priority = 0;
  int elected = 0;
  int runnable = 0;  // number of runnable lanes
  std::array<Thread*, kWarpThreads> lanes = {};
  WarpCall call = {};
};

/// A bulk store or reduction.
struct Store {
  Shared from;
  size_t size;
  std::vector<uint8_t> data;                  // as read
  std::function<void(const uint8_t*)> write;  // to global memory
  bool read = false, written = false;
};

struct Thread {
  enum class State { kRunnable, kWaiting, kDone };
  enum class Wait { kBarrier, kNamed, kWarp, kProducts, kStores, kPoll };

  Block* block;
  Warp* warp;
  Warpgroup* warpgroup;  // null where the block is no multiple of 128 threads
  int index;             // in its block
  boost::context::stack_context stack = {};
  boost::context::fiber fiber, scheduler;
  State state = State::kRunnable;
  Wait wait = Wait::kWarp;
  Site site = {};         // of the call that waits
  int64_t waits_for = 0;  // barrier address or number, group
  int64_t waits_phase = 0;
  std::shared_ptr<Knowledge> knowledge;

  int64_t products = 0, groups = 0;  // issued and committed by this thread
  int64_t products_waited = 0;
  Site product_site = {};  // the last
  std::vector<std::shared_ptr<Store>> open_stores;
  std::vector<std::vector<std::shared_ptr<Store>>> store_groups;
  int64_t stores_waited = 0;  // groups known to have read their shared memory
  uint32_t store_column = 0;  // 0: none yet
  Site store_site = {};
  const void* polled = nullptr;  // the last load_acquire
  int polled_value = 0;

  /// Its knowledge, to change: what others hold on to stays as it is.
  Knowledge& own();
  uint32_t clock() const { return knowledge->seen[static_cast<size_t>(index)]; }
  /// Passes on all that it knows; what it does from now on is not covered.
  void release_to(Knowledge& to);
  void tick() { ++own().seen[static_cast<size_t>(index)]; }
  Actor actor(Site at) const { return {*knowledge, static_cast<uint32_t>(index), clock(), at, false}; }
};

struct Block {
  int index;
  SharedMemory shared;
  uint32_t columns;  // of knowledge, handed out so far
  std::map<Shared, MemoryBarrier> barriers = {};
  std::array<NamedBarrier, 16> named = {};
  std::deque<Thread> threads = {};
  std::deque<Warp> warps = {};
  std::deque<Warpgroup> warpgroups = {};
};

class Machine {
 public:
  Machine(const LaunchOptions& options, const GlobalMemory& memory, const std::function<void()>& kernel);
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  Counters run();

  /// Throws an EmulationError about `thread` (the running one if null).
  [[noreturn]] void fail(const std::string& what, Site site, const Thread* thread = nullptr) const;
  /// Fails if `what` is not empty, as "<name> <what>".
  void require(const std::string& what, const char* name, Site site, const Thread* thread = nullptr) const {
    if (!what.empty()) fail(name + (" " + what), site, thread);
  }
  /// Is the call to be left out?
  bool omits(const char* name, Site site) const { return options.omits && options.omits(name, site); }
  /// Stops the running thread until wake().
  void block(Thread::Wait wait, Site site, int64_t waits_for = 0, int64_t phase = 0);
  void wake(Thread& thread);
  void wake_all(std::vector<Thread*>& threads);
  /// Stops the running thread until global memory changes or nothing else is left to do.
  void poll(Site site);
  /// Calls `step` at random later times until it returns true.
  void later(std::function<bool()> step);
  /// Global memory has changed: threads that poll it look again.
  void global_written();
  void check_global(const void* begin, size_t bytes, bool write, const char* name, Site site) const;
  /// For what cannot throw: stops the emulation at the next switch.
  void report_abandoned(Site site);

  LaunchOptions options;
  Counters counters;

 private:
  size_t draw(size_t below) { return static_cast<size_t>(random_() % below); }
  void start_thread(Thread& thread);
  void enter(Thread& thread);
  void leave(Thread& thread);
  void run_warp(Warp& warp);
  void run_thread(Thread& thread);
  void finish_thread(Thread& thread);
  Warp& choose_warp();
  void shuffle_priorities();
  void check_end();
  std::string describe(const Thread& thread) const;
  [[noreturn]] void report_deadlock();

  const GlobalMemory& memory_;
  const std::function<void()>& kernel_;
  std::mt19937_64 random_;
  bool by_priority_;      // the schedule's character
  uint64_t late_one_in_;  // an event comes before a warp once in so many choices; 0: only when no warp can run
  std::deque<Block> blocks_;
  std::vector<Warp*> warps_;
  std::vector<Warp*> runnable_;  // warps with runnable lanes
  std::vector<std::function<bool()>> events_;
  std::vector<Thread*> polling_;
  int idle_polls_ = 0;
  int unfinished_ = 0;
  std::exception_ptr error_;
  bool stopping_ = false;
};

/// The machine that runs and its running thread; null outside.
extern thread_local Machine* machine;
extern thread_local Thread* running;

/// The barrier at an address, which the running thread must know to be initialised.
MemoryBarrier& barrier_at(Shared address, const char* name, Site site);
/// Counts `bytes` off the barrier's phase, and completes it if nothing is missing. On behalf of `thread`.
void complete_bytes(MemoryBarrier& barrier, int64_t bytes, Site site, const Thread& thread);

/// The warpgroup of a thread, in a block that has some.
Warpgroup& warpgroup_of(const Thread& thread, const char* name, Site site);
/// Registers per thread at launch.
int launched_registers(int threads);

/// Stops until all lanes of the running warp have called, then returns this lane's result. `complete` computes `out`
/// from `in` and `address` once.
Word4 call_together(const char* name, Site site, Shared address, Word4 in, void (*complete)(Warp& warp, Site site));
/// Stops until all lanes of the running warp have called, from the same line: what PTX calls aligned.
void converge(const char* name, Site site);

}  // namespace prulong::kernels::device::emulation
