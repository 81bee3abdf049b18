// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace prulong {

/// XXH3, 64 bits: against damage and for fingerprints, not against forgery.
uint64_t hash64(std::string_view bytes);

/// 16 digits, lower case.
std::string hexadecimal(uint64_t hash);

}  // namespace prulong
