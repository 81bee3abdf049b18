// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "trainer/data/source.h"

namespace prulong {

/// Opens a token folder written by `scripts/prepare_data.py text` (its help describes the files).
///
/// The pieces of an epoch (packing.h) are the documents. After the first touch of an epoch (linear in the documents), a
/// sequence costs its length and a search.
/// @throws Error naming the file: missing, damaged or inconsistent files, no tokens. Token ids are checked against the
///         folder's vocabulary when a sequence is read.
std::unique_ptr<Source> open_token_folder(const std::filesystem::path& folder, int64_t seq_len, uint64_t seed);

}  // namespace prulong
