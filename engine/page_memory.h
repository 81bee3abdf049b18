// SPDX-License-Identifier: MIT
#pragma once

#include <c10/core/Device.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace prulong {

/// A range of addresses that never changes, whose memory comes from the system piece by piece. So what lies in it grows
/// without being copied, and what is no longer needed goes back.
class PageMemory {
 public:
  /// Reserves addresses, no memory. Pieces are of 2 MiB, on a GPU of what its driver deals in or, for a GiB and more,
  /// at least 16 MiB; a CPU's range below 2 MiB is one piece.
  /// @throws Error if the system has not so many addresses, or the device cannot be used.
  static std::shared_ptr<PageMemory> reserve(int64_t bytes, c10::Device device);

  PageMemory(const PageMemory&) = delete;
  PageMemory& operator=(const PageMemory&) = delete;
  virtual ~PageMemory() = default;

  std::byte* data() const { return data_; }
  /// Bytes of a piece, and how many there are.
  int64_t piece_bytes() const { return piece_bytes_; }
  int64_t pieces() const { return static_cast<int64_t>(taken_.size()); }

  /// Bytes of the pieces taken.
  int64_t taken_bytes() const { return taken_bytes_; }
  bool taken(int64_t piece) const { return taken_[static_cast<size_t>(piece)]; }

  /// Takes a piece's memory, unless it is taken. What is in it is undefined.
  /// @throws Error if the system has none left, with need and room.
  void take(int64_t piece);
  /// Makes sure that there is room for so many more bytes where the system itself would notice too late: a CPU's gives
  /// memory when it is written to, or else ends the process.
  /// @throws Error if there is not, with need and room.
  virtual void check_room(int64_t /*bytes*/) {}
  /// Gives a piece's memory back, if it is taken. A GPU finishes all its work first.
  void give_back(int64_t piece);

 protected:
  PageMemory() = default;
  void set_range(std::byte* data, int64_t piece_bytes, int64_t pieces);

 private:
  virtual void map(int64_t piece) = 0;
  virtual void unmap(int64_t piece) = 0;

  std::byte* data_ = nullptr;
  int64_t piece_bytes_ = 0, taken_bytes_ = 0;
  std::vector<bool> taken_;
};

/// The two kinds; PageMemory::reserve chooses.
std::shared_ptr<PageMemory> reserve_host_memory(int64_t bytes);
std::shared_ptr<PageMemory> reserve_cuda_memory(int64_t bytes, c10::Device device);

}  // namespace prulong
