// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>

#include "csrc/kernels/backward_kernel.h"
#include "csrc/kernels/device/emulation/emulator.h"
#include "tests/csrc/kernels/plans.h"
#include "tests/support/catch.h"

using namespace prulong::kernels;
using namespace prulong::kernels::tests;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr uint16_t kNanBits = 0x7fff;  // in both 16-bit types

struct Example {
  int group = 1;
  std::vector<float> gates = {1.0f};
  std::vector<int> lengths;
  Locality locality = {128, 256};
  float magnitude = 1;             // of queries and keys
  std::vector<int> poisoned = {};  // documents in which everything is NaN
};

// [tokens, heads, dim] of 16-bit elements; what pads a token is NaN.
struct Tensor {
  ElementType type;
  int tokens, heads, dim, padding;  // padding: heads that the tensor does not tell of
  std::vector<uint16_t> bits;

  Tensor(ElementType element, int rows, int columns, int depth, int pad)
      : type(element),
        tokens(rows),
        heads(columns),
        dim(depth),
        padding(pad),
        bits(static_cast<size_t>(rows) * static_cast<size_t>((columns + pad) * depth), kNanBits) {}
  void randomize(float magnitude, std::mt19937_64& random) {
    std::normal_distribution<float> normal(0, magnitude);
    for (int t = 0; t < tokens; ++t) {
      for (int h = 0; h < heads; ++h) {
        for (int d = 0; d < dim; ++d) set(t, h, d, static_cast<double>(normal(random)));
      }
    }
  }
  void poison(int begin, int end) {
    std::fill(bits.begin() + static_cast<ptrdiff_t>(at(begin, 0, 0)),
              bits.begin() + static_cast<ptrdiff_t>(at(end, 0, 0)), kNanBits);
  }
  size_t at(int token, int head, int d) const {
    return (static_cast<size_t>(token) * static_cast<size_t>(heads + padding) + static_cast<size_t>(head)) *
               static_cast<size_t>(dim) +
           static_cast<size_t>(d);
  }
  void set(int token, int head, int d, double value) {
    bits[at(token, head, d)] = device::emulation::round_element(type, static_cast<float>(value));
  }
  double value(int token, int head, int d) const {
    return static_cast<double>(device::emulation::widen_element(type, bits[at(token, head, d)]));
  }
  PackedTensor packed() const { return {type, bits.data(), tokens, heads, dim, (heads + padding) * dim, dim}; }
};

// The mathematics in double precision, from the definition: two softmaxes and their mixture.
class Reference {
 public:
  Reference(const Example& example, const Batch& batch, const Tensor& q, const Tensor& k, const Tensor& v,
            const Tensor& dout)
      : batch_(batch),
        q_(q),
        k_(k),
        v_(v),
        dout_(dout),
        dim_(static_cast<size_t>(batch.head_dim)),
        dq(size(batch.query_heads)),
        dk(size(batch.kv_heads)),
        dv(dk.size()),
        out(dq.size()),
        delta(dq.size()),
        lse_global(static_cast<size_t>(batch.query_heads * batch.q_tokens)),
        lse_local(lse_global.size()),
        dgate(static_cast<size_t>(batch.kv_heads)) {
    for (int d = 0; d < batch.documents; ++d) {
      if (std::count(example.poisoned.begin(), example.poisoned.end(), d) != 0) continue;
      for (int head = 0; head < batch.query_heads; ++head) {
        for (int i = 0; i < batch.q_bounds[d + 1] - batch.q_bounds[d]; ++i) add_row(batch.q_bounds[d], i, head);
      }
    }
  }

 private:
  size_t size(int heads) const { return static_cast<size_t>(batch_.q_tokens * heads) * dim_; }
  size_t at(int heads, int token, int head) const { return static_cast<size_t>(token * heads + head) * dim_; }

