// SPDX-License-Identifier: MIT
#include "model/row_functions.h"

#include <ATen/Parallel.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randperm.h>
#include <c10/core/GradMode.h>

#include <memory>

#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"

namespace prulong {
namespace {

/// Every token sees itself alone.
struct SelfAttention : Attention {
  explicit SelfAttention(bool independent) : independent_(independent) {}

  at::Tensor attend(int64_t /*layer*/, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    RecomputeState& /*state*/) override {
    // Not v alone: q and k must count. Elementwise, one product and one sum: the same for each row.
    const int64_t group = q.size(1) / k.size(1);
    return q.add(k.repeat_interleave(group, 1)).add_(v.repeat_interleave(group, 1));
  }
  at::Tensor gates(int64_t /*layer*/) const override { return {}; }
  bool independent_rows() const override { return independent_; }

 private:
  bool independent_;
};

struct Threads {
  explicit Threads(int count) : before(at::get_num_threads()) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before); }
  int before;
};

struct Rows {
  at::Tensor tokens, positions;
  Rows select(const at::Tensor& index) const {
    return {tokens.index_select(0, index), positions.index_select(0, index)};
  }
};

at::Tensor logits(const Llama& model, const Rows& rows, bool independent) {
  const at::Tensor hidden = model.forward(rows.tokens, rows.positions, std::make_shared<SelfAttention>(independent));
  return model.logits(hidden, independent);
}

/// The widths of a small released model, which are multiples of every vector's.
ModelConfig wide_config() {
  ModelConfig config = test::tiny_config(/*tied=*/true);
  config.vocab_size = 500;
  config.hidden_size = 576;
  config.intermediate_size = 1536;
  config.query_heads = 9;
  config.kv_heads = 3;
  config.head_dim = 64;
  config.max_positions = 8192;
  return config;
}

void check_independent(const ModelConfig& config) {
  const c10::NoGradGuard no_grad;
  const Llama model(config, test::tiny_weights(config, at::kFloat));
  constexpr int64_t kCount = 300;
  const Rows all{test::random_tokens(kCount, config.vocab_size), at::rand({kCount}).mul_(8000).floor_()};
  const at::Tensor expected = logits(model, all, true);
  CHECK(at::allclose(expected, logits(model, all, false), 1e-3, 1e-3));
  for (const int count : {1, 2, 3, 4, 5, 7, 8, 13, 64, 65, 257, 300}) {
    INFO(count << " rows");
    const Threads threads(count % 3 + 1);
    const at::Tensor index = at::randperm(kCount).narrow(0, 0, count);
    CHECK(at::equal(logits(model, all.select(index), true), expected.index_select(0, index)));
  }
}

TEST_CASE("row functions: a token's bits depend on no other token of the pass, nor on threads") {
  check_independent(test::tiny_config());
  check_independent(test::extended_config());
  check_independent(wide_config());
}

TEST_CASE("row functions: with gradients, and in other dtypes, the ordinary functions") {
  const at::Tensor x = at::rand({2, 4});
  const RowFunctions& ordinary = row_functions(x, false);
  CHECK(&row_functions(x, true) == &ordinary);
  const c10::NoGradGuard no_grad;
  CHECK(&row_functions(x, false) == &ordinary);
  CHECK(&row_functions(x, true) != &ordinary);
  for (const at::ScalarType dtype : {at::kDouble, at::kBFloat16, at::kHalf}) {
    CHECK(&row_functions(x.to(dtype), true) == &ordinary);
  }
}

TEST_CASE("row functions: the independent ones give what the ordinary give, of tensors with gaps too") {
  const c10::NoGradGuard no_grad;
  const RowFunctions& ordinary = row_functions(at::rand({1}), false);
  const RowFunctions& independent = row_functions(at::rand({1}), true);
  const auto near = [](const at::Tensor& a, const at::Tensor& b) { return at::allclose(a, b, 1e-5, 1e-6); };
  at::manual_seed(4);
  const at::Tensor x = at::randn({30, 7}).t(), weight = at::randn({30, 11}).t();  // both transposed views
  const at::Tensor bias = at::randn({22}).slice(0, 0, 22, 2), scale = at::randn({60}).slice(0, 0, 60, 2);
  CHECK(near(independent.linear(x, weight, {}), ordinary.linear(x, weight, {})));
  CHECK(near(independent.linear(x, weight, bias), ordinary.linear(x, weight, bias)));
  CHECK(near(independent.rms_norm(x, scale, 0.1), ordinary.rms_norm(x, scale, 0.1)));
  CHECK(near(independent.swiglu(x, x), ordinary.swiglu(x, x)));
  const at::Tensor frequencies = at::rand({5}), positions = at::arange(6, at::kFloat);
  const RopeTable table = independent.rope_table(frequencies, positions, at::kFloat);
  const RopeTable expected = ordinary.rope_table(frequencies, positions, at::kFloat);
  CHECK(table.cos.sizes() == expected.cos.sizes());
  CHECK(near(table.cos, expected.cos));
  CHECK(near(table.sin, expected.sin));
  const at::Tensor heads = at::randn({10, 3, 6}).transpose(0, 2);
  CHECK(near(independent.rotate(heads, table), ordinary.rotate(heads, table)));
  for (const int64_t rows : {0, 1}) {
    const at::Tensor some = at::randn({rows, 30});
    CHECK(independent.linear(some, weight, bias).sizes() == at::IntArrayRef{rows, 11});
    CHECK(independent.rms_norm(some, scale, 0.1).sizes() == some.sizes());
    CHECK(independent.swiglu(some, some).sizes() == some.sizes());
  }
}

}  // namespace
}  // namespace prulong
