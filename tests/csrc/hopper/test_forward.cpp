// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <random>

#include "csrc/hopper/forward/forward_kernel.h"
#include "tests/csrc/hopper/plans.h"
#include "tests/emulation/emulator.h"
#include "tests/support/catch.h"

using namespace prulong::kernels;
using namespace prulong::kernels::tests;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr uint16_t kNanBits = 0x7fff;  // in both 16-bit types

struct Example {
  int group = 1;
  std::vector<float> gates = {1.0f};
  std::vector<int> q_lengths, k_lengths;
  Locality locality = {128, 256};
  float magnitude = 1;  // of queries and keys
  int processors = 0;
  std::vector<int> poisoned = {};  // documents whose keys and values are NaN
};

// A tensor with one more head than it tells of, full of NaN: strides are not dense.
struct Tensor {
  ElementType type;
  int tokens, heads, dim;
  std::vector<uint16_t> bits;

  Tensor(ElementType element, int rows, int columns, int depth, float magnitude, std::mt19937_64& random)
      : type(element),
        tokens(rows),
        heads(columns),
        dim(depth),
        bits(static_cast<size_t>(rows) * static_cast<size_t>((columns + 1) * depth), kNanBits) {
    std::normal_distribution<float> normal(0, magnitude);
    for (int t = 0; t < tokens; ++t) {
      for (int h = 0; h < heads; ++h) {
        for (int d = 0; d < dim; ++d) bits[at(t, h, d)] = device::emulation::round_element(type, normal(random));
      }
    }
  }
  size_t at(int token, int head, int d) const {
    return (static_cast<size_t>(token) * static_cast<size_t>(heads + 1) + static_cast<size_t>(head)) *
               static_cast<size_t>(dim) +
           static_cast<size_t>(d);
  }
  double value(int token, int head, int d) const {
    return device::emulation::widen_element(type, bits[at(token, head, d)]);
  }
  PackedTensor packed() const { return {type, bits.data(), tokens, heads, dim, (heads + 1) * dim, dim}; }
};

struct Row {
  std::vector<double> exact, plain;  // plain: as rounded after every operation
  double lse;
};

class Forward {
 public:
  template <class Shape>
  Forward(Shape, const Example& example, uint64_t seed)
      : example_(example),
        dim_(Shape::kHeadDim),
        type_(Shape::kType),
        random_(seed * 1000 + 17),
        plan_(example.q_lengths, example.k_lengths, example.gates, example.group, Shape::kHeadDim, example.locality,
              {Shape::kQueryRows, false, example.processors}),
        batch_(plan_.schedule().batch),
        q_(type_, batch_.q_tokens, batch_.query_heads, dim_, example.magnitude, random_),
        k_(type_, batch_.k_tokens, batch_.kv_heads, dim_, example.magnitude, random_),
        v_(type_, batch_.k_tokens, batch_.kv_heads, dim_, 1, random_) {
    for (const int d : example.poisoned) {
      for (Tensor* t : {&k_, &v_}) {
        std::fill(t->bits.begin() + static_cast<ptrdiff_t>(t->at(batch_.k_bounds[d], 0, 0)),
                  t->bits.begin() + static_cast<ptrdiff_t>(t->at(batch_.k_bounds[d + 1], 0, 0)), kNanBits);
      }
    }
    const size_t rows = static_cast<size_t>(batch_.q_tokens) * static_cast<size_t>(batch_.query_heads);
    out_.assign(rows * static_cast<size_t>(dim_), kNanBits);
    delta_ = out_;
    lse_global_.assign(rows, kNan);
    lse_local_ = lse_global_;
    const size_t partial_rows = static_cast<size_t>(partial_capacity(plan_.schedule())) * Shape::kQueryRows;
    partial_lse_.assign(partial_rows, kNan);
    partial_out_.assign(partial_rows * static_cast<size_t>(dim_), kNan);

    ForwardParams params = {};
    params.schedule = plan_.schedule();
    params.q = q_.packed();
    params.k = k_.packed();
    params.v = v_.packed();
    params.scale = static_cast<float>(scale());
    params.out = out_.data();
    params.delta = delta_.data();
    params.lse_global = lse_global_.data();
    params.lse_local = lse_local_.data();
    params.partial_out = partial_out_.data();
    params.partial_lse = partial_lse_.data();
    ForwardArguments arguments;
    REQUIRE(make_forward_arguments(params, &arguments) == nullptr);

    device::emulation::GlobalMemory memory;
    const auto& read = [&](const Tensor& t, const char* name) { memory.add(t.bits, name); };
    read(q_, "q");
    read(k_, "k");
    read(v_, "v");
    memory.add(out_, "out");
    memory.add(delta_, "delta");
    memory.add(lse_global_, "lse_global");
    memory.add(lse_local_, "lse_local");
    memory.add(partial_out_, "partial_out");
    memory.add(partial_lse_, "partial_lse");
    memory.add(plan_.schedule().state, sizeof(ScheduleState), "schedule");
    device::emulation::LaunchOptions launch;
    launch.blocks = 2;
    launch.threads = Shape::kThreads;
    launch.shared_bytes = Shape::kSharedBytes;
    launch.seed = seed;
    counters_ = emulate(launch, memory, [&] { forward::run<Shape>(arguments); });
    merge_pieces();
  }

