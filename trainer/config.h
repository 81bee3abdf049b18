// SPDX-License-Identifier: MIT
// The configuration of prulong-train, with its defaults. config.cpp has one line per key: range, unit and meaning;
// configs/README.md is generated from both.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/config/config_visitor.h"
#include "model/options.h"
#include "trainer/constraint.h"
#include "trainer/data/options.h"

namespace prulong {

/// Which values the keys have that a file does not give.
enum class Preset {
  kDefault,
  kReference,  ///< the published recipe's sampled sparsity, rates, decay, warm-up and lengths
};
enum class TrainMode { kMasks, kWeights, kBoth };
enum class LossTokens { kAll, kAnswers };
enum class Recompute { kAuto, kOn, kOff };
enum class Resume { kAuto, kNever };
struct GateOptions {
  double init_mean = 4.0;
  double init_std = 0.01;
  std::string pattern;
};

struct SparsityOptions {
  double start = 0.0;
  double end = 0.7;
  double warmup_ratio = 0.8;
  SparsitySchedule schedule = SparsitySchedule::kLinear;
  SparsityEstimate estimate = SparsityEstimate::kExpected;
  bool linear_term = true;
};

struct OptimizerOptions {
  double lr_gates = 0.1;
  double lr_multipliers = 1.0;
  double lr_weights = 1e-5;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  double gates_weight_decay = 0.0;
  double clip_norm = 1.0;
  double warmup_ratio = 0.1;
  double min_lr_ratio = 0.01;
  bool warmup_from_zero = false;
};

struct TrainOptions {
  TrainMode mode = TrainMode::kMasks;
  int64_t steps = 1000;
  int64_t seq_len = 65536;
  int64_t sequences_per_step = 1;
  LossTokens loss_tokens = LossTokens::kAll;
  int64_t seed = 42;
  Recompute recompute = Recompute::kAuto;
  int64_t loss_chunk = 2048;
  int64_t max_skipped_steps = 10;
};

struct DataOptions {
  std::vector<SourceOptions> train;
  std::vector<SourceOptions> eval;
};

struct EvalOptions {
  int64_t every = 100;
  int64_t sequences = 8;
};

struct CheckpointOptions {
  int64_t every = 50;
  int64_t keep = 3;
};

struct RunOptions {
  std::string dir;
  Resume resume = Resume::kAuto;
};

struct ParallelOptions {
  int64_t context = 1;  ///< 0: auto
  int64_t timeout = 1800;
};

/// Paths are as given: relative ones count from the working folder.
struct TrainConfig {
  Preset preset = Preset::kDefault;
  ModelOptions model;
  AttentionOptions attention;
  GateOptions gates;
  SparsityOptions sparsity;
  OptimizerOptions optimizer;
  TrainOptions train;
  DataOptions data;
  EvalOptions eval;
  CheckpointOptions checkpoint;
  RunOptions run;
  ParallelOptions parallel;

  /// The values that `preset` gives to the keys a file leaves out.
  static TrainConfig of(Preset preset);
};

/// Visits every key, in the order in which they are written and documented.
void visit_config(ConfigVisitor& visitor, TrainConfig& config);

/// The first rule that is broken, if any.
std::optional<ConfigProblem> find_problem(const TrainConfig& config);

/// Reads a YAML file, applies "key.path=value" overrides over it, and checks everything.
/// @throws ConfigError in one line: file and line, key, what was found, what is allowed.
TrainConfig load_train_config(const std::filesystem::path& path, const std::vector<std::string>& overrides = {});

/// The same from text. @param name  what messages call the text.
TrainConfig parse_train_config(const std::string& text, const std::string& name,
                               const std::vector<std::string>& overrides = {});

/// Every key with the value in force, as YAML that reads back to the same configuration.
std::string to_yaml(const TrainConfig& config);

/// The contents of configs/README.md: every key with its defaults, what is allowed, unit and meaning.
std::string train_config_table();

}  // namespace prulong
