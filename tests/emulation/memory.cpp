// SPDX-License-Identifier: MIT
#include "csrc/hopper/device/memory.h"

#include <algorithm>
#include <cstring>

#include "csrc/hopper/device/arithmetic.h"
#include "csrc/hopper/device/thread.h"
#include "tests/emulation/machine.h"

namespace prulong::kernels::device {
namespace emulation {
namespace {
uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

uint16_t round_to_bfloat16(uint32_t bits) {
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

uint16_t round_to_float16(uint32_t bits) {
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 2^16 and above
  if (magnitude < 0x38800000u) {                                               // below 2^-14: multiples of 2^-24
    const float scaled = float_of(magnitude) * 0x1p24f;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(scaled)));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13);
}

float widen_float16(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 0x3ffu;
  if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

uint32_t& word(Word4& words, int i) { return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w; }

/// Moves the four 8x8 matrices between the lanes' words and rows in shared memory.
template <bool kStore, bool kTransposed>
void move_matrices(Warp& warp, Site site) {
  SharedMemory& shared = warp.block->shared;
  const char* name = kStore ? "store_matrices" : "load_matrices";
  for (size_t lane = 0; lane < kWarpThreads; ++lane) {
    const Thread& thread = *warp.lanes[lane];
    const Shared row = warp.call.address[lane];
    machine->require(shared.check_place(row, 16, 16), name, site, &thread);
    const Actor actor = thread.actor(site);
    machine->require(kStore ? shared.enter_write(row, 16, actor) : shared.enter_read(row, 16, actor), name, site,
                     &thread);
  }
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int row = 0; row < 8; ++row) {
      for (int column = 0; column < 8; ++column) {
        const int major = kTransposed ? column : row, minor = kTransposed ? row : column;
        const auto lane = static_cast<size_t>(4 * major + minor / 2);
        const auto row_lane = static_cast<size_t>(8 * matrix + row);
        uint8_t* element = shared.at(warp.call.address[row_lane]) + 2 * column;
        uint8_t* held = reinterpret_cast<uint8_t*>(&word(kStore ? warp.call.in[lane] : warp.call.out[lane], matrix)) +
                        2 * (minor % 2);
        std::memcpy(kStore ? element : held, kStore ? held : element, 2);
      }
    }
  }
}
}  // namespace

uint16_t round_element(ElementType type, float x) {
  return type == ElementType::kBFloat16 ? round_to_bfloat16(bits_of(x)) : round_to_float16(bits_of(x));
}
float widen_element(ElementType type, uint16_t bits) {
  return type == ElementType::kBFloat16 ? float_of(uint32_t{bits} << 16) : widen_float16(bits);
}

void read_shared(void* to, Shared from, size_t bytes, Site site) {
  SharedMemory& shared = running->block->shared;
  machine->require(shared.check_place(from, bytes, bytes), "load_shared:", site);
  machine->require(shared.enter_read(from, bytes, running->actor(site)), "load_shared", site);
  std::memcpy(to, shared.at(from), bytes);
}
void write_shared(Shared to, const void* from, size_t bytes, Site site) {
  if (machine->omits("store_shared", site)) return;
  SharedMemory& shared = running->block->shared;
  machine->require(shared.check_place(to, bytes, bytes), "store_shared:", site);
  machine->require(shared.enter_write(to, bytes, running->actor(site)), "store_shared", site);
  std::memcpy(shared.at(to), from, bytes);
}

namespace {
void check_aligned(const void* address, size_t bytes, const char* name, Site site) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    machine->fail(std::string(name) + ": global address not aligned to " + std::to_string(bytes) + " bytes", site);
  }
}
}  // namespace

void read_global(void* to, const void* from, size_t bytes, Site site) {
  check_aligned(from, bytes, "load_global", site);
  machine->check_global(from, bytes, false, "load_global", site);
  std::memcpy(to, from, bytes);
}
void write_global(void* to, const void* from, size_t bytes, Site site) {
  if (machine->omits("store_global", site)) return;
  check_aligned(to, bytes, "store_global", site);
  machine->check_global(to, bytes, true, "store_global", site);
  std::memcpy(to, from, bytes);
  machine->global_written();
}

Word4 call_together(const char* name, Site site, Shared address, Word4 in, void (*complete)(Warp& warp, Site site)) {
  Thread& thread = *running;
  Warp& warp = *thread.warp;
  WarpCall& call = warp.call;
  const auto lane = static_cast<size_t>(thread.index % kWarpThreads);
  if (call.arrived == 0) {
    call.name = name;
    call.site = site;
  } else if (std::strcmp(call.name, name) != 0) {
    machine->fail(
        std::string(name) + " is called while other lanes of the warp call " + call.name + " at " + text(call.site),
        site);
  }
  call.address[lane] = address;
  call.in[lane] = in;
  if (++call.arrived < kWarpThreads) {
    machine->block(Thread::Wait::kWarp, site);
  } else {
    call.arrived = 0;
    complete(warp, site);
    for (Thread* other : warp.lanes) {
      if (other != &thread) machine->wake(*other);
    }
  }
  return call.out[lane];
}

