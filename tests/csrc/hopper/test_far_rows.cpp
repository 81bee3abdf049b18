// SPDX-License-Identifier: MIT
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "csrc/hopper/forward/forward_kernel.h"
#include "tests/emulation/emulator.h"
#include "tests/support/catch.h"

using namespace prulong::kernels;

namespace {

/// Memory that takes space only where it is written; null where the system does not grant it.
template <class T>
class Sparse {
 public:
  explicit Sparse(int64_t count)
      : bytes_(static_cast<size_t>(count) * sizeof(T)),
        data_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  ~Sparse() {
    if (granted()) munmap(data_, bytes_);
  }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  bool granted() const { return data_ != MAP_FAILED; }
  T* data() const { return static_cast<T*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  void* data_;
};

}  // namespace

TEST_CASE("the forward kernel reads and writes rows beyond 2^31 elements") {
  using Shape = ForwardShape<ElementType::kBFloat16, 128>;
  constexpr int kDim = 128, kHeads = 2, kFirst = 1 << 24, kLength = 200, kTokens = kFirst + kLength;
  constexpr float kScale = 0.09f;
  const int64_t rows = int64_t{kTokens} * kHeads;
  Sparse<uint16_t> q(rows * kDim), out(rows * kDim), k(int64_t{kTokens} * kDim), v(int64_t{kTokens} * kDim);
  Sparse<float> lse(rows);
  if (!q.granted() || !out.granted() || !k.granted() || !v.granted() || !lse.granted()) {
    WARN("skipped: the system grants no 25 GB of empty memory");
    return;
  }
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const auto fill = [&](uint16_t* rows_begin, int count) {
    std::vector<double> values(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) {
      rows_begin[i] = device::emulation::round_element(Shape::kType, normal(random));
      values[static_cast<size_t>(i)] = device::emulation::widen_element(Shape::kType, rows_begin[i]);
    }
    return values;
  };
  const std::vector<double> queries = fill(q.data() + int64_t{kFirst} * kHeads * kDim, kLength * kHeads * kDim);
  const std::vector<double> keys = fill(k.data() + int64_t{kFirst} * kDim, kLength * kDim);
  const std::vector<double> values = fill(v.data() + int64_t{kFirst} * kDim, kLength * kDim);

  // Two documents, of which only the second has tiles.
  std::vector<int> bounds = {0, kFirst, kTokens}, heads = {0, 0};
  std::vector<float> gates = {1.0f};
  const DocumentRows document = {kFirst, kLength, kFirst, kLength, 1};
  std::vector<Tile> tiles = {{document, 0, 0, 1, -1}, {document, 128, 0, 1, -1}};
  ScheduleState state = {};
  state.long_heads = 1;
  state.query_tiles = state.long_tiles = 2;
  ForwardParams params = {};
  Schedule& schedule = params.schedule;
  schedule.batch = {2,           kTokens,       kTokens,       kHeads,       1,      kDim,
                    {128, 1024}, bounds.data(), bounds.data(), gates.data(), nullptr};
  schedule.query_rows = Shape::kQueryRows;
  schedule.q_section = schedule.k_section = 1;
  schedule.state = &state;
  schedule.heads = heads.data();
  schedule.query_tiles = schedule.long_tiles = tiles.data();
  params.q = {Shape::kType, q.data(), kTokens, kHeads, kDim, kHeads * kDim, kDim};
  params.k = {Shape::kType, k.data(), kTokens, 1, kDim, kDim, kDim};
  params.v = {Shape::kType, v.data(), kTokens, 1, kDim, kDim, kDim};
  params.scale = kScale;
  params.out = out.data();
  params.lse_global = params.lse_local = lse.data();
  ForwardArguments arguments;
  REQUIRE(make_forward_arguments(params, &arguments) == nullptr);

  device::emulation::GlobalMemory memory;
  memory.add(static_cast<const void*>(q.data()), q.bytes(), "q");
  memory.add(static_cast<const void*>(k.data()), k.bytes(), "k");
  memory.add(static_cast<const void*>(v.data()), v.bytes(), "v");
  memory.add(static_cast<void*>(out.data()), out.bytes(), "out");
  memory.add(static_cast<void*>(lse.data()), lse.bytes(), "lse");
  memory.add(&state, sizeof state, "schedule");
  emulate({1, Shape::kThreads, Shape::kSharedBytes, 5}, memory, [&] { forward::run<Shape>(arguments); });

  double wrong_out = 0, wrong_lse = 0;
  for (int token = 0; token < kLength; ++token) {
    for (int head = 0; head < kHeads; ++head) {
      const double* const query = &queries[static_cast<size_t>((token * kHeads + head) * kDim)];
      std::vector<double> sums(kDim, 0);
      double total = 0;
      for (int key = 0; key <= token; ++key) {
        double score = 0;
        for (int d = 0; d < kDim; ++d) score += query[d] * keys[static_cast<size_t>(key * kDim + d)];
        const double weight = std::exp(kScale * score);
        total += weight;
        for (size_t d = 0; d < kDim; ++d) sums[d] += weight * values[static_cast<size_t>(key * kDim) + d];
      }
      const int64_t row = (int64_t{kFirst} + token) * kHeads + head, place = int64_t{head} * kTokens + kFirst + token;
      for (int d = 0; d < kDim; ++d) {
        const double found = device::emulation::widen_element(Shape::kType, out.data()[row * kDim + d]);
        wrong_out = std::max(wrong_out, std::fabs(found - sums[static_cast<size_t>(d)] / total));
      }
      wrong_lse = std::max(wrong_lse, std::fabs(lse.data()[place] - std::log(total)));
    }
  }
  CHECK(wrong_out < 0.02);  // two bfloat16 roundings of values up to 4
  CHECK(wrong_lse < 1e-4);
}
