// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"

namespace prulong {

/// out [rows, outputs] = x [rows, depth] * w [outputs, depth]^T + bias [outputs], float32, row-major without gaps; out
/// overlaps nothing else. Each output is summed in the same order whatever the sizes and the part that is asked for: a
/// row's results depend on that row and w alone. On another kind of processor the order may be another.
struct RowProducts {
  const float* x;
  const float* w;
  const float* bias;  ///< nullptr: none
  float* out;
  int64_t rows, outputs, depth;
};

/// Computes rows [row_begin, row_end) of outputs [output_begin, output_end), on the calling thread, reading those rows
/// of w once for every 128 rows of x or more. Parts for threads: fastest from a multiple of kOutputPanel on.
void row_products(Isa isa, const RowProducts& product, int64_t row_begin, int64_t row_end, int64_t output_begin,
                  int64_t output_end);

constexpr int64_t kOutputPanel = 12;

}  // namespace prulong
