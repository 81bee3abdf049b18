// SPDX-License-Identifier: MIT
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace prulong {

/// Parses a JSON object, refusing what the library lets pass and only a damaged or hostile file has: a name twice in
/// one object, and nesting that would exhaust the stack of whoever walks the values. NaN, Infinity and -Infinity are
/// numbers, as Python's json writes and reads them (so configurations of models may hold them): a reader that wants a
/// value must refuse those.
/// @param where   what the text is, for messages: the file, and the part of it that is meant
/// @param remedy  what to do, for messages: "; download it again"
/// @throws Error naming `where`, what is wrong and `remedy`.
nlohmann::json parse_json_object(std::string_view text, const std::string& where, const std::string& remedy);

/// JSON as Python writes it as JSON that every parser reads: the numbers NaN, Infinity and -Infinity become texts that
/// `unquote_numbers` knows again. Other text stays as it is.
std::string quote_numbers(std::string_view text);

/// The inverse of quote_numbers, for what it changed and was parsed and written again.
std::string unquote_numbers(std::string_view text);

/// A value in one printable line for a message; of a long one the beginning.
std::string shown(const nlohmann::json& value);

}  // namespace prulong
