// SPDX-License-Identifier: MIT
#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "trainer/config.h"

namespace prulong {

/// A run's folder, held by this process alone: config.yaml (resolved), run.json (fingerprints of model and
/// data, versions, machine), metrics.jsonl and the same for TensorBoard, log.txt, checkpoints/, and at each checkpoint
/// pattern.json and masks.tsv.
class RunFolder {
 public:
  /// Creates the folder and locks it.
  /// @param patience  how long it waits for another process that uses it: a predecessor that is just being ended.
  /// @throws Error naming it: not writable, another process uses it, or not empty with resume: never.
  RunFolder(const std::filesystem::path& path, Resume resume, std::chrono::milliseconds patience = {});
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }

  /// Writes config.yaml and run.json.
  /// @param provenance  what run.json says besides versions and machine.
  /// @param device  where the run computes.
  void describe(const TrainConfig& config, const std::map<std::string, std::string>& provenance,
                at::Device device) const;

 private:
  std::filesystem::path path_;
  int lock_ = -1;
};

/// The files that a run in this folder writes or replaces, those of its folders checkpoints and model as they are now.
std::vector<std::filesystem::path> run_outputs(const std::filesystem::path& folder);

/// What must stay the same when a run goes on: every key that decides its results, by "section.key", and `provenance`
/// (model and data fingerprints).
std::map<std::string, std::string> run_identity(const TrainConfig& config,
                                                std::map<std::string, std::string> provenance);

/// What must be the same on all ranks: every key but those of the leader's folder and of where a machine keeps its
/// files, and `provenance`.
std::map<std::string, std::string> shared_values(const TrainConfig& config,
                                                 std::map<std::string, std::string> provenance);

}  // namespace prulong
