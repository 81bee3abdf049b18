// SPDX-License-Identifier: MIT
#include "csrc/cpu/page_kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "tests/support/catch.h"

using namespace prulong;

namespace {

std::mt19937& generator() {
  static std::mt19937 engine(7);
  return engine;
}

int64_t between(int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(generator());
}

template <class Real>
std::vector<Real> random_values(int64_t count) {
  std::normal_distribution<double> normal;
  std::vector<Real> values(static_cast<size_t>(count));
  for (Real& x : values) x = static_cast<Real>(normal(generator()));
  return values;
}

/// One of the instruction sets that this processor has.
Isa each_isa() {
  const Isa isa = GENERATE(Isa::kBaseline, Isa::kAvx2, Isa::kAvx512);
  return std::min(isa, widest_isa());
}

/// What a page or several leave of rows; full of NaN until something is written. Exactly as large as it must be, so
/// that AddressSanitizer sees every step beyond.
template <class Real>
struct Results {
  std::vector<Real> out, maximum, sum;
  Results(int64_t rows, int64_t dim)
      : out(static_cast<size_t>(rows * padded_columns(dim)), std::numeric_limits<Real>::quiet_NaN()),
        maximum(static_cast<size_t>(rows), std::numeric_limits<Real>::quiet_NaN()),
        sum(maximum) {}
  PageSoftmax<Real> arrays() { return {out.data(), maximum.data(), sum.data()}; }
};

/// A list of entries, its pages behind one another, the last one not full, and the queries at its last places.
template <class Real>
struct List {
  int64_t rows, group, dim, page, length, sink, window;
  bool is_global;
  std::vector<Real> queries, keys, values;

  List(int64_t rows_, int64_t group_, int64_t dim_, int64_t page_, int64_t length_, bool is_global_)
      : rows(rows_), group(group_), dim(dim_), page(page_), length(length_), sink(0), window(1), is_global(is_global_) {
    queries = random_values<Real>(rows * dim);
    keys = random_values<Real>(length * dim);
    values.assign(static_cast<size_t>(length * padded_columns(dim)), Real{});
    const std::vector<Real> dense = random_values<Real>(length * dim);
    for (int64_t e = 0; e < length; ++e) {
      std::copy_n(dense.data() + e * dim, dim, values.data() + e * padded_columns(dim));
    }
  }

  int64_t pages() const { return (length + page - 1) / page; }
  int64_t first_place() const { return length - (rows + group - 1) / group; }
  bool sees(int64_t row, int64_t entry) const {
    const int64_t place = first_place() + row / group;
    return entry <= place && (is_global || entry < sink || place - entry < window);
  }

  /// Rows [begin, begin + count), where both are multiples of the group, of one page.
  void attend(Isa isa, int64_t number, int64_t begin, int64_t count, Results<Real>& result) const {
    std::vector<Real> scratch(static_cast<size_t>(page_scratch(count, dim, page)),
                              std::numeric_limits<Real>::quiet_NaN());
    const int64_t first = number * page, entries = std::min(page, length - first);
    const bool last = number + 1 == pages();
    // Copies of their own, so that a read behind the page's entries is one behind an array.
    const std::vector<Real> own_keys(keys.begin() + first * dim, keys.begin() + (first + entries) * dim);
    const int64_t columns = padded_columns(dim);
    const std::vector<Real> own_values(values.begin() + first * columns, values.begin() + (first + entries) * columns);
    attend_page<Real>(isa,
                      {.queries = queries.data() + begin * dim,
                       .keys = own_keys.data(),
                       .values = own_values.data(),
                       .rows = count,
                       .group = group,
                       .dim = dim,
                       .entries = entries,
                       .page = page,
                       .first_place = first_place() + begin / group,
                       .first_key = first,
                       .is_global = is_global,
                       .sink = sink,
                       .window = window,
                       .next_keys = last ? nullptr : keys.data() + (first + page) * dim,
                       .next_values = last ? nullptr : values.data() + (first + page) * columns},
                      scratch.data(), result.arrays());
  }

