// SPDX-License-Identifier: MIT
#include "csrc/cpu/row_functions.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "csrc/cpu/row_products.h"
#include "tests/support/catch.h"

using namespace prulong;

namespace {

using Values = std::vector<float>;

std::mt19937& generator() {
  static std::mt19937 engine(5);
  return engine;
}

int64_t up_to(int64_t largest) { return std::uniform_int_distribution<int64_t>(1, largest)(generator()); }

Values random_values(int64_t count, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  Values values(static_cast<size_t>(count));
  for (float& x : values) x = normal(generator());
  return values;
}

Values poison(int64_t count) { return Values(static_cast<size_t>(count), std::numeric_limits<float>::quiet_NaN()); }

/// Are these the same bits (NaN included)?
bool same(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

/// One of the instruction sets that this processor has.
Isa each_isa() {
  const Isa isa = GENERATE(Isa::kBaseline, Isa::kAvx2, Isa::kAvx512);
  return std::min(isa, widest_isa());
}

struct Product {
  int64_t rows, outputs, depth;
  Values x, w, bias;

  Product(int64_t rows_, int64_t outputs_, int64_t depth_, bool biased)
      : rows(rows_),
        outputs(outputs_),
        depth(depth_),
        x(random_values(rows * depth)),
        w(random_values(outputs * depth)),
        bias(random_values(biased ? outputs : 0)) {}

  RowProducts into(Values& out) const {
    return {x.data(), w.data(), bias.empty() ? nullptr : bias.data(), out.data(), rows, outputs, depth};
  }

  /// All of it; one more value behind the result must stay as it is.
  Values result(Isa isa) const {
    Values out = poison(rows * outputs + 1);
    row_products(isa, into(out), 0, rows, 0, outputs);
    CHECK(std::isnan(out.back()));
    out.pop_back();
    return out;
  }

  void check_against_double(Isa isa) const {
    const Values out = result(isa);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t o = 0; o < outputs; ++o) {
        double expected = bias.empty() ? 0 : bias[o], size = std::abs(expected);
        for (int64_t k = 0; k < depth; ++k) {
          const double term = static_cast<double>(x[r * depth + k]) * w[o * depth + k];
          expected += term;
          size += std::abs(term);
        }
        REQUIRE(out[r * outputs + o] == Approx(expected).epsilon(0).margin(5e-7 * size));
      }
    }
  }
};

}  // namespace

TEST_CASE("row products match double precision for any sizes") {
  const Isa isa = each_isa();
  for (int i = 0; i < 200; ++i) {
    const int64_t rows = up_to(70), outputs = up_to(40), depth = up_to(100);
    INFO(rows << " x " << outputs << " x " << depth);
    Product(rows, outputs, depth, i % 2 == 0).check_against_double(isa);
  }
  Product(300, 29, 70, true).check_against_double(isa);
  Product(70, 13, 2311, false).check_against_double(isa);  // summed in parts
}

TEST_CASE("row products: the same bits in any company and by any parts") {
  const Isa isa = each_isa();
  for (const int64_t depth : {1, 15, 64, 100, 576, 1163, 1536, 3001}) {
    const Product all(150, 50, depth, true);
    const Values expected = all.result(isa);
    INFO("depth " << depth);
    for (int i = 0; i < 40; ++i) {
      // Rows `first` to `first + count` alone, at another place in memory.
      const int64_t count = i < 20 ? i + 1 : up_to(150), first = up_to(151 - count) - 1;
      Product some = all;
      some.rows = count;
      some.x.assign(all.x.begin() + first * depth, all.x.begin() + (first + count) * depth);
      const Values found = some.result(isa);
      REQUIRE(same(found.data(), expected.data() + first * all.outputs, count * all.outputs));
    }
    for (int i = 0; i < 10; ++i) {
      Values out = poison(all.rows * all.outputs);
      const int64_t row = up_to(all.rows), output = up_to(all.outputs);
      for (const auto& [r0, r1] : {std::pair<int64_t, int64_t>{0, row}, {row, all.rows}}) {
        for (const auto& [o0, o1] : {std::pair<int64_t, int64_t>{0, output}, {output, all.outputs}}) {
          row_products(isa, all.into(out), r0, r1, o0, o1);
        }
      }
      REQUIRE(same(out.data(), expected.data(), all.rows * all.outputs));
    }
  }
}