  // Holds every row that was to be written against the mathematics, and the others against their poison.
  void check() const {
    const struct {
      Branch branch;
      const std::vector<uint16_t>& out;
      const std::vector<float>& lse;
    } parts[] = {{Branch::kGlobal, out_, lse_global_},
                 {Branch::kLocal, out_, lse_local_},
                 {Branch::kComplement, delta_, lse_global_}};
    for (const auto& part : parts) {
      double worst = 0, worst_plain = 0, worst_lse = 0;
      for (int head = 0; head < batch_.query_heads; ++head) {
        const HeadKind kind = head_kind(batch_, head / example_.group);
        const bool computed = part.branch == Branch::kGlobal  ? kind == HeadKind::kGlobal
                              : part.branch == Branch::kLocal ? kind != HeadKind::kGlobal
                                                              : kind == HeadKind::kFractional;
        if (!computed) continue;
        for (int d = 0; d < batch_.documents; ++d) {
          if (std::count(example_.poisoned.begin(), example_.poisoned.end(), d) != 0) continue;
          for (int row = batch_.q_bounds[d]; row < batch_.q_bounds[d + 1]; ++row) {
            const Row want = reference(part.branch, d, row, head);
            const size_t at =
                static_cast<size_t>(row) * static_cast<size_t>(batch_.query_heads) + static_cast<size_t>(head);
            for (size_t e = 0; e < static_cast<size_t>(dim_); ++e) {
              const double got = device::emulation::widen_element(type_, part.out[at * static_cast<size_t>(dim_) + e]);
              REQUIRE(std::isfinite(got));
              worst = std::max(worst, std::fabs(got - want.exact[e]));
              worst_plain = std::max(worst_plain, std::fabs(want.plain[e] - want.exact[e]));
            }
            const double lse = static_cast<double>(
                part.lse[static_cast<size_t>(head) * static_cast<size_t>(batch_.q_tokens) + static_cast<size_t>(row)]);
            REQUIRE((std::isfinite(lse) || lse == want.lse));
            if (lse != want.lse) worst_lse = std::max(worst_lse, std::fabs(lse - want.lse));
          }
        }
      }
      CHECK(worst <= 2 * worst_plain + 1e-6);
      CHECK(worst_lse <= 1e-4);
    }
    // Nothing else is written.
    for (int head = 0; head < batch_.query_heads; ++head) {
      const HeadKind kind = head_kind(batch_, head / example_.group);
      for (int row = 0; row < batch_.q_tokens; ++row) {
        const size_t lse = static_cast<size_t>(head) * static_cast<size_t>(batch_.q_tokens) + static_cast<size_t>(row);
        const size_t at =
            (static_cast<size_t>(row) * static_cast<size_t>(batch_.query_heads) + static_cast<size_t>(head)) *
            static_cast<size_t>(dim_);
        if (kind != HeadKind::kFractional) {
          REQUIRE(std::all_of(&delta_[at], &delta_[at] + dim_, [](uint16_t bits) { return bits == kNanBits; }));
        }
        if (kind == HeadKind::kGlobal) REQUIRE(std::isnan(lse_local_[lse]));
        if (kind == HeadKind::kLocal) REQUIRE(std::isnan(lse_global_[lse]));
      }
    }
  }

  const device::emulation::Counters& counters() const { return counters_; }
  /// (Token, head) pairs whose keys were split.
  size_t split_rows() const { return pieces_; }
  const HostPlan& plan() const { return plan_; }
  const Tensor& k() const { return k_; }
  const Tensor& v() const { return v_; }

