// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

#include "trainer/data/integer_file.h"
#include "trainer/data/source.h"

namespace prulong {

/// How a folder of MosaicML MDS shards is read.
struct MdsOptions {
  std::filesystem::path folder;     ///< holds index.json, version 2
  std::optional<IntegerType> type;  ///< what a column of encoding `bytes` holds; none: only typed arrays are accepted
  int64_t vocab_size = 0;           ///< of the model, 1 to 2^31 - 1; larger ids are refused when they are read
};

/// Opens MDS shards, plain or zstd-compressed, as the `mosaicml-streaming` package writes them.
///
/// Tokens come from the column `input_ids` (else `tokens`): an integer ndarray, or bytes. A column `indices` (k x 2,
/// each row [start, end)) says where a sample's documents lie; tokens outside are left out; without it a sample is one
/// document. Other columns are skipped. The pieces of an epoch (packing.h) are the samples and its blocks the shards.
///
/// Only the index is read at first. A shard is opened when its turn comes: sizes and hashes are held against the index
/// (size and every hash that it has), all samples are checked, a compressed one is decompressed in memory.
/// @throws Error naming the file: missing or damaged index; then, from sequence(), missing, shortened or damaged
///         shards.
std::unique_ptr<Source> open_mds(const MdsOptions& options, int64_t seq_len, uint64_t seed);

}  // namespace prulong
