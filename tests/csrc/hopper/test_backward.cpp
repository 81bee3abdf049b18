// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <random>

#include "csrc/hopper/backward/backward_kernel.h"
#include "tests/csrc/hopper/backward_reference.h"
#include "tests/csrc/hopper/plans.h"
#include "tests/emulation/emulator.h"
#include "tests/support/catch.h"

using namespace prulong::kernels;
using namespace prulong::kernels::tests;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Example {
  int group = 1;
  std::vector<float> gates = {1.0f};
  std::vector<int> lengths;
  Locality locality = {128, 256};
  float magnitude = 1;             // of queries and keys
  std::vector<int> poisoned = {};  // documents in which everything is NaN
  bool deterministic = false;
};

ScheduleOptions with_keys() {
  ScheduleOptions options;
  options.with_keys = true;
  return options;
}

struct Results {
  Tensor dq, dk, dv;
  std::vector<float> dgate;
  device::emulation::Counters counters;  // of the main kernel
};

template <class Shape>
class Backward {
 public:
  explicit Backward(const Example& example)
      : example_(example),
        plan_(example.lengths, example.lengths, example.gates, example.group, kDim, example.locality, with_keys()),
        batch_(plan_.schedule().batch),
        q_(kType, batch_.q_tokens, batch_.query_heads, kDim, 1),
        k_(kType, batch_.k_tokens, batch_.kv_heads, kDim, 1),
        v_(kType, batch_.k_tokens, batch_.kv_heads, kDim, 2),
        dout_(kType, batch_.q_tokens, batch_.query_heads, kDim, 3),
        out_(kType, batch_.q_tokens, batch_.query_heads, kDim, 0),
        delta_(out_) {
    std::mt19937_64 random(17);
    q_.randomize(example.magnitude, random);
    k_.randomize(example.magnitude, random);
    v_.randomize(1, random);
    dout_.randomize(1, random);
    want_ = expected_gradients(batch_, q_, k_, v_, dout_, example.poisoned);
    for (int t = 0; t < batch_.q_tokens; ++t) {
      for (int h = 0; h < batch_.query_heads; ++h) {
        for (int e = 0; e < kDim; ++e) {
          out_.set(t, h, e, want_.out[out_.at(t, h, e)]);
          delta_.set(t, h, e, want_.delta[out_.at(t, h, e)]);
        }
      }
    }
    for (const int d : example.poisoned) {
      for (Tensor* t : {&q_, &k_, &v_, &dout_, &out_, &delta_}) t->poison(batch_.q_bounds[d], batch_.q_bounds[d + 1]);
    }
  }