void converge(const char* name, Site site) {
  call_together(name, site, 0, {}, [](Warp&, Site) {});
}

int launched_registers(int threads) { return std::min(65536 / threads / 8 * 8, 248); }

void set_registers(int registers, bool increase, Site site) {
  const char* name = increase ? "increase_registers" : "decrease_registers";
  if (registers < 24 || registers > 240 || registers % 8 != 0) {
    machine->fail(std::string(name) + ": expected a multiple of 8 from 24 to 240, not " + std::to_string(registers),
                  site);
  }
  converge(name, site);
  Warpgroup& group = warpgroup_of(*running, name, site);
  if (group.register_calls++ % kWarpgroupThreads == 0) {
    const int before = group.registers != 0 ? group.registers : launched_registers(machine->options.threads);
    if (increase ? registers < before : registers > before) {
      machine->fail(std::string(name) + ": from " + std::to_string(before) + " to " + std::to_string(registers), site);
    }
    group.registers = registers;
    group.register_site = site;
  }
  if (group.registers != registers) {
    machine->fail(std::string(name) + ": the warpgroup's other threads set " + std::to_string(group.registers) +
                      " registers at " + text(group.register_site),
                  site);
  }
}

Warpgroup& warpgroup_of(const Thread& thread, const char* name, Site site) {
  if (thread.warpgroup == nullptr) {
    machine->fail(std::string(name) + ": the block is no multiple of 128 threads", site);
  }
  return *thread.warpgroup;
}
}  // namespace emulation

using emulation::call_together;
using emulation::machine;
using emulation::running;

int thread_index() { return running->index; }
int block_index() { return running->block->index; }
int block_count() { return machine->options.blocks; }
Shared shared_memory() { return emulation::SharedMemory::kBegin; }
int warp_index() { return running->index / kWarpThreads; }
int lane_index() { return running->index % kWarpThreads; }
int warpgroup_index(Site site) { return shuffle(running->index / kWarpgroupThreads, 0, site); }

bool elect_one(Site site) {
  emulation::converge("elect_one", site);
  return running->warp->elected == lane_index();
}

float shuffle_xor(float value, int mask, Site site) {
  const auto result = call_together("shuffle_xor", site, static_cast<Shared>(mask),
                                    {emulation::bits_of(value), 0, 0, 0}, [](emulation::Warp& warp, Site) {
                                      for (size_t lane = 0; lane < kWarpThreads; ++lane) {
                                        warp.call.out[lane] =
                                            warp.call.in[(lane ^ warp.call.address[lane]) % kWarpThreads];
                                      }
                                    });
  return emulation::float_of(result.x);
}

int shuffle(int value, int lane, Site site) {
  const auto result = call_together("shuffle", site, static_cast<Shared>(lane), {static_cast<uint32_t>(value), 0, 0, 0},
                                    [](emulation::Warp& warp, Site) {
                                      for (size_t i = 0; i < kWarpThreads; ++i) {
                                        warp.call.out[i] = warp.call.in[warp.call.address[i] % kWarpThreads];
                                      }
                                    });
  return static_cast<int>(result.x);
}

bool any(bool value, Site site) {
  const auto result = call_together("any", site, 0, {value, 0, 0, 0}, [](emulation::Warp& warp, Site) {
    uint32_t all = 0;
    for (const Word4& in : warp.call.in) all |= in.x;
    for (Word4& out : warp.call.out) out.x = all;
  });
  return result.x != 0;
}

void store_matrices(Shared row, Word4 words, Site site) {
  call_together("store_matrices", site, row, words, emulation::move_matrices<true, false>);
}
void store_matrices_transposed(Shared row, Word4 words, Site site) {
  call_together("store_matrices_transposed", site, row, words, emulation::move_matrices<true, true>);
}
Word4 load_matrices(Shared row, Site site) {
  return call_together("load_matrices", site, row, {}, emulation::move_matrices<false, false>);
}
Word4 load_matrices_transposed(Shared row, Site site) {
  return call_together("load_matrices_transposed", site, row, {}, emulation::move_matrices<false, true>);
}

int fetch_add(int* address, int value, Site site) {
  emulation::check_aligned(address, 4, "fetch_add", site);
  machine->check_global(address, 4, true, "fetch_add", site);
  const int before = *address;
  *address = before + value;
  machine->global_written();
  return before;
}

int fetch_add_ordered(int* address, int value, Site site) { return fetch_add(address, value, site); }

int load_acquire(const int* address, Site site) {
  emulation::check_aligned(address, 4, "load_acquire", site);
  machine->check_global(address, 4, false, "load_acquire", site);
  if (running->polled == address && running->polled_value == *address) machine->poll(site);
  running->polled = address;
  running->polled_value = *address;
  return *address;
}

void add_release(int* address, int value, Site site) { fetch_add(address, value, site); }

}  // namespace prulong::kernels::device
