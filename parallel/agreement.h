// SPDX-License-Identifier: MIT
// What ranks settle between them: flags, texts, states. Every rank of a group calls these in the same order.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/safetensors.h"
#include "parallel/mesh.h"

namespace prulong {

/// Whether the flag is set on any rank.
bool any(const RankGroup& ranks, bool flag);

/// The largest of the ranks' numbers.
int64_t largest(const RankGroup& ranks, int64_t number);

/// Every rank's text, by rank.
std::vector<std::string> gather_texts(const RankGroup& ranks, const std::string& text);

/// The first rank's text.
std::string first_text(const RankGroup& ranks, const std::string& text);

/// The first rank's tensors, on the CPU. @param tensors  of the others nothing is used.
TensorMap first_tensors(const RankGroup& ranks, const TensorMap& tensors);

/// Refuses ranks that were started with other values than the first.
/// @param values  what must be the same, by name.
/// @throws Error on the first rank, naming a rank and the first value that differs there.
void check_same_on_all(const RankGroup& ranks, const std::map<std::string, std::string>& values);

}  // namespace prulong
