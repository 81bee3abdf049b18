// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <string>

#include "common/event_file.h"

namespace prulong {

/// What the progress line shows after an optimizer step.
struct Progress {
  int64_t step = 0;   ///< finished steps
  int64_t steps = 0;  ///< steps of the whole run
  double loss_nats = 0;
  double sparsity = 0;
  double sparsity_target = 0;
  double lambda_1 = 0;
  double lambda_2 = 0;
  double tokens_per_s = 0;
  double seconds_left = 0;
  int64_t ranks = 1;  ///< that make tokens_per_s together
};

/// A run's messages (console and `folder`/log.txt) and its measurements (`folder`/metrics.jsonl, and the same numbers
/// for TensorBoard). The only place that knows the logging library, which must not meet torch's headers.
class RunLog {
 public:
  /// @param folder  must exist. Lines of metrics.jsonl for steps after `resume_step` are dropped: the run repeats them.
  /// @throws Error naming the file that cannot be written.
  RunLog(const std::filesystem::path& folder, int64_t resume_step);
  ~RunLog();
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;

  /// Whether metrics.jsonl had a line with this key for the step that the run goes on from.
  bool resumed_with(const std::string& key) const { return resumed_keys_.contains(key); }

  void info(const std::string& message);
  void warn(const std::string& message);

  /// One line that renews itself on a terminal; elsewhere a plain line now and then.
  void progress(const Progress& progress);

  /// Appends one JSON object with a "step", given as text without a newline. TensorBoard gets its numbers under the
  /// same names, those of inner objects joined by '/': "held_out/full/loss_nats".
  /// @throws Error naming the file that cannot be written.
  void metrics(const std::string& json_object);

 private:
  void end_progress_line();

  std::ofstream metrics_;
  std::filesystem::path metrics_path_;
  std::optional<EventFile> events_;  // from the first measurement on: a finished run adds no empty file
  bool terminal_;
  bool line_open_ = false;
  int64_t resume_step_;
  std::set<std::string> resumed_keys_;
  int64_t last_plain_step_;
};

/// "1:23:45", "12:34" or "45 s".
std::string format_seconds(double seconds);

}  // namespace prulong
