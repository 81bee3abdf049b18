// SPDX-License-Identifier: MIT
#include "common/hash.h"

#include <xxhash.h>

#include <cstdio>

namespace prulong {

uint64_t hash64(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string hexadecimal(uint64_t hash) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

}  // namespace prulong
