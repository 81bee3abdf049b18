// SPDX-License-Identifier: MIT
#include "csrc/hopper/schedule.h"

#include "csrc/hopper/schedule_plan.h"

namespace prulong::kernels {
namespace {

// Bytes of the L2 cache that the keys and values, or the queries, of a section may take: well below the 50 to 60 MB
// that there are.
constexpr int64_t kSectionBytes = int64_t{32} << 20;

// Key items that a section has at least, where there are as many: about as many as multiprocessors. The longest item of
// the last section is taken when the sections before run dry; were sections small, all others would wait for it.
constexpr int64_t kSectionItems = 128;

// `least`: heads of a section whatever their bytes.
int section_heads(int64_t bytes_per_head, int heads, int64_t least = 1) {
  const int64_t fitting = kSectionBytes / (bytes_per_head > 0 ? bytes_per_head : 1);
  const int64_t wanted = fitting < least ? least : fitting;
  return static_cast<int>(wanted > heads ? heads : wanted);
}

// Pieces of memory one after another, each aligned to 16 bytes.
class BumpAllocator {
 public:
  explicit BumpAllocator(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}
  template <class T>
  T* take(int64_t count) {
    T* taken = memory_ != nullptr ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
    return taken;
  }
  size_t used() const { return used_; }

 private:
  unsigned char* memory_;
  size_t used_ = 0;
};

Schedule lay_out(const Batch& batch, const ScheduleOptions& options, BumpAllocator* memory) {
  Schedule schedule = {};
  schedule.batch = batch;
  schedule.query_rows = options.query_rows;
  const int64_t k_bytes = int64_t{batch.k_tokens} * batch.head_dim * 2 * 2;              // K and V
  const int64_t q_bytes = int64_t{batch.q_tokens} * batch.group() * batch.head_dim * 8;  // Q, dO and dQ's sums
  schedule.q_section = section_heads(k_bytes, batch.kv_heads);
  const int64_t k_blocks = detail::divide_up(batch.k_tokens > 0 ? batch.k_tokens : 1, kKeyBlock);
  schedule.k_section = section_heads(q_bytes, batch.kv_heads, (kSectionItems + k_blocks - 1) / k_blocks);
  schedule.processors = options.processors;
  const int64_t q_places = batch.q_tokens / options.query_rows + batch.documents;
  const int64_t k_places = batch.k_tokens / kKeyBlock + batch.documents;
  schedule.state = memory->take<ScheduleState>(1);
  schedule.heads = memory->take<int>(2 * int64_t{batch.kv_heads});
  schedule.query_tiles = memory->take<Tile>(q_places);
  // Cutting adds at most partial_capacity tiles, whatever the heads.
  schedule.long_tiles =
      options.processors > 0 ? memory->take<Tile>(q_places + partial_capacity(schedule)) : schedule.query_tiles;
  if (options.with_keys) schedule.key_tiles = memory->take<Tile>(k_places);
  schedule.buckets = memory->take<int>(detail::divide_up(batch.k_tokens, kKeyBlock));
  return schedule;
}

// A crew of one.
struct Alone {
  static int rank() { return 0; }
  static int size() { return 1; }
  static void sync() {}
  static int add(int* at, int value) {
    const int before = *at;
    *at += value;
    return before;
  }
  static int64_t sum_before(int64_t value, int64_t* total) {
    *total = value;
    return 0;
  }
};

}  // namespace

size_t schedule_bytes(const Batch& batch, const ScheduleOptions& options) {
  BumpAllocator counting(nullptr);
  lay_out(batch, options, &counting);
  return counting.used();
}

Schedule make_schedule(const Batch& batch, const ScheduleOptions& options, void* memory) {
  BumpAllocator allocator(memory);
  return lay_out(batch, options, &allocator);
}

// A cut tile has less than twice as many pieces as shares of the work.
int partial_capacity(const Schedule& schedule) { return 2 * detail::kShares * schedule.processors; }

void plan_on_host(const Schedule& schedule) {
  Alone crew;
  detail::make_plan(schedule, crew);
}

}  // namespace prulong::kernels
