// SPDX-License-Identifier: MIT
#include "tests/emulation/machine.h"

#include <algorithm>
#include <boost/context/protected_fixedsize_stack.hpp>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace prulong::kernels::device::emulation {

thread_local Machine* machine = nullptr;
thread_local Thread* running = nullptr;

namespace {
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 512 * 1024;
#else
constexpr size_t kStackBytes = 128 * 1024;
#endif
constexpr int kMaxIdlePolls = 10000;

/// Stacks with a guard page, kept for later fibers: making one takes two system calls.
struct Stacks {
  using traits_type = boost::context::stack_traits;
  boost::context::stack_context* made;  // for its owner to see
  boost::context::stack_context allocate() {
    if (kept().empty()) {
      *made = boost::context::protected_fixedsize_stack(kStackBytes).allocate();
    } else {
      *made = kept().back();
      kept().pop_back();
    }
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(static_cast<char*>(made->sp) - made->size, made->size);
#endif
    return *made;
  }
  void deallocate(boost::context::stack_context& stack) { kept().push_back(stack); }
  static std::vector<boost::context::stack_context>& kept() {
    static std::vector<boost::context::stack_context> stacks;
    return stacks;
  }
};

/// Leaves the running stack for another; `resume` returns when the running one goes on. AddressSanitizer must be told.
struct StackBounds {
  const void* bottom = nullptr;
  size_t size = 0;
};
template <class Resume>
void switch_stacks([[maybe_unused]] StackBounds to, Resume resume) {
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.bottom, to.size);
  resume();
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
  resume();
#endif
}
StackBounds scheduler_stack;

/// Thrown into fibers that have not ended when the emulation has.
struct Unwind {};

// Column 0 .. threads - 1, then one per warpgroup.
uint32_t first_columns(const LaunchOptions& options) {
  return static_cast<uint32_t>(options.threads + options.threads / kWarpgroupThreads);
}
}  // namespace

Knowledge& Thread::own() {
  if (knowledge.use_count() > 1) knowledge = std::make_shared<Knowledge>(*knowledge);
  return *knowledge;
}

void Thread::release_to(Knowledge& to) {
  to.join(*knowledge);
  tick();
}

Machine::Machine(const LaunchOptions& launch, const GlobalMemory& memory, const std::function<void()>& kernel)
    : options(launch), memory_(memory), kernel_(kernel), random_(launch.seed) {
  if (options.blocks < 1 || options.threads < 32 || options.threads > 1024 || options.threads % 32 != 0 ||
      options.shared_bytes < 0 || options.shared_bytes > kMaxSharedBytes) {
    throw std::invalid_argument("emulate: launch of " + std::to_string(options.blocks) + " blocks of " +
                                std::to_string(options.threads) + " threads with " +
                                std::to_string(options.shared_bytes) + " bytes of shared memory is not possible");
  }
  constexpr std::array<uint64_t, 4> kLateOneIn = {4, 0, 16, 2};
  late_one_in_ = kLateOneIn[options.seed % 4];
  by_priority_ = options.seed % 4 >= 2;
  for (int b = 0; b < options.blocks; ++b) {
    Block& block = blocks_.emplace_back(Block{b, SharedMemory(options.shared_bytes), first_columns(options)});
    if (options.threads % kWarpgroupThreads == 0) {
      block.warpgroups.resize(static_cast<size_t>(options.threads / kWarpgroupThreads));
      for (size_t w = 0; w < block.warpgroups.size(); ++w) {
        block.warpgroups[w].column = static_cast<uint32_t>(options.threads) + static_cast<uint32_t>(w);
      }
    }
    for (int t = 0; t < options.threads; ++t) {
      if (t % kWarpThreads == 0) {
        warps_.push_back(&block.warps.emplace_back(Warp{&block, t / kWarpThreads}));
        warps_.back()->elected = static_cast<int>(draw(kWarpThreads));
      }
      Warp& warp = block.warps.back();
      Thread& thread = block.threads.emplace_back();
      thread.block = &block;
      thread.warp = &warp;
      thread.warpgroup =
          block.warpgroups.empty() ? nullptr : &block.warpgroups[static_cast<size_t>(t / kWarpgroupThreads)];
      thread.index = t;
      thread.knowledge = std::make_shared<Knowledge>();
      thread.knowledge->seen.resize(first_columns(options), 0);
      thread.knowledge->fenced.resize(static_cast<size_t>(options.threads), 0);
      thread.tick();
      warp.lanes[static_cast<size_t>(t % kWarpThreads)] = &thread;
      thread.state = Thread::State::kWaiting;
      wake(thread);
      start_thread(thread);
      ++unfinished_;
    }
  }
  shuffle_priorities();
}

