// SPDX-License-Identifier: MIT
#include "trainer/trainer.h"

#include <chrono>
#include <string>

#include "common/stop.h"
#include "trainer/run.h"

namespace prulong {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Steps, evaluations and checkpoints until all steps are taken.
/// @throws Stopped on request.
void take_steps(Run& run, const TrainConfig& config) {
  const int64_t first = run.step().step();
  const auto start = Clock::now();
  if (run.evaluation_missing() && first > 0 && run.due(config.eval.every)) run.evaluate();
  while (!run.finished()) {
    const auto step_start = Clock::now();
    const auto result = run.step().run();
    if (!result) throw Stopped();
    run.report(*result, seconds_since(step_start), seconds_since(start), first);
    // Evaluation first: killed in between, the run repeats both rather than losing the held-out line.
    if (run.due(config.eval.every)) run.evaluate();
    if (run.due(config.checkpoint.every)) run.save();
  }
  try {
    run.evaluate();
    run.save_weights();
  } catch (const Stopped&) {
    throw;
  } catch (...) {
    run.save();  // damaged held-out data, say, must not cost the steps
    throw;
  }
  run.save();
  run.info("finished " + std::to_string(run.step().step()) + " steps in " + format_seconds(seconds_since(start)) +
           "; pattern.json, masks.tsv and metrics.jsonl are in " + run.path().string());
}

}  // namespace

Outcome train(const TrainConfig& config, Mesh& mesh) {
  Run run(config, mesh);
  if (run.finished() && !run.evaluation_missing()) {
    run.save_missing_results();
    run.info("nothing to do: all " + std::to_string(run.step().step()) + " steps are finished");
    return Outcome::kFinished;
  }
  run.announce();
  try {
    take_steps(run, config);
  } catch (const Stopped&) {
    run.save();
    run.info("stopped by a signal after step " + std::to_string(run.step().step()) + ", saved in " +
             run.path().string() + "; the same command goes on from there");
    return Outcome::kStopped;
  }
  return Outcome::kFinished;
}

}  // namespace prulong
