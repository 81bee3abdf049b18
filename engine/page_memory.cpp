// SPDX-License-Identifier: MIT
#include "engine/page_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>

#include "common/error.h"
#include "common/host_memory.h"

namespace prulong {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

int64_t rounded_up(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

class HostMemory : public PageMemory {
 public:
  explicit HostMemory(int64_t bytes) {
    const int64_t system_page = ::sysconf(_SC_PAGESIZE);
    const bool huge = bytes >= kHugePage;
    const int64_t piece = huge ? std::max(kHugePage, system_page) : rounded_up(bytes, system_page);
    const int64_t range = rounded_up(bytes, piece);
    mapped_bytes_ = static_cast<size_t>(range + (huge ? piece : 0));  // with room to begin at a huge page
    mapped_ =
        ::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped_ == MAP_FAILED) {
      throw Error("kv cache: no addresses for " + std::to_string(range) + " bytes of keys or values (" +
                  std::generic_category().message(errno) + "); ask for a smaller cache");
    }
    const auto start = reinterpret_cast<uintptr_t>(mapped_);
    const auto offset =
        huge ? (static_cast<uintptr_t>(piece) - start % static_cast<uintptr_t>(piece)) % static_cast<uintptr_t>(piece)
             : 0;
    set_range(static_cast<std::byte*>(mapped_) + offset, piece, range / piece);
    if (huge) ::madvise(data(), static_cast<size_t>(range), MADV_HUGEPAGE);  // faster; works without
  }
  ~HostMemory() override { ::munmap(mapped_, mapped_bytes_); }

  void check_room(int64_t bytes) override {
    if (bytes <= granted_) {
      granted_ -= bytes;
      return;
    }
    const int64_t room = available_host_bytes();
    if (bytes > room) {
      throw Error("kv cache: " + std::to_string(bytes) + " more bytes of memory are needed, " + std::to_string(room) +
                  " are left on this machine; ask for a smaller cache");
    }
    constexpr int64_t kShare = 8;  // of what is left: others take memory too
    granted_ = (room - bytes) / kShare;
  }

 private:
  void map(int64_t) override {}
  void unmap(int64_t piece) override {
    ::madvise(data() + piece * piece_bytes(), static_cast<size_t>(piece_bytes()), MADV_DONTNEED);
  }

  int64_t granted_ = int64_t{16} << 20;  ///< bytes to take before asking again, which costs more than a few of them
  void* mapped_ = nullptr;
  size_t mapped_bytes_ = 0;
};

}  // namespace

std::shared_ptr<PageMemory> PageMemory::reserve(int64_t bytes, c10::Device device) {
  return device.is_cuda() ? reserve_cuda_memory(bytes, device) : reserve_host_memory(bytes);
}

std::shared_ptr<PageMemory> reserve_host_memory(int64_t bytes) { return std::make_shared<HostMemory>(bytes); }

void PageMemory::set_range(std::byte* data, int64_t piece_bytes, int64_t pieces) {
  data_ = data;
  piece_bytes_ = piece_bytes;
  taken_.assign(static_cast<size_t>(pieces), false);
}

void PageMemory::take(int64_t piece) {
  if (taken(piece)) return;
  map(piece);
  taken_[static_cast<size_t>(piece)] = true;
  taken_bytes_ += piece_bytes_;
}

void PageMemory::give_back(int64_t piece) {
  if (!taken(piece)) return;
  unmap(piece);
  taken_[static_cast<size_t>(piece)] = false;
  taken_bytes_ -= piece_bytes_;
}

}  // namespace prulong
