// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "model/safetensors.h"

namespace prulong {

/// Everything a run needs to go on bit for bit.
struct TrainingState {
  int64_t step = 0;       ///< finished optimizer steps
  int64_t sequences = 0;  ///< sequences drawn from the training stream
  TensorMap tensors;      ///< log_alpha, multipliers, optimizer moments; weights when they are trained
  std::map<std::string, std::string> identity;  ///< what must not change between parts of one run, by key
};

/// Writes `folder`/step-N.safetensors and then step-N.json, which holds size and checksum of the first and whose
/// presence makes the checkpoint complete; each atomically. The checksum is that of what was to be written, so that a
/// file which is not that fails when it is loaded. Then removes all but the newest `keep` (>= 1) up to this step.
/// @throws Error naming the file and the system's reason; older checkpoints stay as they were.
void save_checkpoint(const std::filesystem::path& folder, const TrainingState& state, int64_t keep);

/// The newest checkpoint that verifies. Damaged ones are reported through `warn` and passed over.
/// @returns nothing when the folder has no checkpoint.
/// @throws Error when there are checkpoints and none can be loaded: all are damaged, or another version wrote them.
std::optional<TrainingState> load_newest_checkpoint(const std::filesystem::path& folder,
                                                    const std::function<void(const std::string&)>& warn);

/// Refuses to go on with another identity.
/// @throws Error naming the first key that differs and both values.
void check_same_run(const std::map<std::string, std::string>& saved, const std::map<std::string, std::string>& now,
                    const std::filesystem::path& run);

}  // namespace prulong
