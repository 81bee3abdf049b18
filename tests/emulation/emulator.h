// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/hopper/device/copy.h"

/// Runs kernels written over the device layer on the host, for tests. Threads are fibers that run until they must wait;
/// who goes on is drawn from a seed; what is asynchronous on the GPU happens late; and whatever the GPU would merely
/// usually survive is an error (docs: see the headers of the device layer for the rules that are checked).
namespace prulong::kernels::device::emulation {

/// What the emulation reports: one line on what went wrong, with the lines of the kernel that took part, then block,
/// warp, lane and seed. A deadlock lists every waiting warp.
class EmulationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The global memory that a kernel may touch; anything else is an error. Kernel parameters need not be named. Buffers
/// must stay where they are until the emulation is over.
class GlobalMemory {
 public:
  struct Buffer {
    uintptr_t begin, end;
    bool writable;
    std::string name;
  };
  /// To read and write.
  void add(void* begin, size_t bytes, std::string name);
  /// To read.
  void add(const void* begin, size_t bytes, std::string name);
  template <class T>
  void add(std::vector<T>& values, std::string name) {
    add(static_cast<void*>(values.data()), values.size() * sizeof(T), std::move(name));
  }
  template <class T>
  void add(const std::vector<T>& values, std::string name) {
    add(static_cast<const void*>(values.data()), values.size() * sizeof(T), std::move(name));
  }
  /// The buffer that holds all of the bytes, or null.
  const Buffer* find(const void* begin, size_t bytes) const;

 private:
  void insert(const void* begin, size_t bytes, bool writable, std::string name);
  std::map<uintptr_t, Buffer> buffers_;  // by begin
};

struct LaunchOptions {
  int blocks = 1;        // all run at once, in turns
  int threads = 128;     // per block, a multiple of 32
  int shared_bytes = 0;  // per block, at most kMaxSharedBytes
  uint64_t seed = 0;     // decides the whole schedule
  /// Plants mistakes: of a call of the named function at a line, true leaves it out. Asked about barriers, fences,
  /// warps' meetings, stores to shared and to global memory and loads of boxes; must not change its mind.
  std::function<bool(const char* name, Site site)> omits = {};
};

/// One box that a block loaded.
struct BoxLoad {
  int block;
  const void* base;  // of the tensor
  int column, row, head;
  auto operator<=>(const BoxLoad&) const = default;
};

/// What a kernel did.
struct Counters {
  std::map<int, int64_t> products;  // wgmma m64nNk16, by N
  int64_t bytes_loaded = 0;         // by bulk copies, box parts outside the tensor included
  int64_t bytes_stored = 0;
  int64_t bytes_added = 0;
  std::vector<BoxLoad> boxes;  // in the order of their issue

  /// Multiplications and additions of all products.
  int64_t flops() const;
  /// Boxes loaded from the tensor at `base`.
  int64_t boxes_of(const void* base) const;
};

/// Runs `kernel` as every thread of the launch, to the end. Throws EmulationError. Everything, the order of all events
/// included, is a function of the arguments.
Counters emulate(const LaunchOptions& options, const GlobalMemory& memory, const std::function<void()>& kernel);

/// Map of a rank-3 tensor in host memory; extents and box in elements, strides of dimensions 1 and 2 in bytes. Throws
/// std::invalid_argument where the GPU's encoder refuses (base, strides or box out of range or not multiples of 16
/// bytes), and for a swizzled box that is not 128 bytes wide.
TensorMap make_tensor_map(const void* base, int element_bytes, const std::array<int64_t, 3>& extent,
                          const std::array<int64_t, 2>& stride_bytes, const std::array<int32_t, 3>& box, bool swizzle);

}  // namespace prulong::kernels::device::emulation
