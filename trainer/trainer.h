// SPDX-License-Identifier: MIT
#pragma once

#include "parallel/mesh.h"
#include "trainer/config.h"

namespace prulong {

/// How train() ended.
enum class Outcome {
  kFinished,
  kStopped,  ///< on request (common/stop.h), after saving; the same command goes on
};

/// Runs a training to its end, from the newest checkpoint of its folder if there is one: gates (and weights) are
/// trained, checkpoints, metrics and the rounded pattern written. Every rank of the mesh calls it.
/// @throws Error for anything a user can mend: files, a full disk, too many non-finite steps in a row, unequal ranks.
Outcome train(const TrainConfig& config, Mesh& mesh);

}  // namespace prulong
