// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>

#include "csrc/hopper/device/arithmetic.h"
#include "csrc/hopper/device/wgmma.h"
#include "tests/emulation/machine.h"

namespace prulong::kernels::device {
namespace emulation {
namespace {
constexpr int kRows = 64, kDepth = 16, kMaxColumns = 128;

/// A matrix descriptor's fields, as the instruction reads them.
struct Fields {
  Shared start;
  uint32_t leading, stride;  // bytes
  explicit Fields(Descriptor d)
      : start((d.low & 0x3fffu) << 4), leading((d.low >> 16 & 0x3fffu) << 4), stride((d.high & 0x3fffu) << 4) {}

  /// Address of the 8 elements that hold (index along M or N, k): those along k for a K-major operand, else along M/N.
  Shared chunk(Major major, int index, int k) const {
    const auto i = static_cast<uint32_t>(index), depth = static_cast<uint32_t>(k);
    const Shared plain = major == Major::kK
                             ? start + i / 8 * stride + i % 8 * 128 + depth * 2
                             : start + i / 64 * leading + depth / 8 * stride + depth % 8 * 128 + i % 64 * 2;
    return plain ^ ((plain >> 7 & 7u) << 4);
  }
};

/// Calls visit(index, k, address) for every 8 elements of an operand of `extent` rows or columns.
template <class Visit>
void for_each_chunk(Descriptor descriptor, Major major, int extent, Visit visit) {
  const Fields fields(descriptor);
  const int index_step = major == Major::kK ? 1 : 8, k_step = major == Major::kK ? 8 : 1;
  for (int k = 0; k < kDepth; k += k_step) {
    for (int index = 0; index < extent; index += index_step) visit(index, k, fields.chunk(major, index, k));
  }
}

/// The operand as out[k][index].
void fetch(SharedMemory& shared, ElementType type, Descriptor descriptor, Major major, int extent,
           float (*out)[kMaxColumns]) {
  for_each_chunk(descriptor, major, extent, [&](int index, int k, Shared address) {
    uint16_t elements[8];
    std::memcpy(elements, shared.at(address), 16);
    for (int i = 0; i < 8; ++i) {
      const float value = widen_element(type, elements[i]);
      if (major == Major::kK) {
        out[k + i][index] = value;
      } else {
        out[k][index + i] = value;
      }
    }
  });
}

/// Row and column in D [64, N] of element i of a thread's accumulator.
int row_of(int thread, int i) { return 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2); }
int column_of(int thread, int i) { return 8 * (i / 4) + 2 * (thread % 4) + i % 2; }

void run(SharedMemory& shared, Product& product) {
  static thread_local float a[kDepth][kMaxColumns], b[kDepth][kMaxColumns], d[kRows][kMaxColumns];
  if (product.a_in_registers) {
    for (int t = 0; t < kWarpgroupThreads; ++t) {
      for (int i = 0; i < 4; ++i) {
        const uint32_t word = product.words[static_cast<size_t>(t)][static_cast<size_t>(i)];
        const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (i % 2), k = 8 * (i / 2) + 2 * (t % 4);
        a[k][row] = widen_element(product.type, static_cast<uint16_t>(word));
        a[k + 1][row] = widen_element(product.type, static_cast<uint16_t>(word >> 16));
      }
    }
  } else {
    fetch(shared, product.type, product.a, product.major_a, kRows, a);
  }
  fetch(shared, product.type, product.b, product.major_b, product.columns, b);
  for (int t = 0; t < kWarpgroupThreads; ++t) {
    const float* sums = product.d[static_cast<size_t>(t)];
    for (int i = 0; i < product.columns / 2; ++i) {
      d[row_of(t, i)][column_of(t, i)] = product.accumulate ? sums[i] : 0.0f;
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int begin = 0; begin < product.columns; begin += 32) {  // constant trip counts, to be vectorised
      float sums[32];
      for (int c = 0; c < 32; ++c) sums[c] = d[row][begin + c];
      for (int k = 0; k < kDepth; ++k) {
        const float factor = a[k][row];
        const float* line = b[k] + begin;
        for (int c = 0; c < 32; ++c) sums[c] += factor * line[c];
      }
      for (int c = 0; c < 32; ++c) d[row][begin + c] = sums[c];
    }
  }
  for (int t = 0; t < kWarpgroupThreads; ++t) {
    float* sums = product.d[static_cast<size_t>(t)];
    for (int i = 0; i < product.columns / 2; ++i) sums[i] = d[row_of(t, i)][column_of(t, i)];
  }
}

/// What all threads of the warpgroup know.
const Knowledge& common_knowledge(Warpgroup& group, const Product& product) {
  if (group.last_knows == product.knows) return group.common;
  group.last_knows = product.knows;
  group.common = *product.knows[0];
  for (const auto& knowledge : product.knows) {
    const auto lower = [](std::vector<uint32_t>& to, const std::vector<uint32_t>& from) {
      to.resize(std::min(to.size(), from.size()));
      for (size_t i = 0; i < to.size(); ++i) to[i] = std::min(to[i], from[i]);
    };
    lower(group.common.seen, knowledge->seen);
    lower(group.common.fenced, knowledge->fenced);
  }
  return group.common;
}

void enter_operand(Block& block, const Actor& actor, const char* name, Descriptor descriptor, Major major, int extent) {
  if (descriptor.high >> 30 != 1 || (descriptor.high & 0x3fffc000u) != 0 || (descriptor.low & 0xc000c000u) != 0) {
    machine->fail(std::string(name) + ": a descriptor that is not of the 128-byte swizzle with base offset 0",
                  actor.site);
  }
  for_each_chunk(descriptor, major, extent, [&](int, int, Shared address) {
    machine->require(block.shared.check_place(address, 16, 16), name, actor.site);
    machine->require(block.shared.enter_read(address, 16, actor), name, actor.site);
  });
}

/// All threads have called.
void issue(Block& block, Warpgroup& group, Product& product) {
  const Actor actor = {common_knowledge(group, product), group.column, static_cast<uint32_t>(product.group) + 1,
                       product.site, true};
  if (!product.a_in_registers) {
    enter_operand(block, actor, "multiply: A", product.a, product.major_a, kRows);
  }
  enter_operand(block, actor, "multiply: B", product.b, product.major_b, product.columns);
  ++machine->counters.products[product.columns];
  product.knows = {};
}

/// Completes groups whose products have run.
void complete_groups(Warpgroup& group) {
  while (group.completed_groups < group.committed_groups &&
         group.groups[static_cast<size_t>(group.completed_groups)].products_end <= group.first_product) {
    ++group.completed_groups;
    machine->wake_all(group.waiting);
  }
}

/// Runs committed products, one at a time, later.
void schedule(Block& block, Warpgroup& group) {
  complete_groups(group);
  if (group.running || group.completed_groups == group.committed_groups) return;
  group.running = true;
  machine->later([&block, &group] {
    run(block.shared, group.products.front());
    group.products.pop_front();
    ++group.first_product;
    complete_groups(group);
    group.running = group.completed_groups < group.committed_groups;
    return !group.running;
  });
}

void use(FragmentView fragment, const char* what, Site site) {
  if (fragment.state->phase == FragmentState::Phase::kIdle) {
    machine->fail(std::string("multiply: no begin_matrices since the last ordinary access to ") + what, site);
  }
}

void multiply(const Product& call, FragmentView d, Site site) {
  Thread& thread = *running;
  Warpgroup& group = warpgroup_of(thread, "multiply", site);
  converge("multiply", site);
  use(d, "the accumulator", site);
  const int64_t index = thread.products - group.first_product;
  if (index == static_cast<int64_t>(group.products.size())) group.products.push_back(call);
  Product& product = group.products[static_cast<size_t>(index)];
  const auto bits = [](Descriptor x) { return uint64_t{x.high} << 32 | x.low; };
  if (product.type != call.type || product.columns != call.columns || bits(product.a) != bits(call.a) ||
      bits(product.b) != bits(call.b) || product.major_a != call.major_a || product.major_b != call.major_b ||
      product.a_in_registers != call.a_in_registers || product.accumulate != call.accumulate ||
      product.group != call.group || product.site.line != site.line) {
    machine->fail("multiply: the warpgroup's other threads called it with other arguments at " + text(product.site),
                  site);
  }
  FragmentState& state = *d.state;
  if (state.phase == FragmentState::Phase::kBegun) {
    state.sums.assign(d.values, d.values + d.size);
    std::fill(d.values, d.values + d.size, std::numeric_limits<float>::quiet_NaN());
  }
  state.phase = FragmentState::Phase::kInFlight;
  state.group = thread.groups;
  state.site = site;
  const auto lane = static_cast<size_t>(thread.index % kWarpgroupThreads);
  product.d[lane] = state.sums.data();
  product.words[lane] = call.words[0];
  product.knows[lane] = thread.knowledge;
  ++thread.products;
  thread.product_site = site;
  if (++product.arrived == kWarpgroupThreads) issue(*thread.block, group, product);
}
}  // namespace

void FragmentState::refuse_access() const {
  machine->fail("a fragment is accessed, copied or assigned while the product of " + text(site) +
                    " may be using it (it was not given to a wait_matrices that covers its group)",
                site);
}
void FragmentState::abandon() const noexcept {
  if (machine != nullptr && std::uncaught_exceptions() == 0) machine->report_abandoned(site);
}

void begin_matrices(const FragmentView* fragments, size_t count) {
  converge("begin_matrices", {"", 0});
  for (size_t i = 0; i < count; ++i) {
    fragments[i].state->check_access();
    fragments[i].state->phase = FragmentState::Phase::kBegun;
  }
}

void multiply(ElementType type, int columns, FragmentView d, Descriptor a, Major major_a, Descriptor b, Major major_b,
              bool accumulate, Site site) {
  multiply(Product{type, columns, a, b, major_a, major_b, false, accumulate, site, running->groups}, d, site);
}

void multiply(ElementType type, int columns, FragmentView d, FragmentView a, const uint32_t words[4], Descriptor b,
              Major major_b, bool accumulate, Site site) {
  use(a, "A's fragment", site);
  Product product{type, columns, {0, 0}, b, Major::kK, major_b, true, accumulate, site, running->groups};
  std::copy(words, words + 4, product.words[0].begin());
  a.state->phase = FragmentState::Phase::kInFlight;
  a.state->group = running->groups;
  a.state->site = site;
  multiply(product, d, site);
}

void wait_matrices(int pending, const FragmentView* fragments, size_t count) {
  Thread& thread = *running;
  Warpgroup& group = warpgroup_of(thread, "wait_matrices", {"", 0});
  converge("wait_matrices", {"", 0});
  const int64_t end = std::max<int64_t>(thread.groups - pending, 0);
  const Site site = thread.groups > 0 ? group.groups[static_cast<size_t>(thread.groups - 1)].site : Site{"", 0};
  while (group.completed_groups < end) {
    group.waiting.push_back(&thread);
    machine->block(Thread::Wait::kProducts, site, end);
  }
  if (end > 0) {
    thread.products_waited = std::max(thread.products_waited, group.groups[static_cast<size_t>(end - 1)].products_end);
    thread.own().see(group.column, static_cast<uint32_t>(end));
  }
  for (size_t i = 0; i < count; ++i) {
    FragmentState& state = *fragments[i].state;
    if (state.phase != FragmentState::Phase::kInFlight) continue;
    if (state.group >= end) {
      machine->fail("wait_matrices is given a fragment whose product at " + text(state.site) +
                        " belongs to a group that this does not wait for",
                    state.site);
    }
    if (fragments[i].values != nullptr) std::copy(state.sums.begin(), state.sums.end(), fragments[i].values);
    state.phase = FragmentState::Phase::kIdle;
  }
}
}  // namespace emulation

void commit_matrices(Site site) {
  emulation::Thread& thread = *emulation::running;
  emulation::Warpgroup& group = emulation::warpgroup_of(thread, "commit_matrices", site);
  emulation::converge("commit_matrices", site);
  const auto index = static_cast<size_t>(thread.groups++);
  if (index == group.groups.size()) group.groups.push_back({site, thread.products});
  emulation::Warpgroup::Group& own = group.groups[index];
  if (own.products_end != thread.products || own.site.line != site.line) {
    emulation::machine->fail(
        "commit_matrices: the warpgroup's other threads committed other products at " + emulation::text(own.site),
        site);
  }
  if (++own.arrived == kWarpgroupThreads) {
    ++group.committed_groups;
    emulation::schedule(*thread.block, group);
  }
}

}  // namespace prulong::kernels::device
