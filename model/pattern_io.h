// SPDX-License-Identifier: MIT
// What pattern.cpp shares with pattern_json.cpp and pattern_import.cpp; not for others.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "model/pattern.h"

namespace prulong {

/// The bytes of a file that a person could have written.
/// @throws Error naming the file: missing, not a file, unreadable, larger than 64 MiB.
std::string read_small_file(const std::filesystem::path& file);

/// The text of a pattern file; numbers read back exactly.
std::string pattern_to_json(const Pattern& pattern);

/// The inverse; `file` is for messages.
Pattern pattern_from_json(const std::filesystem::path& file, const std::string& text);

/// An integer of a JSON object, as DuoAttention's config.json holds it among other keys; `file` is for messages.
int64_t integer_of_json(const std::filesystem::path& file, const std::string& text, const std::string& key,
                        int64_t minimum);

}  // namespace prulong
