// SPDX-License-Identifier: MIT
// The index.json of MDS shards.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/data/integer_file.h"
#include "trainer/data/json_file.h"

namespace prulong {

/// A column that holds numbers: "ndarray", "ndarray:uint32", "ndarray:uint32:64,2" or "bytes".
struct MdsArrayEncoding {
  bool bytes = false;               ///< values alone, of a type that the file does not say
  std::optional<IntegerType> type;  ///< none: each array says it
  std::vector<int64_t> shape;       ///< empty: each array says it
};

/// The columns of a shard.
struct MdsColumns {
  std::vector<int64_t> sizes;  ///< in bytes, in the order of the file; -1 where each sample says it
  size_t tokens = 0;           ///< which one holds the tokens
  MdsArrayEncoding tokens_encoding;
  std::optional<size_t> spans;  ///< which one says where documents lie
  MdsArrayEncoding spans_encoding;
};

/// A file as the index describes it.
struct MdsFile {
  std::string name;  ///< relative to the index, below its folder
  int64_t bytes = 0;
  std::map<std::string, std::string> hashes;  ///< algorithm -> lower-case hexadecimal
};

/// A shard as the index describes it.
struct MdsShard {
  MdsFile raw;
  std::optional<MdsFile> zip;  ///< the zstd-compressed form
  int64_t samples = 0;
  std::shared_ptr<const MdsColumns> columns;  ///< shared by all shards that have the same
};

/// The integer type of a numpy name, or none. 64-bit unsigned ones count as signed: no token is that large.
std::optional<IntegerType> integer_type(const std::string& name);

/// Reads and checks an index; at least one shard.
/// @param bytes_type  what `bytes` columns hold, if known.
/// @throws Error naming the file and what is wrong.
std::vector<MdsShard> read_mds_index(const JsonFile& index, std::optional<IntegerType> bytes_type);

}  // namespace prulong
