// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>

#include "trainer/data/source.h"

namespace prulong {

/// Opens a token folder written by `scripts/prepare_data.py text` (its help describes the files).
///
/// The pieces of an epoch (packing.h) are the documents. After the first touch of an epoch (linear in the documents), a
/// sequence costs its length and a search.
/// @param vocab_size  the model's, 1 to 2^31 - 1. The tokenizer may know more tokens, as long as they do not occur.
/// @throws Error naming the file: missing, damaged or inconsistent files, no tokens, tokens beyond the model's (found
/// at
///         once; a folder that does not record its largest token is read through for it). Token ids are checked against
///         both vocabularies again when a sequence is read.
std::unique_ptr<Source> open_token_folder(const std::filesystem::path& folder, int64_t seq_len, uint64_t seed,
                                          int64_t vocab_size = std::numeric_limits<int32_t>::max());

}  // namespace prulong
