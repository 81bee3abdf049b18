// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace prulong {

/// A program that runs by one configuration file: NAME CONFIG.yaml [key.path=value ...].
struct ConfigProgram {
  std::string name;
  std::string description;  ///< for --help: whole lines
  std::string success;      ///< for --help: what exit status 0 means
  /// Options without a value beside --help and --version: name and help.
  std::vector<std::pair<std::string, std::string>> switches;
  /// Options with a whole number of at least 1: name and help.
  std::vector<std::pair<std::string, std::string>> numbers = {};
};

/// What a command line asks for.
struct ConfigCommand {
  std::string path;                        ///< CONFIG.yaml
  std::vector<std::string> overrides;      ///< key.path=value, in order
  std::set<std::string> switches;          ///< those given, by name
  std::map<std::string, int64_t> numbers;  ///< those given, by name
};

/// The main function of such a program: reads the command line, answers --help and --version itself and calls `body`
/// for all else; errors become one line on standard error.
/// @returns the exit status: 0; 2 for a bad command line or configuration; 1 for any other failure.
int config_main(int argc, char** argv, const ConfigProgram& program,
                const std::function<void(const ConfigCommand&)>& body);

}  // namespace prulong
