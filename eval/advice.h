// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "trainer/data/source.h"

namespace prulong {

/// The lengths of documents at the beginning of a stream.
struct DocumentLengths {
  int64_t sequences = 0;  ///< looked at
  int64_t longest = 0;    ///< tokens of the longest document in them, as packing cuts it
};

/// Looks at the first sequences of a stream, about a million tokens.
/// @param most  sequences at most.
/// @throws Error naming the file when data on disk is damaged.
DocumentLengths first_documents(const Source& source, int64_t seq_len, int64_t most);

/// What work on such documents cannot mean although it can be done, a sentence each: positions that the model was not
/// made for; local heads that see as much as global ones.
std::vector<std::string> length_advice(const DocumentLengths& lengths, const ModelConfig& model, int64_t sink,
                                       int64_t window);

/// The first of these for a length alone; empty where the model has as many positions.
std::string position_advice(const std::string& what, int64_t tokens, const ModelConfig& model);

}  // namespace prulong
