// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

struct XXH3_state_s;  // of the library, whose header stays out of this one

namespace prulong {

/// XXH3, 64 bits: against damage and for fingerprints, not against forgery.
uint64_t hash64(std::string_view bytes);

/// The same of bytes that come in pieces, however they are cut.
class Hash64 {
 public:
  Hash64();
  void add(std::string_view bytes);
  uint64_t value() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

/// 16 digits, lower case.
std::string hexadecimal(uint64_t hash);

}  // namespace prulong
