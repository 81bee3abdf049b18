// SPDX-License-Identifier: MIT
// What a result was made with and from, for the files that say so.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace prulong {

/// This program and what it was built with, as key = value: prulong, commit ("-dirty": with changes; "unknown": not
/// from a checkout), torch, cuda (the compiler's), compiler.
std::map<std::string, std::string> versions();

/// Changes when another model lies in a folder: its config.json, and of every *.safetensors its name, size, header and
/// samples of its data. Reads less than 1 MiB per file beside the headers, so other bytes may differ unseen.
/// @throws Error naming the file that cannot be read.
std::string model_fingerprint(const std::filesystem::path& model);

/// Of a mask's values, as Pattern::mask holds them.
std::string mask_fingerprint(const std::vector<uint8_t>& mask);

/// Of any table of keys and values.
std::string fingerprint(const std::map<std::string, std::string>& values);

}  // namespace prulong
