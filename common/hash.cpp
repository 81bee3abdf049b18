// SPDX-License-Identifier: MIT
#include "common/hash.h"

#include <xxhash.h>

#include <cstdio>
#include <new>

namespace prulong {

uint64_t hash64(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

Hash64::Hash64() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  XXH3_64bits_reset(state_.get());
}
void Hash64::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }
void Hash64::add(std::string_view bytes) { XXH3_64bits_update(state_.get(), bytes.data(), bytes.size()); }
uint64_t Hash64::value() const { return XXH3_64bits_digest(state_.get()); }

std::string hexadecimal(uint64_t hash) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

}  // namespace prulong
