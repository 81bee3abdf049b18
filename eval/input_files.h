// SPDX-License-Identifier: MIT
// What programs read, so that they never write onto it.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "model/options.h"
#include "trainer/data/options.h"

namespace prulong {

/// The files of a model's folder that are read.
std::vector<std::filesystem::path> files_of(const ModelOptions& model);

/// The files of a source of data that are read.
std::vector<std::filesystem::path> files_of(const SourceOptions& source);

/// Where a pattern lies, given as its file or the folder that holds it.
std::filesystem::path file_of_pattern(const std::filesystem::path& path);

/// Refuses to write onto what is read, by whatever names: links of both kinds are seen through.
/// @param key      what names the output in the configuration or on the command line.
/// @param written  files that will be written; most of them are not there yet.
/// @throws ConfigError naming key, output and input, or the folder or device that stands in an output's place.
void refuse_inputs(const std::string& key, const std::vector<std::filesystem::path>& written,
                   const std::vector<std::filesystem::path>& inputs);

}  // namespace prulong