 private:
  // Puts the results of split tiles where those of whole ones are.
  void merge_pieces() {
    const size_t columns = static_cast<size_t>(dim_);
    std::map<std::pair<int, int>, std::vector<size_t>> pieces;  // by token and head: rows of partial results
    std::vector<bool> written(partial_lse_.size());
    for (const QueryItem& item : plan_.query_items()) {
      if (item.partial < 0) continue;
      for (int row = item.rows.begin; row < item.rows.end; ++row) {
        const size_t from = static_cast<size_t>(item.partial * plan_.schedule().query_rows + row - item.rows.begin);
        pieces[{item.document.q_begin + row, item.query_head}].push_back(from);
        written.at(from) = true;
      }
    }
    for (const auto& [row, from] : pieces) {
      const auto [token, head] = row;
      const size_t at =
          static_cast<size_t>(token) * static_cast<size_t>(batch_.query_heads) + static_cast<size_t>(head);
      float& lse =
          lse_global_[static_cast<size_t>(head) * static_cast<size_t>(batch_.q_tokens) + static_cast<size_t>(token)];
      REQUIRE(std::isnan(lse));
      double total = 0;
      for (const size_t n : from) total += std::exp(static_cast<double>(partial_lse_[n]));
      lse = static_cast<float>(std::log(total));
      for (size_t e = 0; e < columns; ++e) {
        REQUIRE(out_[at * columns + e] == kNanBits);
        double sum = 0;
        for (const size_t n : from) {
          sum += std::exp(static_cast<double>(partial_lse_[n])) / total *
                 static_cast<double>(partial_out_[n * columns + e]);
        }
        out_[at * columns + e] = device::emulation::round_element(type_, static_cast<float>(sum));
      }
    }
    for (size_t n = 0; n < written.size(); ++n) {
      if (!written[n]) REQUIRE((std::isnan(partial_lse_[n]) && std::isnan(partial_out_[n * columns])));
    }
    pieces_ = pieces.size();
  }

  double scale() const { return 1 / std::sqrt(static_cast<double>(dim_)); }

  Row reference(Branch branch, int d, int row, int head) const {
    const int kv_head = head / example_.group, k_begin = batch_.k_bounds[d];
    const int position =
        row - batch_.q_bounds[d] + (batch_.k_bounds[d + 1] - k_begin) - (batch_.q_bounds[d + 1] - batch_.q_bounds[d]);
    const auto round = [&](double x) {
      const auto bits = device::emulation::round_element(type_, static_cast<float>(x));
      return static_cast<double>(device::emulation::widen_element(type_, bits));
    };
    std::vector<int> keys;
    std::vector<double> scores;
    double top = -INFINITY, top_plain = -INFINITY;
    for (int j = 0; j <= position; ++j) {
      if (!visible(branch, example_.locality, position, j)) continue;
      double sum = 0;
      for (int e = 0; e < dim_; ++e) sum += q_.value(row, head, e) * k_.value(k_begin + j, kv_head, e);
      keys.push_back(j);
      scores.push_back(sum * scale());
      top = std::max(top, scores.back());
      top_plain = std::max(top_plain, round(scores.back()));
    }
    const size_t columns = static_cast<size_t>(dim_);
    Row result = {std::vector<double>(columns, 0.0), std::vector<double>(columns, 0.0), -INFINITY};
    if (keys.empty()) return result;
    double total = 0, total_plain = 0;
    for (const double s : scores) {
      total += std::exp(s - top);
      total_plain += std::exp(round(s) - top_plain);
    }
    for (size_t n = 0; n < keys.size(); ++n) {
      const double p = std::exp(scores[n] - top) / total;
      const double p_plain = round(std::exp(round(scores[n]) - top_plain) / total_plain);
      for (size_t e = 0; e < columns; ++e) {
        const double value = v_.value(k_begin + keys[n], kv_head, static_cast<int>(e));
        result.exact[e] += p * value;
        result.plain[e] += p_plain * value;
      }
    }
    for (double& x : result.plain) x = round(x);
    result.lse = top + std::log(total);
    return result;
  }

  Example example_;
  int dim_;
  ElementType type_;
  std::mt19937_64 random_;
  HostPlan plan_;
  Batch batch_;
  Tensor q_, k_, v_;
  std::vector<uint16_t> out_, delta_;
  std::vector<float> lse_global_, lse_local_, partial_out_, partial_lse_;
  size_t pieces_ = 0;
  device::emulation::Counters counters_;
};

/// Schedules to try: 5, or PRULONG_EMULATION_SEEDS.
int seeds() {
  const char* text = std::getenv("PRULONG_EMULATION_SEEDS");
  return text != nullptr ? std::atoi(text) : 5;
}

