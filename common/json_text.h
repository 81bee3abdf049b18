// SPDX-License-Identifier: MIT
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace prulong {

/// Parses a JSON object, refusing what the library lets pass and only a damaged or hostile file has: a name twice in
/// one object, and nesting that would exhaust the stack of whoever walks the values.
/// @param where   what the text is, for messages: the file, and the part of it that is meant
/// @param remedy  what to do, for messages: "; download it again"
/// @throws Error naming `where`, what is wrong and `remedy`.
nlohmann::json parse_json_object(std::string_view text, const std::string& where, const std::string& remedy);

/// A value in one printable line for a message; of a long one the beginning.
std::string shown(const nlohmann::json& value);

}  // namespace prulong
