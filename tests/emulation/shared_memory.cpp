// SPDX-License-Identifier: MIT
#include "tests/emulation/shared_memory.h"

#include <algorithm>
#include <cstdio>

namespace prulong::kernels::device::emulation {

std::string text(Site site) {
  const std::string file = site.file;
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(site.line);
}

std::string hexadecimal(uint64_t value) {
  char buffer[20];
  std::snprintf(buffer, sizeof(buffer), "0x%llx", static_cast<unsigned long long>(value));
  return buffer;
}

namespace {
void raise_to(std::vector<uint32_t>& to, const std::vector<uint32_t>& from) {
  if (to.size() < from.size()) to.resize(from.size(), 0);
  uint32_t* a = to.data();
  const uint32_t* b = from.data();
  for (size_t i = 0; i < from.size(); ++i) a[i] = a[i] < b[i] ? b[i] : a[i];
}
}  // namespace

void Knowledge::join(const Knowledge& other) {
  raise_to(seen, other.seen);
  raise_to(fenced, other.fenced);
}

void Knowledge::see(uint32_t column, uint32_t clock) {
  if (seen.size() <= column) seen.resize(column + 1, 0);
  seen[column] = std::max(seen[column], clock);
}

SharedMemory::SharedMemory(int bytes)
    : bytes_(static_cast<size_t>(bytes), uint8_t{0xff}), words_(static_cast<size_t>(bytes + 3) / 4) {}

std::string SharedMemory::check_place(Shared begin, size_t bytes, size_t alignment) const {
  if (begin < kBegin || begin + bytes > kBegin + bytes_.size()) {
    return std::to_string(bytes) + " bytes at shared " + hexadecimal(begin) + " lie outside the block's " +
           std::to_string(bytes_.size()) + " bytes, which start at " + hexadecimal(kBegin);
  }
  if (begin % alignment != 0) {
    return "shared " + hexadecimal(begin) + " is not aligned to " + std::to_string(alignment) + " bytes";
  }
  return {};
}

std::string SharedMemory::enter_read(Shared begin, size_t bytes, const Actor& actor) {
  Word* word = words(begin);
  for (Shared address = begin; address < begin + bytes; address += 4, ++word) {
    const Access& write = word->write;
    if (word->kind == Kind::kUnwritten) return "reads shared " + hexadecimal(address) + ", which nothing has written";
    if (word->kind == Kind::kBarrier) return "reads shared " + hexadecimal(address) + ", which is a barrier";
    if (!actor.knows.has_seen(write.column, write.clock)) {
      return "reads shared " + hexadecimal(address) + ", but nothing orders it after the write of " + text(write.site) +
             (word->in_flight ? ", which is still on its way" : "");
    }
    if (actor.asynchronous && word->kind == Kind::kOrdinary && !actor.knows.has_fenced(write.column, write.clock)) {
      return "reads shared " + hexadecimal(address) + ", which " + text(write.site) +
             " wrote without fence_async_proxy between that write and the barrier before this";
    }
    const auto known = std::find_if(word->reads.begin(), word->reads.end(),
                                    [&](const Access& read) { return read.column == actor.column; });
    if (known == word->reads.end()) {
      word->reads.push_back({actor.column, actor.clock, actor.site});
    } else {
      *known = {actor.column, actor.clock, actor.site};
    }
  }
  return {};
}

std::string SharedMemory::enter_write(Shared begin, size_t bytes, const Actor& actor) {
  Word* word = words(begin);
  for (Shared address = begin; address < begin + bytes; address += 4, ++word) {
    const Access& write = word->write;
    if (word->kind == Kind::kBarrier) return "writes shared " + hexadecimal(address) + ", which is a barrier";
    if (word->kind != Kind::kUnwritten) {
      if (!actor.knows.has_seen(write.column, write.clock)) {
        return "writes shared " + hexadecimal(address) + ", but nothing orders it after the write of " +
               text(write.site) + (word->in_flight ? ", which is still on its way" : "");
      }
      if (actor.asynchronous && word->kind == Kind::kOrdinary && !actor.knows.has_fenced(write.column, write.clock)) {
        return "writes shared " + hexadecimal(address) + ", which " + text(write.site) +
               " wrote without fence_async_proxy between that write and the barrier before this";
      }
    }
    for (const Access& read : word->reads) {
      if (!actor.knows.has_seen(read.column, read.clock)) {
        return "writes shared " + hexadecimal(address) + ", but nothing orders it after the read of " + text(read.site);
      }
    }
    word->kind = actor.asynchronous ? Kind::kAsynchronous : Kind::kOrdinary;
    word->write = {actor.column, actor.clock, actor.site};
    word->reads.clear();
  }
  return {};
}

void SharedMemory::set_in_flight(Shared begin, size_t bytes, bool in_flight) {
  Word* word = words(begin);
  for (size_t i = 0; i < bytes / 4; ++i) word[i].in_flight = in_flight;
}

void SharedMemory::make_barrier(Shared begin) {
  Word* word = words(begin);
  word[0].kind = word[1].kind = Kind::kBarrier;
}

}  // namespace prulong::kernels::device::emulation
