// SPDX-License-Identifier: MIT
// Small data files written by hand, good and bad.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/files.h"

namespace prulong::test {

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

/// A .npy file: `header` is the dictionary as it stands in the file, `version` 1 to 3.
inline std::string npy(const std::string& header, const std::string& data, int version = 1) {
  std::string bytes("\x93NUMPY", 6);
  bytes += static_cast<char>(version);
  bytes += '\0';
  const auto length = static_cast<uint32_t>(header.size());
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) bytes += static_cast<char>(length >> (8 * i));
  return bytes + header + data;
}

/// The header of a 1-D array.
inline std::string header(const std::string& descr, size_t length) {
  return "{'descr': '" + descr + "', 'fortran_order': False, 'shape': (" + std::to_string(length) + ",), }\n";
}

inline void write_u16(const std::filesystem::path& path, const std::vector<uint16_t>& values) {
  write_text(path, npy(header("<u2", values.size()), bytes_of(values)));
}

inline void write_i64(const std::filesystem::path& path, const std::vector<int64_t>& values) {
  write_text(path, npy(header("<i8", values.size()), bytes_of(values)));
}

/// A token folder of these documents. @param largest_token  as recorded; below 0: not, as in older folders.
inline void write_token_folder(const std::filesystem::path& folder, const std::vector<std::vector<uint16_t>>& documents,
                               int vocab_size, int largest_token = -1) {
  std::filesystem::create_directories(folder);
  std::vector<uint16_t> tokens;
  std::vector<int64_t> offsets = {0};
  for (const auto& document : documents) {
    tokens.insert(tokens.end(), document.begin(), document.end());
    offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  write_u16(folder / "tokens.npy", tokens);
  write_i64(folder / "documents.npy", offsets);
  write_text(folder / "data.json",
             R"({"format": "prulong-tokens", "version": 1, "vocab_size": )" + std::to_string(vocab_size) +
                 (largest_token < 0 ? "" : R"(, "largest_token": )" + std::to_string(largest_token)) +
                 R"(, "tokens": )" + std::to_string(tokens.size()) + R"(, "documents": )" +
                 std::to_string(documents.size()) + "}");
}

}  // namespace prulong::test
