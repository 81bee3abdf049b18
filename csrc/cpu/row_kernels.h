// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace prulong {

// The passes over a tile's scores on the CPU in float32, each in one sweep over a row while it is in the first-level
// cache, with an exponential of about 1 ulp that is 4 times as fast as the general one. Row-major [rows, columns]
// arrays without gaps; results do not depend on the number of threads.

/// Continues a running softmax: per row, raises maximum to the largest score so far, replaces the scores by
/// exp(score - maximum), sets shrink to exp(old maximum - maximum), and sum to sum * shrink + the row's new sum. Scores
/// of -infinity become 0. Each maximum must be finite afterwards. `first`: maximum and sum hold nothing yet, shrink is
/// not written.
void softmax_rows(float* scores, int64_t rows, int64_t columns, bool first, float* maximum, float* sum, float* shrink);

/// scores = exp(scores - lam) with one lam per row; results stay finite (at most exp(88)).
void exp_rows(float* scores, int64_t rows, int64_t columns, const float* lam);

/// p = p * (dp - mean) with one mean per row.
void score_gradient_rows(float* p, const float* dp, int64_t rows, int64_t columns, const float* mean);

}  // namespace prulong
