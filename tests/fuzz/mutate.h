// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "trainer/data/random.h"

namespace prulong::fuzz {

/// Changes a file in one to four places: bits, bytes, 16- and 32-bit words, numbers in text; segments are removed,
/// repeated, moved in from elsewhere or filled; the end is cut off.
std::string mutate(std::string bytes, Random& random);

}  // namespace prulong::fuzz
