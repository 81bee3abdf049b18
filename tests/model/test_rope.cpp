// SPDX-License-Identifier: MIT
#include "model/rope.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randn_like.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <numbers>

#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"

namespace prulong {
namespace {

/// The published formulas, in double.
double reference_frequency(const RopeConfig& rope, int64_t i, int64_t head_dim) {
  const double plain = std::pow(rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
  if (rope.kind == RopeConfig::Kind::kDefault) return plain;
  if (rope.kind == RopeConfig::Kind::kLinear) return plain / rope.factor;
  const double turns = static_cast<double>(rope.original_max_positions) * plain / (2.0 * std::numbers::pi);
  if (turns < rope.low_freq_factor) return plain / rope.factor;
  if (turns > rope.high_freq_factor) return plain;
  const double share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return (1.0 - share) * plain / rope.factor + share * plain;
}

TEST_CASE("rope: frequencies of every kind") {
  const RopeConfig cases[] = {{RopeConfig::Kind::kDefault, 100000.0},
                              {RopeConfig::Kind::kLinear, 10000.0, 4.0},
                              {RopeConfig::Kind::kLlama3, 500000.0, 8.0, 1.0, 4.0, 8192},
                              {RopeConfig::Kind::kLlama3, 500000.0, 32.0, 1.0, 4.0, 8192}};
  for (const RopeConfig& rope : cases) {
    for (const int64_t head_dim : {6, 64, 128}) {
      const at::Tensor found = rope_frequencies(rope, head_dim);
      REQUIRE(found.sizes() == at::IntArrayRef({head_dim / 2}));
      REQUIRE(found.scalar_type() == at::kFloat);
      for (int64_t i = 0; i < head_dim / 2; ++i) {
        CHECK(found[i].item<double>() == Approx(reference_frequency(rope, i, head_dim)).epsilon(2e-6));
      }
    }
  }
}

TEST_CASE("rope: turns pairs of dimensions half a head apart, and its gradient turns back") {
  const int64_t half = 3;
  const at::Tensor positions = at::arange(5, at::TensorOptions().dtype(at::kFloat));
  const RopeTable table = rope_table(rope_frequencies({}, 2 * half), positions, at::kDouble);
  const at::Tensor x = at::randn({5, 2, 2 * half}, at::TensorOptions().dtype(at::kDouble)).set_requires_grad(true);
  const at::Tensor weight = at::randn_like(x);

  const at::Tensor out = rotate(x, table);
  const at::Tensor other_half = at::cat({x.narrow(2, half, half).neg(), x.narrow(2, 0, half)}, 2);
  const at::Tensor cos = at::cat({table.cos, table.cos}, 2), sin = at::cat({table.sin, table.sin}, 2);
  const at::Tensor expected = x.mul(cos).add(other_half.mul(sin));
  CHECK(at::allclose(out, expected, 0, 1e-14));
  const at::Tensor found_grad = torch::autograd::grad({out}, {x}, {weight})[0];
  const at::Tensor expected_grad = torch::autograd::grad({expected}, {x}, {weight})[0];
  CHECK(at::allclose(found_grad, expected_grad, 0, 1e-14));
  // Turning keeps lengths (the table is made in float32), and position 0 stays.
  CHECK(at::allclose(out.norm(), x.norm(), 1e-6));
  CHECK(at::equal(out[0], x[0]));
}

}  // namespace
}  // namespace prulong
