// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"

// Attention over a cache page by page, on the calling thread. The page is the unit of arithmetic: each gives a row a
// softmax of its own over the entries that the row sees, and a row merges those of its pages in order. So a row's
// result depends on its query and its pages alone, bit for bit: not on the other rows, nor on who computes which page.
//
// Real: float or double. Arrays are row-major without gaps.
namespace prulong {

/// Columns of padded arrays: a multiple of every register.
constexpr int64_t kPageColumns = 16;
constexpr int64_t padded_columns(int64_t columns) { return (columns + kPageColumns - 1) / kPageColumns * kPageColumns; }

/// Rows that see one page: row r is one of `group` query heads of the query at place first_place + r / group.
template <class Real>
struct PageStep {
  const Real* queries;  ///< [rows, dim], scaled
  const Real* keys;     ///< [entries, dim]
  const Real* values;   ///< [entries, padded_columns(dim)]
  int64_t rows, group, dim;
  int64_t entries;                 ///< of the page, in the list; the rest of it is not read
  int64_t page;                    ///< entries of a whole page
  int64_t first_place, first_key;  ///< places of row 0 and of the page's first entry
  bool is_global;
  int64_t sink, window;
  const Real* next_keys = nullptr;  ///< of the page that comes next, if one does: memory is asked for it early
  const Real* next_values = nullptr;
};

/// A page's softmax, of every row.
template <class Real>
struct PageSoftmax {
  Real* out;  ///< [rows, padded_columns(dim)]: sum of exp(score - maximum) * value
  Real*
      maximum;  ///< [rows]: -infinity for a row that sees no entry, or none with a score above that; its sum is 0 then
  Real* sum;    ///< [rows]: sum of exp(score - maximum)
};

/// Numbers that attend_page needs as scratch.
constexpr int64_t page_scratch(int64_t rows, int64_t dim, int64_t page) { return (rows + dim) * padded_columns(page); }

/// Entries that a row does not see do not reach its results, NaN and infinity included.
template <class Real>
void attend_page(Isa isa, const PageStep<Real>& step, Real* scratch, const PageSoftmax<Real>& result);

/// Merges a page's softmax into that of the pages before it. `first`: there are none, so `total` holds nothing yet.
template <class Real>
void merge_page(Isa isa, const PageSoftmax<Real>& page, const PageSoftmax<Real>& total, bool first, int64_t rows,
                int64_t dim);

}  // namespace prulong
