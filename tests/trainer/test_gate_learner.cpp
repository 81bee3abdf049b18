// SPDX-License-Identifier: MIT
#include "trainer/gate_learner.h"

#include "common/error.h"
#include "tests/support/catch.h"

using namespace prulong;

TEST_CASE("Gates that are no longer finite are blamed on the rates, by name") {
  TrainConfig config;
  const auto update = [&] {
    GateLearner learner(config, Gates(2, 2, 4.0, 0.01, 1));
    for (int step = 0; step < 3; ++step) learner.update({1, -1, 1, -1}, {0.5, 0.5}, 1, 1);
  };
  update();
  config.optimizer.lr_gates = 1e308;
  CHECK_THROWS_WITH(update(), ContainsSubstring("no longer finite, with optimizer.lr_gates 1e+308 and "
                                                "optimizer.lr_multipliers 1; lower them"));
  config.optimizer.lr_gates = 0.1;
  config.optimizer.lr_multipliers = 1e308;
  CHECK_THROWS_WITH(update(), ContainsSubstring("optimizer.lr_multipliers 1e+308; lower them"));
}
