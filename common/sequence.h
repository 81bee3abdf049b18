// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

namespace prulong {

/// One packed training sequence.
struct Sequence {
  std::vector<int32_t> tokens;
  std::vector<int32_t> cu_seqlens;  ///< [docs + 1], from 0 to tokens.size(), strictly increasing
  std::vector<uint8_t> is_answer;   ///< per token: part of a synthetic task's answer; empty when the source has none
};

}  // namespace prulong
