// SPDX-License-Identifier: MIT
#include <cmath>
#include <optional>
#include <utility>

#include "csrc/hopper/device/arithmetic.h"
#include "csrc/hopper/device/barrier.h"
#include "csrc/hopper/device/copy.h"
#include "csrc/hopper/device/memory.h"
#include "csrc/hopper/device/thread.h"
#include "csrc/hopper/device/wgmma.h"
#include "tests/csrc/hopper/planted.h"
#include "tests/emulation/emulator.h"

using namespace prulong::kernels;
using namespace prulong::kernels::device;
using emulation::GlobalMemory;
using emulation::LaunchOptions;
using planted::check_reported;
using planted::planted_line;

namespace {

constexpr ElementType kBF16 = ElementType::kBFloat16;

// --- A pipeline: a producer warp loads stages of A and B [64][64], a warpgroup adds up products, stages the sum
// [64][64] as 16-bit in shared memory and stores it with a bulk copy.

enum class Mistake {
  kNone,
  kNoWaitForLoad,
  kEarlyRelease,
  kProducerParity,
  kConsumerParity,
  kNoProxyFence,
  kNoBarrierAfterFence,
  kTooFewBytes,
  kTooManyBytes,
  kWideStride,
  kNarrowStride,
  kOneArrivalTooMany,
  kNoRelease,
  kNoBarrierFence,
  kNoSyncAfterInit,
  kNoCommit,
  kNoBegin,
  kTouchAfterBegin,
  kReadInFlight,
  kCopyInFlight,
  kWrongGroup,
  kNoWaitForStore,
  kMisalignedTile,
  kLoadAfterEnd,
};

constexpr int kSteps = 5, kStages = 2;
constexpr int kTile = 64 * 128;  // bytes
constexpr int kToyShared = (2 * kStages + 1) * kTile + 1024;

struct Toy {
  TensorMap a, b, out;
};

template <Mistake kMistake>
void run_toy(const Toy& toy) {
  constexpr auto kIs = [](Mistake mistake) { return kMistake == mistake; };
  const Shared tile_a = shared_memory(), tile_b = tile_a + kStages * kTile, staged = tile_b + kStages * kTile;
  const Shared full = staged + kTile, empty = full + 8 * kStages;
  if (thread_index() == 0) {
    for (int s = 0; s < kStages; ++s) {
      init_barrier(full + 8 * s, 1);
      init_barrier(empty + 8 * s, 1);
    }
    if (!kIs(Mistake::kNoBarrierFence)) fence_barrier_init();
  }
  if (!kIs(Mistake::kNoSyncAfterInit)) sync_cta();

  if (warpgroup_index() == 0) {
    if (warp_index() != 0 || !elect_one()) return;
    for (int n = 0; n < kSteps; ++n) {
      const int s = n % kStages;
      const Shared barrier = full + 8 * s;
      if (kIs(Mistake::kProducerParity)) {
        wait(empty + 8 * s, n / kStages % 2);
      } else {
        wait(empty + 8 * s, n / kStages % 2 ^ 1);
      }
      const int bytes = kIs(Mistake::kTooFewBytes) ? kTile : kIs(Mistake::kTooManyBytes) ? 3 * kTile : 2 * kTile;
      arrive_expecting(barrier, bytes);
      if (kIs(Mistake::kMisalignedTile)) PLANT(load_box(tile_a + 128, toy.a, barrier, 0, 64 * n, 0, false));
      load_box(tile_a + s * kTile, toy.a, barrier, 0, 64 * n, 0, false);
      load_box(tile_b + s * kTile, toy.b, barrier, 0, 64 * n, 0, true);
      if (kIs(Mistake::kOneArrivalTooMany)) PLANT(arrive(barrier));
    }
    if (kIs(Mistake::kLoadAfterEnd)) {
      wait(empty + 8, 1);
      arrive_expecting(full + 8, kTile);
      PLANT(load_box(tile_a + kTile, toy.a, full + 8, 0, 0, 0, false));
    }
    return;
  }

  constexpr bool kShowsAtMultiply = kIs(Mistake::kNoWaitForLoad) || kIs(Mistake::kWideStride) ||
                                    kIs(Mistake::kNoCommit) || kIs(Mistake::kNoBegin) ||
                                    kIs(Mistake::kTouchAfterBegin) || kIs(Mistake::kReadInFlight) ||
                                    kIs(Mistake::kCopyInFlight) || kIs(Mistake::kWrongGroup);
  Accumulator<64> sum;
  std::optional<Accumulator<64>> copy;
  const auto release = [&](int s) {
    if (warp_index() == 4 && elect_one() && !kIs(Mistake::kNoRelease)) arrive(empty + 8 * s);
  };
  for (int n = 0; n < kSteps; ++n) {
    const int s = n % kStages;
    if (kIs(Mistake::kConsumerParity)) {
      wait(full + 8 * s, n / kStages % 2 ^ 1);
    } else if (!kIs(Mistake::kNoWaitForLoad)) {
      wait(full + 8 * s, n / kStages % 2);
    }
    if (!kIs(Mistake::kNoBegin)) begin_matrices(sum);
    if (kIs(Mistake::kTouchAfterBegin)) sum[0] = 0;
    Descriptor a = describe_k_major(tile_a + s * kTile);
    if (kIs(Mistake::kWideStride)) a.high = (a.high & ~0x3fffu) | 4096 >> 4;
    if (kIs(Mistake::kNarrowStride)) a.high = (a.high & ~0x3fffu) | 512 >> 4;
    const Descriptor b = describe_k_major(tile_b + s * kTile);
    for (int k = 0; k < 4; ++k) {
      if (kShowsAtMultiply) planted_line = __LINE__ + 1;
      multiply<kBF16, Major::kK, Major::kK>(sum, a.advanced(32 * k), b.advanced(32 * k), n + k > 0);
    }
    if (kIs(Mistake::kEarlyRelease)) release(s);
    if (kIs(Mistake::kNoCommit)) return;
    commit_matrices();
    if (kIs(Mistake::kReadInFlight)) sum[3] += 1;
    if (kIs(Mistake::kCopyInFlight)) copy = sum;
    if (kIs(Mistake::kWrongGroup)) {
      wait_matrices<1>(sum);
    } else {
      wait_matrices<0>(sum);
    }
    if (!kIs(Mistake::kEarlyRelease)) release(s);
  }

  const int warp = warp_index() % 4, lane = lane_index(), row = 16 * warp + lane % 16;
  for (int c = 0; c < 4; ++c) {
    uint32_t words[4];
    for (int i = 0; i < 4; ++i) words[i] = pack<kBF16>(sum[8 * c + 2 * i], sum[8 * c + 2 * i + 1]);
    const Shared at = staged + row * 128 + ((2 * c + lane / 16) ^ (row % 8)) * 16;
    if (kIs(Mistake::kNoProxyFence) || kIs(Mistake::kNoBarrierAfterFence)) planted_line = __LINE__ + 1;
    store_matrices(at, {words[0], words[1], words[2], words[3]});
  }
  if (!kIs(Mistake::kNoProxyFence)) fence_async_proxy();
  if (!kIs(Mistake::kNoBarrierAfterFence)) sync_named(1, kWarpgroupThreads);
  if (warp == 0 && elect_one()) {
    store_box(toy.out, staged, 0, 0, 0);
    commit_stores();
    if (!kIs(Mistake::kNoWaitForStore)) wait_stores_read<0>();
  }
}

uint16_t bits_of(float x) { return emulation::round_element(kBF16, x); }
float value_of(uint16_t bits) { return emulation::widen_element(kBF16, bits); }

struct ToyData {
  std::vector<uint16_t> a = std::vector<uint16_t>(kSteps * 64 * 64), b = a, out = std::vector<uint16_t>(64 * 64);
  GlobalMemory memory;
  Toy toy;
  emulation::Counters counters;