using BFloat16Dim128 = ForwardShape<ElementType::kBFloat16, 128>;
using Float16Dim128 = ForwardShape<ElementType::kFloat16, 128>;
using BFloat16Dim64 = ForwardShape<ElementType::kBFloat16, 64>;
using Float16Dim64 = ForwardShape<ElementType::kFloat16, 64>;

template <class Shape>
void check(const Example& example) {
  for (int seed = 1; seed <= seeds(); ++seed) {
    INFO("seed " << seed << ", head_dim " << Shape::kHeadDim);
    Forward(Shape{}, example, static_cast<uint64_t>(seed)).check();
  }
}

}  // namespace

TEST_CASE("a causal head matches the mathematics", "[forward]") {
  Example example;
  example.q_lengths = example.k_lengths = {390};
  check<BFloat16Dim128>(example);
  check<BFloat16Dim64>(example);
}

TEST_CASE("documents and gates of all kinds match the mathematics", "[forward]") {
  Example example;
  example.gates = {0.0f, 1.0f, 1e-6f};
  example.locality = {5, 77};
  example.q_lengths = example.k_lengths = {0, 1, 127, 128, 129};
  check<BFloat16Dim128>(example);
  check<Float16Dim64>(example);
}

TEST_CASE("documents around two tiles, all of whose heads are local, match the mathematics", "[forward]") {
  Example example;
  example.gates = {0.0f};
  example.locality = {128, 128};
  example.q_lengths = example.k_lengths = {255, 256, 257};
  check<BFloat16Dim64>(example);
  check<Float16Dim128>(example);
}

TEST_CASE("queries shorter than keys match the mathematics", "[forward]") {
  Example example;
  example.group = 3;
  example.gates = {0.5f};
  example.locality = {128, 128};
  example.q_lengths = {70, 1, 0};
  example.k_lengths = {515, 140, 30};
  check<Float16Dim128>(example);
  check<BFloat16Dim64>(example);
}

TEST_CASE("inputs of a large norm in a large group match the mathematics", "[forward]") {
  Example example;
  example.magnitude = 3;
  example.locality = {0, 100};
  example.q_lengths = example.k_lengths = {200};
  for (const auto& [group, gate] : {std::pair(8, 1.0f), std::pair(4, 0.0f)}) {
    example.group = group;
    example.gates = {gate};
    check<BFloat16Dim128>(example);
    check<Float16Dim64>(example);
  }
}

TEST_CASE("nothing leaks from a neighbouring document", "[forward]") {
  Example example;
  example.gates = {0.5f, 1.0f};
  example.locality = {3, 60};
  example.q_lengths = example.k_lengths = {100, 60, 131, 40};
  example.poisoned = {1, 3};
  check<BFloat16Dim128>(example);
  check<BFloat16Dim64>(example);
}

TEST_CASE("the pieces of a split tile add up to the whole", "[forward]") {
  Example example;
  example.gates = {1.0f, 0.0f};
  example.q_lengths = {130, 20};
  example.k_lengths = {2100, 1030};
  example.processors = 8;
  for (int seed = 1; seed <= seeds(); ++seed) {
    const Forward wide(BFloat16Dim128{}, example, static_cast<uint64_t>(seed));
    CHECK(wide.split_rows() > 100);
    wide.check();
    const Forward narrow(Float16Dim64{}, example, static_cast<uint64_t>(seed));
    CHECK(narrow.split_rows() > 100);
    narrow.check();
  }
}

TEST_CASE("an item loads its tiles and no others", "[forward]") {
  Example example;
  example.gates = {0.0f, 1.0f, 0.25f};
  example.group = 2;
  example.locality = {128, 128};
  example.q_lengths = example.k_lengths = {640, 90};
  const Forward forward(BFloat16Dim128{}, example, 3);
  int64_t steps = 0, tiles = 0;
  for (const QueryItem& item : forward.plan().query_items()) {
    steps += item.steps.size();
    tiles += item.steps.size() > 0;
  }
  constexpr int kPanels = BFloat16Dim128::kPanels;
  CHECK(forward.counters().boxes_of(forward.k().bits.data()) == kPanels * steps);
  CHECK(forward.counters().boxes_of(forward.v().bits.data()) == kPanels * steps);
  // Per step and warpgroup 8 products along the head and 8 along the keys.
  CHECK(forward.counters().products.at(128) == steps * BFloat16Dim128::kConsumers * 16);
  CHECK(forward.counters().bytes_loaded == tiles * BFloat16Dim128::kQueryBytes + 2 * steps * BFloat16Dim128::kKeyBytes);
}
