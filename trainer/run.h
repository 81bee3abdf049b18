// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "common/run_log.h"
#include "eval/held_out.h"
#include "model/llama.h"
#include "model/pattern.h"
#include "parallel/mesh.h"
#include "trainer/config.h"
#include "trainer/data/source.h"
#include "trainer/run_folder.h"
#include "trainer/step.h"

namespace prulong {

/// A training and everything around its steps: folder, log, held-out evaluation, checkpoints and results. Every rank
/// has one and calls the same functions; the leader's alone has a folder and a log.
class Run {
 public:
  /// Opens model and data, holds the ranks against each other and splits them, locks the folder and goes on from its
  /// newest checkpoint if there is one.
  /// @param mesh  outlives this.
  /// @throws Error for anything a user can mend: files, another run's folder, damaged checkpoints, unequal ranks.
  Run(const TrainConfig& config, Mesh& mesh);

  TrainStep& step() { return step_; }
  void info(const std::string& message);
  void warn(const std::string& message);
  bool finished() const { return step_.step() == config_.train.steps; }
  /// Whether this moment is one of those that lie `every` steps apart; the end is none.
  bool due(int64_t every) const { return every > 0 && step_.step() % every == 0 && !finished(); }
  /// The evaluation of the step that the run goes on from was never finished: it was stopped in it.
  bool evaluation_missing() const { return evaluation_missing_; }

  /// Says what is run with, and on what.
  void announce();
  /// Logs a step. @param first_step  where this process began, `elapsed_s` ago.
  /// @throws Error after train.max_skipped_steps steps in a row that were not finite.
  void report(const StepResult& result, double step_s, double elapsed_s, int64_t first_step);
  /// Measures the mask so far on held-out data and logs it, if there is such data.
  /// @throws Stopped on request.
  void evaluate();
  /// Writes a checkpoint and the mask so far.
  void save();
  /// Writes trained weights.
  void save_weights();
  /// For a run that ended between its last checkpoint and what follows that.
  void save_missing_results();
  const std::filesystem::path& path() const { return path_; }

 private:
  Mesh& join_ranks();
  void resume();
  std::map<std::string, std::string> identity() const { return run_identity(config_, provenance_); }
  void announce_run();
  void announce_ranks();
  std::string describe_policy() const;
  Pattern pattern() const;
  std::filesystem::path model_folder() const { return path_ / "model"; }

  TrainConfig config_;
  Mesh& mesh_;
  std::filesystem::path path_;
  std::unique_ptr<RunFolder> folder_;  // the leader's
  Llama model_;
  std::unique_ptr<Source> train_data_, eval_data_;
  std::optional<Pattern> start_;                   // gates.pattern
  std::map<std::string, std::string> provenance_;  // fingerprints of what the run is made from, wherever it lies
  TrainStep step_;
  std::optional<RunLog> log_;  // the leader's
  bool evaluation_missing_ = false;
  std::optional<EvalResult> full_attention_;  // of frozen weights: measured once
};

}  // namespace prulong
