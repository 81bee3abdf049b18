// SPDX-License-Identifier: MIT
// Text from outside (files, their names, command lines) in messages: one line, whatever it holds.
#pragma once

#include <string>
#include <string_view>

namespace prulong {

/// The text with everything escaped that does not print on one line: control characters, the line ends of Unicode,
/// marks that turn the direction of writing, bytes that are no UTF-8. What is escaped already stays as it is.
std::string printable(std::string_view text);

}  // namespace prulong