Machine::~Machine() {
  stopping_ = true;
  for (Block& block : blocks_) {
    for (Thread& thread : block.threads) {
      if (thread.state != Thread::State::kDone) enter(thread);
    }
  }
}

void Machine::start_thread(Thread& thread) {
  thread.fiber = boost::context::fiber(
      std::allocator_arg, Stacks{&thread.stack}, [this, &thread](boost::context::fiber&& scheduler) {
        thread.scheduler = std::move(scheduler);
#ifdef __SANITIZE_ADDRESS__
        __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack.bottom, &scheduler_stack.size);
#endif
        try {
          if (!stopping_) {
            kernel_();
            finish_thread(thread);
          }
        } catch (const Unwind&) {
        } catch (...) {
          if (!error_) error_ = std::current_exception();
        }
        thread.state = Thread::State::kDone;
#ifdef __SANITIZE_ADDRESS__
        __sanitizer_start_switch_fiber(nullptr, scheduler_stack.bottom, scheduler_stack.size);
#endif
        return std::move(thread.scheduler);
      });
}

void Machine::enter(Thread& thread) {
  switch_stacks({static_cast<char*>(thread.stack.sp) - thread.stack.size, thread.stack.size},
                [&] { thread.fiber = std::move(thread.fiber).resume(); });
}

void Machine::leave(Thread& thread) {
  switch_stacks(scheduler_stack, [&] { thread.scheduler = std::move(thread.scheduler).resume(); });
  if (stopping_) throw Unwind{};
}

Counters Machine::run() {
  while (unfinished_ > 0 || !events_.empty()) {
    if (runnable_.empty() && events_.empty() && !polling_.empty() && ++idle_polls_ < kMaxIdlePolls) {
      wake_all(polling_);
    }
    if (runnable_.empty() && events_.empty()) report_deadlock();
    const bool event = !events_.empty() && (runnable_.empty() || (late_one_in_ != 0 && draw(late_one_in_) == 0));
    if (event) {
      const size_t i = draw(events_.size());
      std::function<bool()> step = std::move(events_[i]);
      events_[i] = std::move(events_.back());
      events_.pop_back();
      idle_polls_ = 0;
      if (!step()) events_.push_back(std::move(step));
    } else {
      run_warp(choose_warp());
    }
  }
  check_end();
  return std::move(counters);
}

void Machine::shuffle_priorities() {
  for (size_t i = 0; i < warps_.size(); ++i) {
    warps_[i]->priority = static_cast<int>(i);
    std::swap(warps_[i]->priority, warps_[draw(i + 1)]->priority);
  }
}

Warp& Machine::choose_warp() {
  if (!by_priority_) return *runnable_[draw(runnable_.size())];
  if (draw(64) == 0) shuffle_priorities();
  return **std::max_element(runnable_.begin(), runnable_.end(),
                            [](const Warp* a, const Warp* b) { return a->priority < b->priority; });
}

