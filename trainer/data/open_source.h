// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <vector>

#include "trainer/data/options.h"
#include "trainer/data/source.h"

namespace prulong {

/// Opens configured sources and mixes them by weight.
/// @param seed        of the order of documents.
/// @param held_out    synthetic tasks then use names, codes and prose that training never sees.
/// @param vocab_size  the model's: larger ids are refused, at once or (mds, npy, raw) when they are read.
/// @throws Error naming the file or folder.
std::unique_ptr<Source> open_sources(const std::vector<SourceOptions>& sources, int64_t seq_len, int64_t seed,
                                     bool held_out, int64_t vocab_size);

}  // namespace prulong