  /// Runs the three kernels with outputs and scratch memory full of NaN.
  Results run(uint64_t seed, int blocks = 2) {
    Results to = {Tensor(kType, batch_.q_tokens, batch_.query_heads, kDim, 0),
                  Tensor(kType, batch_.k_tokens, batch_.kv_heads, kDim, 0),
                  Tensor(kType, batch_.k_tokens, batch_.kv_heads, kDim, 0),
                  std::vector<float>(static_cast<size_t>(batch_.kv_heads), kNan),
                  {}};
    std::vector<float> scratch(static_cast<size_t>(backward_scratch(batch_).size), kNan);
    BackwardParams params = {};
    params.schedule = plan_.schedule();
    params.schedule.state->next_key = 0;
    params.q = q_.packed();
    params.k = k_.packed();
    params.v = v_.packed();
    params.dout = dout_.packed();
    params.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(kDim)));
    params.out = out_.bits.data();
    params.delta = delta_.bits.data();
    params.lse_global = want_.lse_global.data();
    params.lse_local = want_.lse_local.data();
    params.scratch = scratch.data();
    params.dq = to.dq.bits.data();
    params.dk = to.dk.bits.data();
    params.dv = to.dv.bits.data();
    params.dgate = to.dgate.data();
    params.deterministic = example_.deterministic;
    BackwardArguments arguments;
    REQUIRE(make_backward_arguments(params, &arguments) == nullptr);
    const BackwardRows rows = make_backward_rows(params);

    device::emulation::GlobalMemory memory;
    const auto read = [&](const auto& values, const char* name) { memory.add(values, name); };
    read(q_.bits, "q");
    read(k_.bits, "k");
    read(v_.bits, "v");
    read(dout_.bits, "dout");
    read(out_.bits, "out");
    read(delta_.bits, "delta");
    read(want_.lse_global, "lse_global");
    read(want_.lse_local, "lse_local");
    memory.add(scratch, "scratch");
    memory.add(to.dq.bits, "dq");
    memory.add(to.dk.bits, "dk");
    memory.add(to.dv.bits, "dv");
    memory.add(to.dgate, "dgate");
    memory.add(plan_.schedule().state, sizeof(ScheduleState), "schedule");
    device::emulation::LaunchOptions launch;
    launch.seed = seed;
    launch.blocks = static_cast<int>(prepare_blocks(batch_));
    launch.threads = kBackwardRowThreads;
    launch.shared_bytes = backward::kPrepareSharedBytes;
    emulate(launch, memory, [&] { backward::prepare_rows<kType, kDim>(rows); });
    launch.blocks = blocks;
    launch.threads = Shape::kThreads;
    launch.shared_bytes = Shape::kSharedBytes;
    to.counters = emulate(launch, memory, [&] { backward::run<Shape>(arguments); });
    launch.blocks = static_cast<int>(finish_blocks(batch_));
    launch.threads = kBackwardRowThreads;
    launch.shared_bytes = backward::kFinishSharedBytes<kDim>;
    emulate(launch, memory, [&] { backward::finish_rows<kType, kDim>(rows); });
    return to;
  }

  void check(const Results& got) const {
    compare(got.dq, want_.exact.dq, want_.plain.dq, "dq");
    compare(got.dk, want_.exact.dk, want_.plain.dk, "dk");
    compare(got.dv, want_.exact.dv, want_.plain.dv, "dv");
    // delta is rounded: an error of at most u in each term, of random sign; and the terms are summed in float.
    const double u = kType == ElementType::kBFloat16 ? 0x1p-9 : 0x1p-12;
    for (size_t h = 0; h < got.dgate.size() && example_.poisoned.empty(); ++h) {
      INFO("dgate " << h);
      const double error = std::fabs(static_cast<double>(got.dgate[h]) - want_.dgate[h]);
      CHECK(error <= (4 * u + 1e-4) * want_.dgate_noise[h]);
    }
  }

  HostPlan& plan() { return plan_; }
  const Batch& batch() const { return batch_; }
  const Tensor& q() const { return q_; }
  const Tensor& k() const { return k_; }
  const Tensor& v() const { return v_; }
  const Tensor& dout() const { return dout_; }

 private:
  static constexpr ElementType kType = Shape::kType;
  static constexpr int kDim = Shape::kHeadDim;

  // A head's worst and mean square error are at most twice plain attention's.
  void compare(const Tensor& got, const std::vector<double>& exact, const std::vector<double>& plain,
               const char* name) const {
    for (int h = 0; h < got.heads; ++h) {
      double worst = 0, worst_plain = 0, sum = 0, sum_plain = 0;
      for (int d = 0; d < batch_.documents; ++d) {
        if (std::count(example_.poisoned.begin(), example_.poisoned.end(), d) != 0) continue;
        for (int t = batch_.q_bounds[d]; t < batch_.q_bounds[d + 1]; ++t) {
          for (int e = 0; e < kDim; ++e) {
            const double x = got.value(t, h, e), want = exact[got.at(t, h, e)];
            REQUIRE(std::isfinite(x));
            const double error = std::fabs(x - want), error_plain = std::fabs(plain[got.at(t, h, e)] - want);
            worst = std::max(worst, error);
            worst_plain = std::max(worst_plain, error_plain);
            sum += error * error;
            sum_plain += error_plain * error_plain;
          }
        }
      }
      INFO(name << " of head " << h);
      CHECK(worst <= 2 * worst_plain + 1e-6);
      CHECK(std::sqrt(sum) <= 2 * std::sqrt(sum_plain) + 1e-6);
    }
  }

  Example example_;
  HostPlan plan_;
  Batch batch_;
  Tensor q_, k_, v_, dout_, out_, delta_;
  Expected want_;
};

/// Schedules to try: 5, or PRULONG_EMULATION_SEEDS.
uint64_t seeds() {
  const char* text = std::getenv("PRULONG_EMULATION_SEEDS");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 5;
}

using BFloat16Dim128 = BackwardShape<ElementType::kBFloat16, 128>;
using Float16Dim128 = BackwardShape<ElementType::kFloat16, 128>;
using BFloat16Dim64 = BackwardShape<ElementType::kBFloat16, 64>;
using Float16Dim64 = BackwardShape<ElementType::kFloat16, 64>;

template <class Shape>
void check(const Example& example) {
  Backward<Shape> backward(example);
  for (uint64_t seed = 1; seed <= seeds(); ++seed) {
    INFO("seed " << seed << ", head_dim " << Shape::kHeadDim);
    backward.check(backward.run(seed));
  }
}

