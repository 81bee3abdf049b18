// SPDX-License-Identifier: MIT
// The configuration of prulong-eval, with its defaults. eval_config.cpp has one line per key; configs/eval.md is
// generated from both.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "model/options.h"
#include "trainer/data/options.h"

namespace prulong {

/// full: every head global; local: none; pattern: a learned mask; random: masks drawn at random.
enum class MethodType { kFull, kLocal, kPattern, kRandom };

/// One way to keep the KV cache small. A further method joins as an enumerator, its members, and a when().
struct MethodOptions {
  MethodType type = MethodType::kFull;
  std::string label;     ///< in the table; empty: made from the rest
  std::string path;      ///< pattern
  double sparsity = -1;  ///< pattern: round its scores anew (-1: its own mask); random: share of local heads
  int64_t count = 5;     ///< random: how many masks
  int64_t seed = 0;      ///< random
};

/// Paths are as given: relative ones count from the working folder.
struct EvalConfig {
  ModelOptions model;
  AttentionOptions attention;  ///< of local and random heads; a pattern brings its own
  std::vector<SourceOptions> data;
  int64_t seq_len = 1024;
  int64_t sequences = 8;
  std::vector<MethodOptions> methods;
  std::string out;  ///< JSON file; empty: only print
};

/// "full", "local", "pattern" or "random".
std::string_view name_of(MethodType type);

/// Visits every key, in the order in which they are written and documented.
void visit_config(ConfigVisitor& visitor, EvalConfig& config);

/// @throws ConfigError in one line: file and line, key, what was found, what is allowed.
EvalConfig load_eval_config(const std::filesystem::path& path, const std::vector<std::string>& overrides);

/// Every file that is read, the configuration's own at `path` included.
std::vector<std::filesystem::path> files_of(const EvalConfig& config, const std::filesystem::path& path);

/// The contents of configs/eval.md: every key of prulong-eval.
std::string eval_config_table();

}  // namespace prulong
