// SPDX-License-Identifier: MIT
// What fuzz_readers tests: readers of files that people give to the programs.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace prulong::fuzz {

struct Reader {
  std::string name;
  std::map<std::string, std::string> files;  ///< path in a folder -> content; all of them whole and accepted
  std::function<void(const std::filesystem::path& folder)> read;  ///< reads everything, as a program would
};

/// Sources of training sequences. @param root  of the checkout, for the shards that the real package wrote.
std::vector<Reader> data_readers(const std::filesystem::path& root);

/// Model and run configurations, patterns.
std::vector<Reader> config_readers(const std::filesystem::path& root);

/// Weights and checkpoints.
std::vector<Reader> state_readers();

}  // namespace prulong::fuzz
