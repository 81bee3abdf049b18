// SPDX-License-Identifier: MIT
#include "csrc/cpu/page_kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "csrc/cpu/exponential.h"

namespace prulong {
namespace {

template <class Real>
constexpr Real kNothing = -std::numeric_limits<Real>::infinity();

template <class Real, int kBytes>
struct Lanes {
  using Type = Vector<Real, kBytes>;
  static constexpr int64_t kCount = kBytes / sizeof(Real);
  /// Of products: as many rows by two vectors as the registers hold beside what is loaded.
  static constexpr int64_t kRows = kBytes == 64 ? 12 : kBytes == 32 ? 6 : 4;

  PRULONG_INLINE static Type load(const Real* from) {
    Type x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
  PRULONG_INLINE static void store(const Type& x, Real* to) { std::memcpy(to, &x, sizeof(x)); }
};

/// Row-major matrices; strides of a and b.
template <class Real>
struct Product {
  const Real* a;  // [rows, depth]
  int64_t a_stride;
  const Real* b;  // [depth, columns]
  int64_t b_stride;
  Real* out;  // [rows, columns], stride b_stride
  int64_t depth;
};

/// out = a b for kRows rows and kVectors vectors of columns, summed in order of depth.
template <class L, class Real, int64_t kRows, int64_t kVectors>
PRULONG_INLINE void multiply_block(const Product<Real>& p) {
  typename L::Type sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < p.depth; ++k) {
    typename L::Type b[kVectors];
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) b[v] = L::load(p.b + k * p.b_stride + v * L::kCount);
#pragma GCC unroll 12
    for (int64_t r = 0; r < kRows; ++r) {
      const typename L::Type a = p.a[r * p.a_stride + k] - typename L::Type{};  // broadcast: x - 0 is x, 0 + x is not
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = multiply_add(sums[r][v], a, b[v]);
    }
  }
#pragma GCC unroll 12
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) L::store(sums[r][v], p.out + r * p.b_stride + v * L::kCount);
  }
}

/// The same for rows <= L::kRows.
template <class L, class Real, int64_t kVectors, int64_t kRows = L::kRows>
PRULONG_INLINE void multiply_rows(const Product<Real>& p, int64_t rows) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return multiply_block<L, Real, kRows, kVectors>(p);
    multiply_rows<L, Real, kVectors, kRows - 1>(p, rows);
  }
}

/// out = a b; columns a multiple of kPageColumns.
template <class L, class Real>
PRULONG_INLINE void multiply(Product<Real> p, int64_t rows, int64_t columns) {
  constexpr int64_t kPair = 2 * L::kCount;
  for (int64_t r = 0; r < rows; r += L::kRows) {
    const int64_t some = std::min(L::kRows, rows - r);
    Product<Real> part = p;
    part.a += r * p.a_stride;
    part.out += r * p.b_stride;
    int64_t c = 0;
    for (; c + kPair <= columns; c += kPair, part.b += kPair, part.out += kPair) {
      multiply_rows<L, Real, 2>(part, some);
    }
    if (c < columns) multiply_rows<L, Real, 1>(part, some);  // kPageColumns is a multiple of one vector
  }
}

/// The lanes' maximum or sum, by halves: a fixed tree.
template <class L, bool kMaximum, int64_t kHalf = L::kCount / 2>
PRULONG_INLINE auto reduced(typename L::Type x) {
  if constexpr (kHalf == 0) {
    return x[0];
  } else {
    using Mask = decltype(x < x);
    using Index = std::remove_cvref_t<decltype(std::declval<Mask>()[0])>;
    Mask other;
#pragma GCC unroll 16
    for (int64_t lane = 0; lane < L::kCount; ++lane) other[lane] = static_cast<Index>(lane ^ kHalf);
    const typename L::Type y = __builtin_shuffle(x, other);
    return reduced<L, kMaximum, kHalf / 2>(kMaximum ? (x > y ? x : y) : x + y);
  }
}

/// Swaps the off-diagonal halves of ever smaller blocks: rows become columns.
template <class L, int64_t kHalf = L::kCount / 2>
PRULONG_INLINE void transpose_block(typename L::Type (&rows)[L::kCount]) {
  if constexpr (kHalf > 0) {
    using Mask = decltype(rows[0] < rows[0]);
    using Index = std::remove_cvref_t<decltype(std::declval<Mask>()[0])>;
    Mask low, high;
#pragma GCC unroll 16
    for (int64_t lane = 0; lane < L::kCount; ++lane) {
      const bool upper = (lane & kHalf) != 0;
      low[lane] = static_cast<Index>(upper ? L::kCount + lane - kHalf : lane);
      high[lane] = static_cast<Index>(upper ? L::kCount + lane : lane + kHalf);
    }
#pragma GCC unroll 16
    for (int64_t r = 0; r < L::kCount; ++r) {
      if ((r & kHalf) != 0) continue;
      const typename L::Type a = rows[r], b = rows[r + kHalf];
      rows[r] = __builtin_shuffle(a, b, low);
      rows[r + kHalf] = __builtin_shuffle(a, b, high);
    }
    transpose_block<L, kHalf / 2>(rows);
  }
}

