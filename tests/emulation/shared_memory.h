// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/hopper/device/platform.h"

namespace prulong::kernels::device::emulation {

/// "file.h:12".
std::string text(Site site);
std::string hexadecimal(uint64_t value);

/// What a thread knows to have happened: a vector clock. Columns 0 .. threads - 1 are the threads' own; further ones
/// stand for what acts by itself: a warpgroup's products, a thread's bulk stores, a barrier's bulk loads.
struct Knowledge {
  std::vector<uint32_t> seen;    // by column: what it did up to this clock comes before what follows
  std::vector<uint32_t> fenced;  // by thread: its ordinary writes up to this clock are visible to asynchronous reads

  void join(const Knowledge& other);
  bool has_seen(uint32_t column, uint32_t clock) const { return column < seen.size() && seen[column] >= clock; }
  bool has_fenced(uint32_t column, uint32_t clock) const { return column < fenced.size() && fenced[column] >= clock; }
  void see(uint32_t column, uint32_t clock);
};

/// One access to shared memory as its word remembers it.
struct Access {
  uint32_t column, clock;
  Site site;
};

/// Who accesses, and what it knows.
struct Actor {
  const Knowledge& knows;
  uint32_t column, clock;
  Site site;
  bool asynchronous;  // wgmma and bulk copies
};

/// A block's shared memory and, for every 4 bytes of it, who wrote and read it last. An access that nothing orders
/// after the accesses it depends on is refused, whether or not this schedule shows the difference.
class SharedMemory {
 public:
  explicit SharedMemory(int bytes);

  static constexpr Shared kBegin = 1024;  // the system's own part lies below

  /// Empty if all is well, else what is wrong with the place.
  std::string check_place(Shared begin, size_t bytes, size_t alignment) const;
  /// Enters a read or write of 4-byte words and returns what is wrong with it, else empty. The place must be checked.
  std::string enter_read(Shared begin, size_t bytes, const Actor& actor);
  std::string enter_write(Shared begin, size_t bytes, const Actor& actor);
  /// Marks what an asynchronous write has entered but not written yet.
  void set_in_flight(Shared begin, size_t bytes, bool in_flight);
  /// Gives the words to an mbarrier: ordinary accesses are errors from here on.
  void make_barrier(Shared begin);

  uint8_t* at(Shared address) { return bytes_.data() + (address - kBegin); }

 private:
  enum class Kind : uint8_t { kUnwritten, kOrdinary, kAsynchronous, kBarrier };
  struct Word {
    Kind kind = Kind::kUnwritten;
    bool in_flight = false;
    Access write = {};
    std::vector<Access> reads;  // since the write; one per column
  };
  Word* words(Shared begin) { return words_.data() + (begin - kBegin) / 4; }

  std::vector<uint8_t> bytes_;
  std::vector<Word> words_;
};

}  // namespace prulong::kernels::device::emulation
