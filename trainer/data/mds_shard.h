// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "trainer/data/corpus.h"
#include "trainer/data/mds_index.h"

namespace prulong {

/// Opens a shard: the uncompressed file if there is one, else the compressed one. Its pieces are the samples.
/// @param folder  of the index.
/// @throws Error naming the file: missing, of another size or hash than the index says, damaged samples.
std::shared_ptr<const Block> open_mds_shard(const std::filesystem::path& folder, const MdsShard& shard,
                                            int64_t vocab_size);

}  // namespace prulong