/// Asks memory for a block of the next page's rows.
template <class Real>
PRULONG_INLINE void ask_for_next(const PageStep<Real>& step, int64_t entry, int64_t column, int64_t size) {
  if (step.next_keys == nullptr) return;
  constexpr int64_t kLine = 64 / sizeof(Real);  // blocks of a narrow register begin no line of their own
  if (column % kLine != 0) return;
#pragma GCC unroll 16
  for (int64_t i = 0; i < size; ++i) {
    __builtin_prefetch(step.next_keys + (entry + i) * step.dim + column, 0, 2);
    __builtin_prefetch(step.next_values + (entry + i) * step.dim + column, 0, 2);
  }
}

/// columns [dim, width] = keys [entries, dim] transposed, zeros behind the entries.
template <class L, class Real>
PRULONG_INLINE void transpose_keys(const PageStep<Real>& step, Real* columns, int64_t width) {
  const int64_t blocked = step.dim / L::kCount * L::kCount;
  for (int64_t e = 0; e < width; e += L::kCount) {
    for (int64_t d = 0; d < blocked; d += L::kCount) {
      typename L::Type rows[L::kCount];
      ask_for_next(step, e, d, L::kCount);
#pragma GCC unroll 16
      for (int64_t i = 0; i < L::kCount; ++i) {
        rows[i] = e + i < step.entries ? L::load(step.keys + (e + i) * step.dim + d) : typename L::Type{};
      }
      transpose_block<L>(rows);
#pragma GCC unroll 16
      for (int64_t i = 0; i < L::kCount; ++i) L::store(rows[i], columns + (d + i) * width + e);
    }
  }
  for (int64_t d = blocked; d < step.dim; ++d) {
    for (int64_t e = 0; e < width; ++e)
      columns[d * width + e] = e < step.entries ? step.keys[e * step.dim + d] : Real{};
  }
}

template <class Type>
PRULONG_INLINE Type exponential_of(Type x) {
  if constexpr (std::is_same_v<decltype(x[0] + 0.0F), float>) {
    return exponential(x);
  } else {
    for (size_t lane = 0; lane < sizeof(x) / sizeof(x[0]); ++lane) x[lane] = std::exp(x[lane]);
    return x;
  }
}

/// The entries of a page that a row sees: [0, sink_end) and [window_begin, end).
struct Seen {
  int64_t sink_end, window_begin, end;
};

template <class Real>
PRULONG_INLINE Seen seen_from(const PageStep<Real>& step, int64_t place) {
  const auto clamped = [](int64_t x, int64_t most) { return std::min(std::max<int64_t>(x, 0), most); };
  const int64_t end = clamped(place + 1 - step.first_key, step.entries);
  if (step.is_global) return {end, end, end};
  const int64_t sink_end = clamped(step.sink - step.first_key, end);
  return {sink_end, std::max(sink_end, clamped(place - step.window + 1 - step.first_key, end)), end};
}

/// scores [width] of a row become exp(score - maximum), 0 where hidden.
template <class L, class Real>
PRULONG_INLINE void softmax_row(const Seen& seen, Real* scores, int64_t width, Real* maximum, Real* sum) {
  for (int64_t e = seen.sink_end; e < seen.window_begin; ++e) scores[e] = kNothing<Real>;
  for (int64_t e = seen.end; e < width; ++e) scores[e] = kNothing<Real>;

  typename L::Type largest = L::load(scores);
  for (int64_t e = L::kCount; e < width; e += L::kCount) {
    const typename L::Type x = L::load(scores + e);
    largest = x > largest ? x : largest;
  }
  Real most = reduced<L, true>(largest);
  if (most == kNothing<Real>) {  // or there are NaNs, which no comparison finds
    for (int64_t e = 0; e < width; ++e) most += scores[e];
  }
  *maximum = most;
  *sum = 0;
  if (most == kNothing<Real>) return std::fill(scores, scores + width, Real{});
  typename L::Type sums = {};
  for (int64_t e = 0; e < width; e += L::kCount) {
    const typename L::Type p = exponential_of(L::load(scores + e) - most);
    L::store(p, scores + e);
    sums += p;
  }
  *sum = reduced<L, false>(sums);
}

