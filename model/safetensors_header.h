// SPDX-License-Identifier: MIT
// What safetensors files say about themselves. No torch here, so that this is tested apart, under sanitizers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace prulong {

/// A dtype of the format that we read and write.
struct StoredType {
  std::string_view name;
  size_t bytes;
};
constexpr std::array<StoredType, 8> kStoredTypes{
    {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4}, {"U8", 1}, {"BOOL", 1}}};

constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;  ///< bytes; the format's own limit
constexpr const char* kSafetensorsMetadata = "__metadata__";

/// A tensor of a file.
struct StoredTensor {
  std::string name;
  size_t type = 0;  ///< index into kStoredTypes
  std::vector<int64_t> shape;
  uint64_t begin = 0;  ///< bytes from the start of the data
  uint64_t end = 0;
};

/// What stands before a file's data.
struct SafetensorsHeader {
  size_t data_start = 0;              ///< bytes from the start of the file
  std::vector<StoredTensor> tensors;  ///< in the order of their bytes, which they fill from end to end
  std::map<std::string, std::string> metadata;
};

/// Parses and checks the header of a whole file. @param file  for messages.
/// @throws Error naming the file and what is wrong: too short, header not JSON, unknown dtype, offsets that overlap,
///         leave holes, do not match shape and dtype or do not end at the file's end, a name twice.
SafetensorsHeader read_safetensors_header(std::span<const std::byte> bytes, const std::filesystem::path& file);

/// Which file of the folder holds which tensor, by model.safetensors.index.json: paths below the folder.
/// @throws Error naming the file and what is wrong.
std::map<std::string, std::string> read_weight_map(const std::filesystem::path& index);

/// A name out of a file as one printable line.
std::string quote_name(const std::string& name);

}  // namespace prulong
