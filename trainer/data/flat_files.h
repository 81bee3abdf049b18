// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

#include "trainer/data/integer_file.h"
#include "trainer/data/source.h"

namespace prulong {

/// What files of tokens without any description need to be said.
struct FlatFileOptions {
  std::filesystem::path path;       ///< a file, or a folder whose *.npy (raw: *.bin) files are taken in order of name
  std::optional<IntegerType> type;  ///< raw files of this type; none: .npy files
  int64_t end_token = -1;           ///< the token that ends each document; -1: none
  int64_t vocab_size = 0;           ///< of the model, 1 to 2^31 - 1; larger ids are refused when they are read
};

/// Opens .npy files (1-D or 2-D, see IntegerFile) or raw files of uint16 or uint32.
///
/// The samples of an epoch (packing.h) are the rows of 2-D arrays and segments of seq_len tokens of everything else
/// (the end of a file: shorter), so that opening costs nothing. Documents end with a sample and after every end_token.
/// The fingerprint knows names, sizes and a sample of every file's bytes, not all of them.
/// @throws Error naming the file or folder: missing, damaged, no tokens, written by prepare_data.py for another type.
std::unique_ptr<Source> open_flat_files(const FlatFileOptions& options, int64_t seq_len, uint64_t seed);

}  // namespace prulong