/// A row's product with the values once more if what it does not see spoilt it: 0 times NaN or infinity is NaN.
template <class L, class Real>
PRULONG_INLINE void mend_row(const PageStep<Real>& step, const Seen& seen, const Real* weights, Real* out) {
  if (seen.sink_end == seen.window_begin && seen.end == step.entries) return;
  const int64_t columns = padded_columns(step.dim);
  typename L::Type zeros = {};
  for (int64_t c = 0; c < columns; c += L::kCount) zeros += L::load(out + c) * Real{};
  if (reduced<L, false>(zeros) == 0) return;
  for (int64_t c = 0; c < columns; c += L::kCount) {
    typename L::Type sum = {};
    for (int64_t e = 0; e < seen.end; ++e) {
      if (e >= seen.sink_end && e < seen.window_begin) continue;
      sum = multiply_add(sum, weights[e] - typename L::Type{}, L::load(step.values + e * columns + c));
    }
    L::store(sum, out + c);
  }
}

template <class Real>
struct AttendPage {
  template <int kBytes>
  PRULONG_INLINE static void run(const PageStep<Real>& step, Real* scratch, const PageSoftmax<Real>& result) {
    using L = Lanes<Real, kBytes>;
    const int64_t width = padded_columns(step.page), dim = padded_columns(step.dim);
    Real* const columns = scratch;
    Real* const scores = scratch + step.dim * width;
    transpose_keys<L>(step, columns, width);
    multiply<L, Real>({step.queries, step.dim, columns, width, scores, step.dim}, step.rows, width);
    const auto seen = [&](int64_t r) { return seen_from(step, step.first_place + r / step.group); };
    for (int64_t r = 0; r < step.rows; ++r) {
      softmax_row<L>(seen(r), scores + r * width, width, result.maximum + r, result.sum + r);
    }
    multiply<L, Real>({scores, width, step.values, dim, result.out, step.entries}, step.rows, dim);
    for (int64_t r = 0; r < step.rows; ++r) mend_row<L>(step, seen(r), scores + r * width, result.out + r * dim);
  }
};

template <class Real>
struct MergePage {
  template <int kBytes>
  PRULONG_INLINE static void run(const PageSoftmax<Real>& page, const PageSoftmax<Real>& total, bool first,
                                 int64_t rows, int64_t columns) {
    using L = Lanes<Real, kBytes>;
    for (int64_t r = 0; r < rows; ++r) {
      const Real fresh = page.maximum[r];
      const Real* from = page.out + r * columns;
      Real* to = total.out + r * columns;
      if (first || total.maximum[r] == kNothing<Real>) {
        total.maximum[r] = fresh;
        total.sum[r] = page.sum[r];
        std::copy(from, from + columns, to);
        continue;
      }
      if (fresh == kNothing<Real>) continue;
      const Real before = total.maximum[r], most = fresh > before ? fresh : before;
      typename L::Type exponents = {};
      exponents[0] = before - most;
      exponents[1] = fresh - most;
      const typename L::Type factors = exponential_of(exponents);
      const Real old_factor = factors[0], new_factor = factors[1];
      total.maximum[r] = most;
      total.sum[r] = total.sum[r] * old_factor + page.sum[r] * new_factor;
      for (int64_t c = 0; c < columns; c += L::kCount) {
        L::store(L::load(to + c) * old_factor + L::load(from + c) * new_factor, to + c);
      }
    }
  }
};

}  // namespace

template <class Real>
void attend_page(Isa isa, const PageStep<Real>& step, Real* scratch, const PageSoftmax<Real>& result) {
  run_kernel<AttendPage<Real>>(isa, step, scratch, result);
}

template <class Real>
void merge_page(Isa isa, const PageSoftmax<Real>& page, const PageSoftmax<Real>& total, bool first, int64_t rows,
                int64_t dim) {
  run_kernel<MergePage<Real>>(isa, page, total, first, rows, padded_columns(dim));
}

template void attend_page(Isa, const PageStep<float>&, float*, const PageSoftmax<float>&);
template void attend_page(Isa, const PageStep<double>&, double*, const PageSoftmax<double>&);
template void merge_page(Isa, const PageSoftmax<float>&, const PageSoftmax<float>&, bool, int64_t, int64_t);
template void merge_page(Isa, const PageSoftmax<double>&, const PageSoftmax<double>&, bool, int64_t, int64_t);

}  // namespace prulong
