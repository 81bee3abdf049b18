// SPDX-License-Identifier: MIT
#include "trainer/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace prulong {

double LearningRateSchedule::factor(int64_t step) const {
  const double total = static_cast<double>(steps);
  const double warmup = std::ceil(warmup_ratio * total);
  const double done = static_cast<double>(step);
  if (done < warmup) return (warmup_from_zero ? done : done + 1) / warmup;
  const double progress = std::min(1.0, (done - warmup) / std::max(1.0, total - warmup));
  return min_ratio + (1 - min_ratio) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
}

}  // namespace prulong
