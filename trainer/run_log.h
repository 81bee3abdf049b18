// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

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
};

/// A run's messages (console and `folder`/log.txt) and its measurements (`folder`/metrics.jsonl). The only place that
/// knows the logging library, which must not meet torch's headers.
class RunLog {
 public:
  /// @param folder  must exist. Lines of metrics.jsonl for steps after `resume_step` are dropped: the run repeats them.
  /// @throws Error naming the file that cannot be written.
  RunLog(const std::filesystem::path& folder, int64_t resume_step);
  ~RunLog();
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;

  void info(const std::string& message);
  void warn(const std::string& message);

  /// One line that renews itself on a terminal; elsewhere a plain line now and then.
  void progress(const Progress& progress);

  /// Appends one JSON object, given as text without a newline.
  void metrics(const std::string& json_object);

 private:
  void end_progress_line();

  std::ofstream metrics_;
  std::filesystem::path metrics_path_;
  bool terminal_;
  bool line_open_ = false;
  int64_t last_plain_step_ = 0;
};

/// "1:23:45", "12:34" or "45 s".
std::string format_seconds(double seconds);

}  // namespace prulong