TEST_CASE("row products: what is not a number stays in its row") {
  const Isa isa = each_isa();
  for (const int64_t depth : {20, 64, 1600}) {
    Product product(9, 14, depth, false);
    const Values expected = product.result(isa);
    product.x[4 * depth + depth - 1] = std::nanf("");
    const Values found = product.result(isa);
    for (int64_t i = 0; i < 9 * 14; ++i) {
      if (i / 14 == 4) {
        REQUIRE(std::isnan(found[i]));
      } else {
        REQUIRE(found[i] == expected[i]);
      }
    }
  }
}

TEST_CASE("rms_norm_rows matches double precision, row by row the same bits") {
  const Isa isa = each_isa();
  for (const int64_t columns : {1, 3, 16, 20, 33, 64, 576, 1001}) {
    const int64_t rows = up_to(20);
    const float eps = 1e-5F;
    const Values x = random_values(rows * columns, 3), weight = random_values(columns);
    Values out = poison(rows * columns), alone = poison(columns);
    rms_norm_rows(isa, x.data(), weight.data(), eps, out.data(), rows, columns);
    for (int64_t r = 0; r < rows; ++r) {
      const float* const row = x.data() + r * columns;
      double sum = 0;
      for (int64_t c = 0; c < columns; ++c) sum += static_cast<double>(row[c]) * row[c];
      const double scale = 1 / std::sqrt(sum / static_cast<double>(columns) + eps);
      for (int64_t c = 0; c < columns; ++c) {
        REQUIRE(out[r * columns + c] == Approx(row[c] * scale * weight[c]).epsilon(1e-6));
      }
      rms_norm_rows(isa, row, weight.data(), eps, alone.data(), 1, columns);
      REQUIRE(same(alone.data(), out.data() + r * columns, columns));
    }
  }
}

TEST_CASE("swiglu_values match double precision, the same bits at any place") {
  const Isa isa = each_isa();
  constexpr int64_t kCount = 1003;
  Values gate = random_values(kCount, 20);
  const Values up = random_values(kCount);
  gate[0] = 0;
  gate[1] = -1e30F;
  gate[2] = 1e30F;
  gate[3] = -95;
  gate[4] = 95;
  Values out = poison(kCount);
  swiglu_values(isa, gate.data(), up.data(), out.data(), kCount);
  for (int64_t i = 0; i < kCount; ++i) {
    const double g = gate[i], expected = g / (1 + std::exp(-g)) * up[i];
    REQUIRE(out[i] == Approx(expected).epsilon(5e-7).margin(1e-35));
  }
  for (int64_t i = 0; i < kCount; ++i) {
    float value = 0;
    swiglu_values(isa, &gate[i], &up[i], &value, 1);
    REQUIRE(same(&value, &out[i], 1));
  }
  gate[7] = std::nanf("");
  swiglu_values(isa, gate.data(), up.data(), gate.data(), kCount);  // in place
  CHECK(std::isnan(gate[7]));
  CHECK(gate[8] == out[8]);
}

TEST_CASE("rotate_rows matches double precision, the same bits at any place") {
  const Isa isa = each_isa();
  for (const int64_t half : {1, 3, 8, 21, 32, 64}) {
    const int64_t rows = up_to(9), heads = up_to(5), width = heads * 2 * half;
    const Values x = random_values(rows * width), cos = random_values(rows * half), sin = random_values(rows * half);
    Values out = poison(rows * width), alone = poison(width);
    rotate_rows(isa, x.data(), cos.data(), sin.data(), out.data(), rows, heads, half);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < half; ++i) {
          const int64_t at = (r * heads + h) * 2 * half + i;
          const double a = x[at], b = x[at + half], c = cos[r * half + i], s = sin[r * half + i];
          REQUIRE(out[at] == Approx(a * c - b * s).margin(1e-6));
          REQUIRE(out[at + half] == Approx(b * c + a * s).margin(1e-6));
        }
      }
      rotate_rows(isa, &x[r * width], &cos[r * half], &sin[r * half], alone.data(), 1, heads, half);
      REQUIRE(same(alone.data(), out.data() + r * width, width));
    }
  }
}

TEST_CASE("rope_rows: the nearest cosine and sine of the float angle") {
  const Values positions = {0, 1, 1000, 131071, 1048575}, frequencies = {1, 0.1F, 3e-4F};
  Values cos = poison(15), sin = cos;
  rope_rows(positions.data(), frequencies.data(), cos.data(), sin.data(), 5, 3);
  for (int64_t i = 0; i < 15; ++i) {
    const float angle = positions[i / 3] * frequencies[i % 3];
    CHECK(cos[i] == static_cast<float>(std::cos(static_cast<double>(angle))));
    CHECK(sin[i] == static_cast<float>(std::sin(static_cast<double>(angle))));
  }
}
