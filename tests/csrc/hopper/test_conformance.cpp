// SPDX-License-Identifier: MIT
#include <cstdlib>
#include <deque>
#include <memory>

#include "tests/csrc/hopper/conformance.h"
#include "tests/emulation/emulator.h"
#include "tests/support/catch.h"

using namespace prulong::kernels;
using conformance::Arguments;

namespace {

/// The emulation, as conformance.h wants it.
class EmulatedMachine {
 public:
  explicit EmulatedMachine(uint64_t seed) : seed_(seed) {}

  template <class T>
  const T* input(const std::vector<T>& values) {
    T* const data = place(values);
    memory_.add(static_cast<const void*>(data), values.size() * sizeof(T), "input");
    return data;
  }
  template <class T>
  T* output(const std::vector<T>& values) {
    T* const data = place(values);
    memory_.add(static_cast<void*>(data), values.size() * sizeof(T), "output");
    return data;
  }
  template <class T>
  T* output(size_t count) {
    std::vector<T> values(count);
    std::memset(values.data(), 0xff, count * sizeof(T));
    return output(values);
  }
  template <class T>
  std::vector<T> contents(const T* data, size_t count) const {
    return {data, data + count};
  }
  device::TensorMap map(const void* base, int element_bytes, const std::array<int64_t, 3>& extent,
                        const std::array<int64_t, 2>& stride, const std::array<int32_t, 3>& box, bool swizzle) const {
    return device::emulation::make_tensor_map(base, element_bytes, extent, stride, box, swizzle);
  }
  template <class Kernel>
  void launch(const Arguments& arguments) {
    device::emulation::emulate({Kernel::kBlocks, Kernel::kThreads, Kernel::kSharedBytes, seed_}, memory_,
                               [&] { Kernel::run(arguments); });
  }
  void report(const std::string& name, double error, double tolerance) {
    CAPTURE(name, seed_);
    CHECK(error <= tolerance);
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  template <class T>
  T* place(const std::vector<T>& values) {
    const size_t bytes = (values.size() * sizeof(T) + 127) / 128 * 128;
    buffers_.emplace_back(std::aligned_alloc(128, bytes));
    std::memcpy(buffers_.back().get(), values.data(), values.size() * sizeof(T));
    return static_cast<T*>(buffers_.back().get());
  }

  uint64_t seed_;
  std::deque<std::unique_ptr<void, Free>> buffers_;
  device::emulation::GlobalMemory memory_;
};

}  // namespace

namespace prulong::kernels::conformance {

template <class Check>
void on_machines(Check check) {
  constexpr uint64_t kSeeds = 6;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Random random(static_cast<uint32_t>(seed));
    EmulatedMachine machine(seed);
    check(machine, random);
  }
}

}  // namespace prulong::kernels::conformance

#include "tests/csrc/hopper/conformance_cases.h"
