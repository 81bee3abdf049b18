// SPDX-License-Identifier: MIT
#include "trainer/schedule.h"

#include "tests/support/catch.h"
#include "tests/trainer/goldens.h"

using namespace prulong;

TEST_CASE("The schedule from zero is Hugging Face's, with the published floor") {
  for (const auto& row : goldens::kSchedule) {
    CAPTURE(row.steps, row.step);
    const LearningRateSchedule schedule{row.steps, row.warmup_ratio, row.floor, true};
    CHECK(schedule.factor(row.step) == Approx(row.factor).epsilon(1e-12).margin(1e-15));
  }
}

TEST_CASE("The default schedule does something in its first step and reaches the full rate") {
  const LearningRateSchedule schedule{10, 0.4, 0.1, false};
  CHECK(schedule.factor(0) == 0.25);
  CHECK(schedule.factor(3) == 1.0);
  CHECK(schedule.factor(4) == 1.0);
  CHECK(schedule.factor(7) == Approx(0.55));
  CHECK(schedule.factor(9) > 0.1);
  CHECK(schedule.factor(10) == Approx(0.1));
  CHECK(LearningRateSchedule{1, 1.0, 0.0, false}.factor(0) == 1.0);
  CHECK(LearningRateSchedule{10, 0.0, 1.0, false}.factor(9) == 1.0);
}
