// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "common/json_value.h"

namespace prulong {

/// A JSON file of data, read as a whole.
struct JsonFile {
  /// @throws Error naming the file that is missing, cannot be read or is no JSON object.
  explicit JsonFile(const std::filesystem::path& file);

  /// Refuses a file that is not of this format and version (its keys "format" and "version").
  void require_format(const std::string& format, int64_t version) const;

  std::filesystem::path path;
  std::string content;
  JsonValue root;
};

/// The JSON file that describes a folder which `scripts/prepare_data.py COMMAND` writes.
/// @throws Error naming the folder where it is missing or holds no such file, and the command that writes it.
std::filesystem::path prepared_file(const std::filesystem::path& folder, const std::string& name,
                                    const std::string& command);

}  // namespace prulong
