// SPDX-License-Identifier: MIT
#pragma once

#include <string>

namespace prulong {

/// Whether this CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX). Elsewhere torch falls back to a loop
/// slower than float32, so our linear layers convert to float32 and back.
bool cpu_has_fast_bf16();

/// The processor's name; "unknown" where the system does not say.
std::string cpu_name();

}  // namespace prulong
