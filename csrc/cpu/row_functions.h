// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"

namespace prulong {

// A layer's functions of single rows in float32, on the calling thread. Row-major arrays without gaps; a result depends
// on its own row alone, bit for bit: not on the number of rows or where it stands among them. `out` may be an input.

/// out [rows, columns] = x / sqrt(mean(x^2) + eps) * weight, rounded before the weight.
void rms_norm_rows(Isa isa, const float* x, const float* weight, float eps, float* out, int64_t rows, int64_t columns);

/// out [count] = silu(gate) * up.
void swiglu_values(Isa isa, const float* gate, const float* up, float* out, int64_t count);

/// Rotary embedding: out [rows, heads, 2 * half] of x, dimension i paired with i + half, by cos and sin [rows, half].
void rotate_rows(Isa isa, const float* x, const float* cos, const float* sin, float* out, int64_t rows, int64_t heads,
                 int64_t half);

/// cos and sin [rows, half] of the angles positions [rows] * frequencies [half] in float32: the C library's in double
/// precision, rounded.
void rope_rows(const float* positions, const float* frequencies, float* cos, float* sin, int64_t rows, int64_t half);

}  // namespace prulong