  Results<Real> all_pages(Isa isa, int64_t begin, int64_t count) const {
    Results<Real> total(count, dim), one(count, dim);
    for (int64_t n = 0; n < pages(); ++n) {
      attend(isa, n, begin, count, one);
      merge_page<Real>(isa, one.arrays(), total.arrays(), n == 0, count, dim);
    }
    return total;
  }
};

/// Against loops in double over what a row sees of entries [begin, end).
template <class Real>
void check(const List<Real>& list, const Results<Real>& got, int64_t begin, int64_t end) {
  const double tolerance = std::is_same_v<Real, float> ? 3e-6 : 1e-13;
  for (int64_t r = 0; r < list.rows; ++r) {
    std::vector<double> scores;
    double most = -std::numeric_limits<double>::infinity();
    for (int64_t e = begin; e < end; ++e) {
      double score = 0;
      for (int64_t d = 0; d < list.dim; ++d) {
        score += static_cast<double>(list.queries[r * list.dim + d]) * list.keys[e * list.dim + d];
      }
      scores.push_back(list.sees(r, e) ? score : -std::numeric_limits<double>::infinity());
      most = std::max(most, scores.back());
    }
    if (std::isinf(most)) {
      REQUIRE(got.maximum[r] == most);
      REQUIRE(got.sum[r] == 0);
      continue;
    }
    double sum = 0;
    for (double& x : scores) sum += x = std::exp(x - most);
    const double scale = 1 + std::abs(most);
    REQUIRE(std::log(got.sum[r]) + got.maximum[r] == Approx(std::log(sum) + most).margin(tolerance * scale));
    for (int64_t d = 0; d < list.dim; ++d) {
      double out = 0, size = 0;
      for (int64_t e = begin; e < end; ++e) {
        const double term = scores[e - begin] * list.values[e * padded_columns(list.dim) + d] / sum;
        out += term;
        size += std::abs(term);
      }
      const double ours = static_cast<double>(got.out[r * padded_columns(list.dim) + d]) / got.sum[r];
      REQUIRE(ours == Approx(out).epsilon(0).margin(tolerance * scale * (1 + size)));
    }
  }
}

template <class Real>
List<Real> random_list(int64_t rows) {
  const int64_t group = between(1, 8), page = between(1, 70);
  const int64_t queries = (rows + group - 1) / group;
  List<Real> list(rows, group, between(1, 40), page, queries + between(0, 3 * page), between(0, 1) == 0);
  list.sink = between(0, 2 * page);
  list.window = between(1, 2 * page);
  return list;
}

template <class Real>
bool same(const std::vector<Real>& a, const Real* b) {
  return std::memcmp(a.data(), b, a.size() * sizeof(Real)) == 0;
}

}  // namespace

TEMPLATE_TEST_CASE("a page's softmax, and pages merged in order, are those of loops in double", "", float, double) {
  const Isa isa = each_isa();
  for (int64_t rows = 1; rows <= 40; ++rows) {
    const List<TestType> list = random_list<TestType>(rows);
    CAPTURE(static_cast<int>(isa), rows, list.group, list.dim, list.page, list.length, list.sink, list.window);
    for (int64_t n = 0; n < list.pages(); ++n) {
      Results<TestType> one(rows, list.dim);
      list.attend(isa, n, 0, rows, one);
      check(list, one, n * list.page, std::min(list.length, (n + 1) * list.page));
    }
    check(list, list.all_pages(isa, 0, rows), 0, list.length);
  }
}

TEMPLATE_TEST_CASE("whole registers and pages give the same as odd ones", "", float, double) {
  const Isa isa = each_isa();
  for (const int64_t dim : {16, 64, 80, 128, 192}) {
    for (const int64_t page : {1, 2, 16, 32, 64, 128}) {
      List<TestType> list(6, 3, dim, page, 2 * page + page / 2 + 2, false);
      list.sink = page / 2;
      list.window = page + 1;
      for (TestType& x : list.queries) x /= static_cast<TestType>(std::sqrt(dim));
      CAPTURE(static_cast<int>(isa), dim, page);
      check(list, list.all_pages(isa, 0, 6), 0, list.length);
    }
  }
}

TEMPLATE_TEST_CASE("a row's results do not depend on the rows beside it", "", float, double) {
  const Isa isa = each_isa();
  for (int64_t rows = 1; rows <= 40; rows += 3) {
    const int64_t page = between(1, 70);
    List<TestType> list(rows, 1, between(1, 40), page, rows + between(0, 3 * page), rows % 2 == 0);
    list.sink = between(0, 2 * page);
    list.window = between(1, 2 * page);
    const Results<TestType> all = list.all_pages(isa, 0, rows);
    for (int64_t r = 0; r < rows; ++r) {
      const Results<TestType> alone = list.all_pages(isa, r, 1);
      REQUIRE(same(alone.out, all.out.data() + r * padded_columns(list.dim)));
      REQUIRE(same(alone.sum, all.sum.data() + r));
      REQUIRE(same(alone.maximum, all.maximum.data() + r));
    }
  }
}

TEMPLATE_TEST_CASE("what is no number reaches those rows alone that see it", "", float, double) {
  const Isa isa = each_isa();
  constexpr int64_t kRows = 20, kLength = 45;
  List<TestType> list(kRows, 1, 19, 32, kLength, false);
  list.sink = 3;
  list.window = 4;
  const Results<TestType> clean = list.all_pages(isa, 0, kRows);
  const auto nan = std::numeric_limits<TestType>::quiet_NaN();
  for (int64_t entry = 0; entry < kLength; ++entry) {
    for (const bool key : {false, true}) {
      List<TestType> bad = list;
      (key ? bad.keys[entry * list.dim + 18] : bad.values[entry * padded_columns(list.dim) + 18]) = nan;
      const Results<TestType> got = bad.all_pages(isa, 0, kRows);
      for (int64_t r = 0; r < kRows; ++r) {
        CAPTURE(static_cast<int>(isa), entry, key, r);
        const int64_t begin = r * padded_columns(list.dim);
        if (list.sees(r, entry)) {
          REQUIRE(std::isnan(got.out[begin + 18]));
          REQUIRE(std::isnan(got.sum[r]) == key);
        } else {
          REQUIRE(std::memcmp(&got.out[begin], &clean.out[begin], list.dim * sizeof(TestType)) == 0);
          REQUIRE(got.sum[r] == clean.sum[r]);
        }
      }
    }
  }
}