  ToyData() {
    for (size_t i = 0; i < a.size(); ++i) {
      a[i] = bits_of(static_cast<float>(static_cast<int>(i * 37 % 101) - 50) / 32);
      b[i] = bits_of(static_cast<float>(static_cast<int>(i * 53 % 97) - 48) / 32);
    }
    memory.add(std::as_const(a), "a");
    memory.add(std::as_const(b), "b");
    memory.add(out, "out");
    const auto map = [](const std::vector<uint16_t>& x) {
      return emulation::make_tensor_map(x.data(), 2, {64, static_cast<int64_t>(x.size() / 64), 1}, {128, 128},
                                        {64, 64, 1}, true);
    };
    toy = {map(a), map(b), map(out)};
  }
  LaunchOptions options(int seed = 0) const { return {1, 256, kToyShared, static_cast<uint64_t>(seed)}; }

  /// Largest error of out = sum over steps of a b^T, relative to the sum's largest value.
  template <Mistake kMistake>
  double error(int seed) {
    out.assign(out.size(), 0xffff);
    counters = emulation::emulate(options(seed), memory, [&] { run_toy<kMistake>(toy); });
    double worst = 0, largest = 0;
    for (size_t i = 0; i < 64; ++i) {
      for (size_t j = 0; j < 64; ++j) {
        double sum = 0;
        for (size_t n = 0; n < kSteps; ++n) {
          for (size_t k = 0; k < 64; ++k)
            sum += value_of(a[(64 * n + i) * 64 + k]) * value_of(b[(64 * n + j) * 64 + k]);
        }
        const double difference = std::abs(sum - value_of(out[i * 64 + j]));
        if (!(difference <= worst)) worst = difference;  // NaN counts
        largest = std::max(largest, std::abs(sum));
      }
    }
    return worst / largest;
  }
};

template <Mistake kMistake>
void check_toy(std::initializer_list<std::string> parts) {
  ToyData data;
  check_reported(
      data.options(), data.memory, [&] { run_toy<kMistake>(data.toy); }, parts);
}

}  // namespace

