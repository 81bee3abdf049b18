// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace prulong {

/// What every learning rate is multiplied by: a linear rise over the first W = ceil(warmup_ratio * steps) steps, then a
/// cosine from 1 towards min_ratio, which it would reach at step `steps`. The floor does not apply during the rise.
struct LearningRateSchedule {
  int64_t steps = 1000;
  double warmup_ratio = 0.1;
  double min_ratio = 0.01;
  /// true: step / W, whose first step does nothing, as Hugging Face's schedules; false: (step + 1) / W.
  bool warmup_from_zero = false;

  /// In [0, 1]. @param step  optimizer step, from 0.
  double factor(int64_t step) const;
};

}  // namespace prulong
