// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>

namespace prulong {

/// The hash of some bytes in lower-case hexadecimal, or nothing for an algorithm that is not known here.
/// @param algorithm  as Python names it: those of hashlib with a fixed length ("sha1", "sha256", "sha3_256", "blake2b",
///        "md5", ...) and of xxhash ("xxh32", "xxh64", "xxh3_64", "xxh128", "xxh3_128").
std::optional<std::string> digest(const std::string& algorithm, std::span<const std::byte> bytes);

}  // namespace prulong