TEST_CASE("a right kernel is right under every schedule, and its work is counted") {
  ToyData data;
  for (int seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    CHECK(data.error<Mistake::kNone>(seed) < 0.004);  // bfloat16's rounding of the result
  }
  CHECK(data.counters.products == std::map<int, int64_t>{{64, 4 * kSteps}});
  CHECK(data.counters.flops() == int64_t{2} * 64 * 64 * 64 * kSteps);
  CHECK(data.counters.bytes_loaded == 2 * kSteps * kTile);
  CHECK(data.counters.bytes_stored == kTile);
  CHECK(data.counters.boxes_of(data.a.data()) == kSteps);
  REQUIRE(data.counters.boxes.size() == 2 * kSteps);
  CHECK(data.counters.boxes[3] == emulation::BoxLoad{0, data.b.data(), 0, 64, 0});
}

TEST_CASE("a missing wait for a load is reported") { check_toy<Mistake::kNoWaitForLoad>({"multiply", "nothing"}); }
TEST_CASE("a stage released before its products are done is reported") {
  // By the next load, by a product that reads it, or because a barrier runs ahead: as the schedule has it.
  check_toy<Mistake::kEarlyRelease>({" at test_planted_pipeline.cpp"});
}
TEST_CASE("a wrong parity is reported") {
  check_toy<Mistake::kProducerParity>({"deadlock"});
  // A consumer that passes too early reads what is not there; one that waits too long stops the rest.
  check_toy<Mistake::kConsumerParity>({"at test_planted_pipeline.cpp"});
}
TEST_CASE("ordinary writes that no fence makes visible to a bulk copy are reported") {
  check_toy<Mistake::kNoProxyFence>({"store_box reads shared", "without fence_async_proxy"});
  check_toy<Mistake::kNoBarrierAfterFence>({"store_box reads shared"});
}
TEST_CASE("a wrong number of expected bytes is reported") {
  check_toy<Mistake::kTooFewBytes>({"too few bytes expected", "test_planted_pipeline.cpp"});
  check_toy<Mistake::kTooManyBytes>({"deadlock", "bytes missing", "initialised at test_planted_pipeline.cpp"});
}
TEST_CASE("a descriptor's stride is taken at its word") {
  check_toy<Mistake::kWideStride>({"multiply: A"});  // reads what is not there
  ToyData data;                                      // a narrow one reads rows twice
  CHECK(data.error<Mistake::kNarrowStride>(0) > 0.1);
}
TEST_CASE("one arrival too many is reported") { check_toy<Mistake::kOneArrivalTooMany>({"one arrival too many"}); }
TEST_CASE("a deadlock lists what every warp waits for") {
  check_toy<Mistake::kNoRelease>(
      {"deadlock", "warp 0, 1 lanes: wait at test_planted_pipeline.cpp", "phase 0 of barrier", "0 of 1 arrivals",
       "warpgroup 1, warp 5, 32 lanes: wait at test_planted_pipeline.cpp", "31 lanes: ended"});
}
TEST_CASE("barriers that are used before they are known are reported") {
  check_toy<Mistake::kNoBarrierFence>({"load_box: fence_barrier_init has not followed"});
  check_toy<Mistake::kNoSyncAfterInit>({"barrier"});
}
TEST_CASE("accumulators are watched from begin to wait") {
  check_toy<Mistake::kNoCommit>({"the product of"});
  check_toy<Mistake::kNoBegin>({"no begin_matrices since"});
  check_toy<Mistake::kTouchAfterBegin>({"no begin_matrices since"});
  check_toy<Mistake::kReadInFlight>({"a fragment is accessed"});
  check_toy<Mistake::kCopyInFlight>({"a fragment is accessed"});
  check_toy<Mistake::kWrongGroup>({"belongs to a group that this does not wait for"});
}
TEST_CASE("a kernel that ends too early is reported") {
  check_toy<Mistake::kNoWaitForStore>({"ends without waiting until its bulk stores have read"});
  check_toy<Mistake::kLoadAfterEnd>({"ends without waiting for a load"});
}
TEST_CASE("a swizzled tile that is not aligned to its pattern is reported") {
  check_toy<Mistake::kMisalignedTile>({"load_box: shared", "not aligned to 1024"});
}