  void add_row(int begin, int i, int head) {
    const int kv_head = head / batch_.group(), row = begin + i;
    const double z = static_cast<double>(batch_.gate[kv_head]), scale = 1 / std::sqrt(static_cast<double>(dim_));
    const size_t keys = static_cast<size_t>(i) + 1;
    std::vector<double> s(keys), dp(keys);
    for (int j = 0; j <= i; ++j) {
      double score = 0, product = 0;
      for (int e = 0; e < static_cast<int>(dim_); ++e) {
        score += q_.value(row, head, e) * k_.value(begin + j, kv_head, e);
        product += dout_.value(row, head, e) * v_.value(begin + j, kv_head, e);
      }
      s[static_cast<size_t>(j)] = score * scale;
      dp[static_cast<size_t>(j)] = product;
    }
    struct Softmax {
      double lse, mean;
      std::vector<double> p;
    };
    const auto softmax = [&](Branch branch) {
      Softmax result = {0, 0, std::vector<double>(keys, 0.0)};
      double total = 0;
      const double top = *std::max_element(s.begin(), s.end());
      for (int j = 0; j <= i; ++j) {
        if (visible(branch, batch_.locality, i, j)) total += std::exp(s[static_cast<size_t>(j)] - top);
      }
      result.lse = top + std::log(total);
      for (int j = 0; j <= i; ++j) {
        if (!visible(branch, batch_.locality, i, j)) continue;
        result.p[static_cast<size_t>(j)] = std::exp(s[static_cast<size_t>(j)] - result.lse);
        result.mean += result.p[static_cast<size_t>(j)] * dp[static_cast<size_t>(j)];
      }
      return result;
    };
    const Softmax global = softmax(Branch::kGlobal), local = softmax(Branch::kLocal);
    const size_t statistic = static_cast<size_t>(head * batch_.q_tokens + row);
    lse_global[statistic] = static_cast<float>(global.lse);
    lse_local[statistic] = static_cast<float>(local.lse);
    if (z > 0 && z < 1) dgate[static_cast<size_t>(kv_head)] += global.mean - local.mean;
    const size_t q_at = at(batch_.query_heads, row, head);
    for (int j = 0; j <= i; ++j) {
      const size_t n = static_cast<size_t>(j), k_at = at(batch_.kv_heads, begin + j, kv_head);
      const double p = z * global.p[n] + (1 - z) * local.p[n];
      const double ds = z * global.p[n] * (dp[n] - global.mean) + (1 - z) * local.p[n] * (dp[n] - local.mean);
      for (size_t e = 0; e < dim_; ++e) {
        const int column = static_cast<int>(e);
        const double value = v_.value(begin + j, kv_head, column);
        out[q_at + e] += p * value;
        delta[q_at + e] += (global.p[n] - local.p[n]) * value;
        dv[k_at + e] += p * dout_.value(row, head, column);
        dq[q_at + e] += scale * ds * k_.value(begin + j, kv_head, column);
        dk[k_at + e] += scale * ds * q_.value(row, head, column);
      }
    }
  }

  const Batch& batch_;
  const Tensor &q_, &k_, &v_, &dout_;
  size_t dim_;

 public:
  std::vector<double> dq, dk, dv, out, delta;
  std::vector<float> lse_global, lse_local;
  std::vector<double> dgate;
};

template <class Shape>
class Backward {
 public:
  Backward(const Example& example, uint64_t seed)
      : example_(example),
        random_(seed * 1000 + 17),
        plan_(example.lengths, example.lengths, example.gates, example.group, kDim, example.locality, options()),
        batch_(plan_.schedule().batch),
        q_(kType, batch_.q_tokens, batch_.query_heads, kDim, 1),
        k_(kType, batch_.k_tokens, batch_.kv_heads, kDim, 1),
        v_(kType, batch_.k_tokens, batch_.kv_heads, kDim, 2),
        dout_(kType, batch_.q_tokens, batch_.query_heads, kDim, 3),
        out_(kType, batch_.q_tokens, batch_.query_heads, kDim, 0),
        delta_(out_),
        dq_(out_),
        dk_(kType, batch_.k_tokens, batch_.kv_heads, kDim, 0),
        dv_(dk_),
        dgate_(static_cast<size_t>(batch_.kv_heads), kNan) {
    q_.randomize(example.magnitude, random_);
    k_.randomize(example.magnitude, random_);
    v_.randomize(1, random_);
    dout_.randomize(1, random_);
  }