// Does the tile of `rows` rows from `row` on see any key of the block?
bool sees(const Batch& batch, const KeyItem& item, Branch branch, int row, int rows) {
  for (int i = row; i < std::min(row + rows, item.document.q_length); ++i) {
    for (int j = item.keys.begin; j < item.keys.end; ++j) {
      if (visible(branch, batch.locality, i, j)) return true;
    }
  }
  return false;
}
// Branches of an item's passes.
std::vector<Branch> passes(const KeyItem& item) {
  return item.fractional ? std::vector<Branch>{Branch::kLocal, Branch::kComplement} : std::vector<Branch>{item.branch};
}

}  // namespace

TEST_CASE("gradients of a causal head match the mathematics", "[backward]") {
  Example example;
  example.lengths = {300};
  check<BFloat16Dim128>(example);
  check<Float16Dim64>(example);
}

TEST_CASE("gradients of documents and gates of all kinds match the mathematics", "[backward]") {
  Example example;
  example.gates = {0.0f, 1.0f, 1e-6f, 0.7f};
  example.locality = {5, 77};
  example.lengths = {0, 1, 127, 128, 129};
  check<BFloat16Dim128>(example);
  check<Float16Dim64>(example);
}

TEST_CASE("gradients of documents around two key blocks match the mathematics", "[backward]") {
  Example example;
  example.gates = {0.5f};
  example.locality = {128, 128};
  example.lengths = {255, 256, 257};
  check<Float16Dim128>(example);
  check<BFloat16Dim64>(example);
}

TEST_CASE("gradients of grouped heads of a large norm match the mathematics", "[backward]") {
  Example example;
  example.magnitude = 3;
  example.locality = {0, 60};
  example.lengths = {150};
  for (const auto& [group, gate] : {std::pair(3, 0.3f), std::pair(4, 0.0f), std::pair(8, 1.0f)}) {
    example.group = group;
    example.gates = {gate};
    check<BFloat16Dim128>(example);
    check<BFloat16Dim64>(example);
  }
}

TEST_CASE("nothing leaks into gradients from a neighbouring document", "[backward]") {
  Example example;
  example.gates = {0.5f, 1.0f};
  example.locality = {3, 60};
  example.lengths = {100, 60, 131, 40};
  example.poisoned = {1, 3};
  check<BFloat16Dim128>(example);
  check<BFloat16Dim64>(example);
}

TEST_CASE("the deterministic gradients have the same bits for every schedule", "[backward]") {
  Example example;
  example.gates = {0.5f, 0.0f};
  example.locality = {40, 150};
  example.lengths = {390, 0, 140};
  example.deterministic = true;
  Backward<BFloat16Dim128> wide(example);
  Backward<Float16Dim64> narrow(example);
  const Results first_wide = wide.run(1), first_narrow = narrow.run(1);
  wide.check(first_wide);
  narrow.check(first_narrow);
  for (uint64_t seed = 2; seed <= seeds(); ++seed) {
    INFO("seed " << seed);
    const auto check_same = [](const Results& a, const Results& b) {
      CHECK(a.dq.bits == b.dq.bits);
      CHECK(a.dk.bits == b.dk.bits);
      CHECK(a.dv.bits == b.dv.bits);
      CHECK(a.dgate == b.dgate);
    };
    const int blocks = 1 + static_cast<int>(seed % 4);
    check_same(wide.run(seed, blocks), first_wide);
    check_same(narrow.run(seed, blocks), first_narrow);
  }
}

TEST_CASE("additions to a tile's dQ are numbered without gaps, by key block", "[backward]") {
  std::mt19937 random(3);
  for (int n = 0; n < 300; ++n) {
    const Locality locality = {static_cast<int>(random() % 400), 1 + static_cast<int>(random() % 500)};
    const std::vector<int> lengths = {static_cast<int>(random() % 1000), static_cast<int>(random() % 300)};
    const int rows = n % 2 == 0 ? 64 : 128;
    const HostPlan plan(lengths, lengths, {0.0f, 0.5f, 1.0f}, 1, rows == 64 ? 128 : 64, locality, with_keys());
    INFO("sink " << locality.sink << ", window " << locality.window << ", lengths " << lengths[0] << " " << lengths[1]);
    std::map<std::vector<int>, int> next;  // by head, document, tile
    bool good = true;
    for (const KeyItem& item : plan.key_items()) {
      const BackwardItem work = backward_item(plan.schedule().batch, item, rows);
      for (int pass = 0; pass < 2; ++pass) {
        for (int tile = work.tiles[pass].begin; tile < work.tiles[pass].end; ++tile) {
          const int turn = additions_before(item.fractional, work.branch[0], pass, locality,
                                            {tile * rows, (tile + 1) * rows}, work.q_rows, work.key_begin / kKeyBlock);
          // In the order of the items: an item waits for none that comes later.
          good = good && turn == next[{item.kv_head, item.document.index, tile}]++;
        }
      }
    }
    CHECK(good);
  }
}