void Machine::run_warp(Warp& warp) {
  const size_t first = draw(kWarpThreads);
  for (size_t i = 0; i < kWarpThreads; ++i) {
    Thread& thread = *warp.lanes[(first + i) % kWarpThreads];
    if (thread.state == Thread::State::kRunnable) run_thread(thread);
  }
}

void Machine::run_thread(Thread& thread) {
  running = &thread;
  enter(thread);
  running = nullptr;
  if (error_) std::rethrow_exception(error_);
  if (thread.state == Thread::State::kRunnable) return;
  if (thread.state == Thread::State::kDone) --unfinished_;
  Warp& warp = *thread.warp;
  if (--warp.runnable == 0) {
    const auto at = std::find(runnable_.begin(), runnable_.end(), &warp);
    *at = runnable_.back();
    runnable_.pop_back();
  }
}

void Machine::block(Thread::Wait wait, Site site, int64_t waits_for, int64_t phase) {
  Thread& thread = *running;
  thread.state = Thread::State::kWaiting;
  thread.wait = wait;
  thread.site = site;
  thread.waits_for = waits_for;
  thread.waits_phase = phase;
  leave(thread);
}

void Machine::wake(Thread& thread) {
  if (thread.state != Thread::State::kWaiting) return;
  thread.state = Thread::State::kRunnable;
  if (thread.warp->runnable++ == 0) runnable_.push_back(thread.warp);
}

void Machine::wake_all(std::vector<Thread*>& threads) {
  for (Thread* thread : threads) wake(*thread);
  threads.clear();
}

void Machine::poll(Site site) {
  polling_.push_back(running);
  block(Thread::Wait::kPoll, site);
}

void Machine::later(std::function<bool()> step) { events_.push_back(std::move(step)); }

void Machine::global_written() {
  idle_polls_ = 0;
  wake_all(polling_);
}

void Machine::check_global(const void* begin, size_t bytes, bool write, const char* name, Site site) const {
  const GlobalMemory::Buffer* buffer = memory_.find(begin, bytes);
  if (buffer == nullptr) {
    fail(std::string(name) + (write ? " writes " : " reads ") + std::to_string(bytes) +
             " bytes of global memory outside the registered buffers",
         site);
  }
  if (write && !buffer->writable) fail(std::string(name) + " writes the input " + buffer->name, site);
}

void GlobalMemory::add(void* begin, size_t bytes, std::string name) { insert(begin, bytes, true, std::move(name)); }
void GlobalMemory::add(const void* begin, size_t bytes, std::string name) {
  insert(begin, bytes, false, std::move(name));
}
void GlobalMemory::insert(const void* begin, size_t bytes, bool writable, std::string name) {
  if (bytes == 0) return;
  const auto address = reinterpret_cast<uintptr_t>(begin);
  buffers_[address] = {address, address + bytes, writable, std::move(name)};
}
const GlobalMemory::Buffer* GlobalMemory::find(const void* begin, size_t bytes) const {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  auto after = buffers_.upper_bound(address);
  if (after == buffers_.begin()) return nullptr;
  const Buffer& buffer = std::prev(after)->second;
  return address + bytes <= buffer.end ? &buffer : nullptr;
}

int64_t Counters::flops() const {
  int64_t sum = 0;
  for (const auto& [columns, count] : products) sum += count * 2 * 64 * 16 * columns;
  return sum;
}
int64_t Counters::boxes_of(const void* base) const {
  return std::count_if(boxes.begin(), boxes.end(), [&](const BoxLoad& box) { return box.base == base; });
}

Counters emulate(const LaunchOptions& options, const GlobalMemory& memory, const std::function<void()>& kernel) {
  if (machine != nullptr) throw std::logic_error("emulate: called from within a kernel");
  Machine here(options, memory, kernel);
  struct Current {
    explicit Current(Machine* current) { machine = current; }
    ~Current() {
      machine = nullptr;
      running = nullptr;
    }
  } current(&here);
  return here.run();
}

}  // namespace prulong::kernels::device::emulation