  void run(uint64_t seed) {
    const Reference want(example_, batch_, q_, k_, v_, dout_);
    std::vector<float> lse_global = want.lse_global, lse_local = want.lse_local;
    for (int t = 0; t < batch_.q_tokens; ++t) {
      for (int h = 0; h < batch_.query_heads; ++h) {
        for (int e = 0; e < kDim; ++e) {
          out_.set(t, h, e, want.out[out_.at(t, h, e)]);
          delta_.set(t, h, e, want.delta[out_.at(t, h, e)]);
        }
      }
    }
    for (const int d : example_.poisoned) {
      for (Tensor* t : {&q_, &k_, &v_, &dout_, &out_, &delta_}) t->poison(batch_.q_bounds[d], batch_.q_bounds[d + 1]);
    }
    std::vector<float> scratch(static_cast<size_t>(backward_scratch(batch_).size), kNan);
    BackwardParams params = {};
    params.schedule = plan_.schedule();
    params.q = q_.packed();
    params.k = k_.packed();
    params.v = v_.packed();
    params.dout = dout_.packed();
    params.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(kDim)));
    params.out = out_.bits.data();
    params.delta = delta_.bits.data();
    params.lse_global = lse_global.data();
    params.lse_local = lse_local.data();
    params.scratch = scratch.data();
    params.dq = dq_.bits.data();
    params.dk = dk_.bits.data();
    params.dv = dv_.bits.data();
    params.dgate = dgate_.data();
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
    memory.add(lse_global, "lse_global");
    memory.add(lse_local, "lse_local");
    memory.add(scratch, "scratch");
    memory.add(dq_.bits, "dq");
    memory.add(dk_.bits, "dk");
    memory.add(dv_.bits, "dv");
    memory.add(dgate_, "dgate");
    memory.add(plan_.schedule().state, sizeof(ScheduleState), "schedule");
    device::emulation::LaunchOptions launch;
    launch.seed = seed;
    launch.blocks = static_cast<int>(prepare_blocks(batch_));
    launch.threads = kBackwardRowThreads;
    launch.shared_bytes = backward::kPrepareSharedBytes;
    emulate(launch, memory, [&] { backward::prepare_rows<kType, kDim>(rows); });
    launch.blocks = 2;
    launch.threads = Shape::kThreads;
    launch.shared_bytes = Shape::kSharedBytes;
    counters_ = emulate(launch, memory, [&] { backward::run<Shape>(arguments); });
    launch.blocks = static_cast<int>(finish_blocks(batch_));
    launch.threads = kBackwardRowThreads;
    launch.shared_bytes = backward::kFinishSharedBytes<kDim>;
    emulate(launch, memory, [&] { backward::finish_rows<kType, kDim>(rows); });

    compare(dq_, want.dq, "dq");
    compare(dk_, want.dk, "dk");
    compare(dv_, want.dv, "dv");
    for (size_t h = 0; h < dgate_.size(); ++h) {
      INFO("dgate " << h);
      if (!example_.poisoned.empty() && want.dgate[h] != 0) continue;
      CHECK(static_cast<double>(dgate_[h]) == Approx(want.dgate[h]).epsilon(0.01).margin(tolerance() * 10));
    }
  }

  const device::emulation::Counters& counters() const { return counters_; }
  const HostPlan& plan() const { return plan_; }

 private:
  static constexpr ElementType kType = Shape::kType;
  static constexpr int kDim = Shape::kHeadDim;
  static ScheduleOptions options() {
    ScheduleOptions options;
    options.with_keys = true;
    return options;
  }
  static double tolerance() { return kType == ElementType::kBFloat16 ? 1e-2 : 1.5e-3; }

  // Relative error in the L2 norm, of every head and document.
  void compare(const Tensor& got, const std::vector<double>& want, const char* name) const {
    for (int d = 0; d < batch_.documents; ++d) {
      if (std::count(example_.poisoned.begin(), example_.poisoned.end(), d) != 0) continue;
      for (int h = 0; h < got.heads; ++h) {
        double error = 0, norm = 0;
        for (int t = batch_.q_bounds[d]; t < batch_.q_bounds[d + 1]; ++t) {
          for (int e = 0; e < kDim; ++e) {
            const double x = got.value(t, h, e), y = want[got.at(t, h, e)];
            error += (x - y) * (x - y);
            norm += y * y;
          }
        }
        INFO(name << ", document " << d << ", head " << h);
        CHECK(std::sqrt(error) <= tolerance() * std::sqrt(norm) + 1e-3);
      }
    }
  }

  Example example_;
  std::mt19937_64 random_;
  HostPlan plan_;
  Batch batch_;
  Tensor q_, k_, v_, dout_, out_, delta_, dq_, dk_, dv_;
  std::vector<float> dgate_;
  device::emulation::Counters counters_;
};

/// Schedules to try: 2, or PRULONG_EMULATION_SEEDS.
int seeds() {
  const char* text = std::getenv("PRULONG_EMULATION_SEEDS");
  return text != nullptr ? std::atoi(text) : 2;
}

using BFloat16Dim128 = BackwardShape<ElementType::kBFloat16, 128>;
using Float16Dim128 = BackwardShape<ElementType::kFloat16, 128>;
using BFloat16Dim64 = BackwardShape<ElementType::kBFloat16, 64>;
using Float16Dim64 = BackwardShape<ElementType::kFloat16, 64>;

template <class Shape>
void check(const Example& example) {
  for (int seed = 1; seed <= seeds(); ++seed) {
    INFO("seed " << seed << ", head_dim " << Shape::kHeadDim);
    Backward<Shape>(example, static_cast<uint64_t>(seed)).run(static_cast<uint64_t>(seed));
  }
}

}  // namespace

TEST_CASE("gradients of a causal head match the mathematics", "[backward]") {
  Example example;
  example.lengths = {300};
  check<BFloat16Dim128>(example);
  check<BFloat16Dim64>(example);
}

TEST_CASE("gradients of documents and gates of all kinds match the mathematics", "[backward]") {
  Example example;
  example.gates = {0.0f, 1.0f, 1e-6f, 0.7f};
  example.locality = {5, 77};
  example.lengths = {0, 1, 127, 128, 129, 257};
  check<BFloat16Dim128>(example);
  check<Float16Dim64>(example);
}

TEST_CASE("gradients of grouped heads match the mathematics", "[backward]") {
  Example example;
  example.group = 3;
  example.gates = {0.3f, 0.0f};
  example.locality = {128, 128};
  example.lengths = {515, 60};
  example.magnitude = 3;
  check<Float16Dim128>(example);
  check<BFloat16Dim64>(example);
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