TEST_CASE("a key block visits the tiles that see it and no others", "[backward]") {
  std::mt19937 random(5);
  for (int n = 0; n < 20; ++n) {
    const Locality locality = {static_cast<int>(random() % 300), 1 + static_cast<int>(random() % 300)};
    const HostPlan plan({600, 130}, {600, 130}, {0.0f, 0.5f, 1.0f}, 2, 128, locality, with_keys());
    INFO("sink " << locality.sink << ", window " << locality.window);
    bool good = true;
    for (const KeyItem& item : plan.key_items()) {
      const BackwardItem work = backward_item(plan.schedule().batch, item, 64);
      int steps = 0;
      for (const Branch branch : passes(item)) {
        for (int row = 0; row < item.document.q_length; row += 64) {
          steps += sees(plan.schedule().batch, item, branch, row, 64) ? 2 : 0;
        }
      }
      good = good && work.steps == steps;
    }
    CHECK(good);
  }
}

TEST_CASE("the backward kernel does its plan's work and no more", "[backward]") {
  Example example;
  example.gates = {0.0f, 1.0f, 0.25f};
  example.group = 2;
  example.locality = {128, 128};
  example.lengths = {520, 90};
  Backward<BFloat16Dim128> backward(example);
  const Results results = backward.run(3);
  int64_t steps = 0, items = 0, head_steps[3] = {}, split = 0;
  for (const KeyItem& item : backward.plan().key_items()) {
    for (int row = 0; row < item.document.q_length; row += 64) {
      int visits = 0;
      for (const Branch branch : passes(item)) visits += sees(backward.batch(), item, branch, row, 64);
      head_steps[item.kv_head] += visits * example.group;
      if (visits == 2) split += example.group;
    }
    ++items;
  }
  for (const int64_t n : head_steps) steps += n;
  CHECK(head_steps[2] == head_steps[1] + split);  // a gated head: the work of a causal one and the tiles split in two
  CHECK(head_steps[0] < head_steps[1]);
  const auto& counters = results.counters;
  // Per step and warpgroup: 8 products for scores, dP and dQ each, 4 for dV and dK each.
  CHECK(counters.products.at(64) == 2 * steps * 24);
  CHECK(counters.products.at(128) == 2 * steps * 8);
  CHECK(counters.boxes_of(backward.q().bits.data()) == 2 * steps);
  CHECK(counters.boxes_of(backward.dout().bits.data()) == 2 * steps);
  CHECK(counters.boxes_of(backward.k().bits.data()) == 2 * items);
  CHECK(counters.boxes_of(backward.v().bits.data()) == 2 * items);
  CHECK(counters.bytes_added == steps * 64 * 128 * 4);
}

TEST_CASE("gates outside [0, 1] give NaN in their heads alone", "[backward]") {
  Example example;
  example.gates = {0.5f, kNan, 1.5f};
  example.lengths = {70};
  example.locality = {4, 20};
  Backward<BFloat16Dim64> backward(example);
  const Results got = backward.run(1);
  CHECK(std::isfinite(got.dgate[0]));
  CHECK(std::isnan(got.dgate[1]));
  CHECK(std::isnan(got.dgate[2]));
  for (int t = 0; t < 70; ++t) {
    for (const Tensor* gradient : {&got.dq, &got.dk, &got.dv}) {
      REQUIRE(std::isfinite(gradient->value(t, 0, 0)));
      REQUIRE(std::isnan(gradient->value(t, 1, 0)));
      REQUIRE(std::isnan(gradient->value(t, 2, 0)));
    }
  }
}

TEST_CASE("an invalid schedule leaves gradients unwritten", "[backward]") {
  Example example;
  example.lengths = {70, 20};
  Backward<BFloat16Dim128> backward(example);
  backward.plan().schedule().state->invalid = 1;
  backward.plan().schedule().state->key_tiles = 0;
  const Results got = backward.run(1);
  CHECK(std::all_of(got.dq.bits.begin(), got.dq.bits.end(), [](uint16_t bits) { return bits == kNanBits; }));
  CHECK(std::all_of(got.dk.bits.begin(), got.dk.bits.end(), [](uint16_t bits) { return bits == kNanBits; }));
}
