// SPDX-License-Identifier: MIT
#pragma once

#include "trainer/config.h"

namespace prulong {

/// How train() ended.
enum class Outcome {
  kFinished,
  kStopped,  ///< by SIGTERM or SIGINT, after saving; the same command goes on
};

/// Runs a training to its end, from the newest checkpoint of its folder if there is one: gates (and weights) are
/// trained, checkpoints, metrics and the rounded pattern written.
/// @throws Error for anything a user can mend: files, a full disk, too many non-finite steps in a row.
Outcome train(const TrainConfig& config);

/// Makes SIGTERM and SIGINT end train() at the next sequence, saved. For mains.
void stop_on_signals();

}  // namespace prulong
