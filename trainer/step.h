// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/batch.h"
#include "model/llama.h"
#include "model/pattern.h"
#include "parallel/mesh.h"
#include "trainer/config.h"
#include "trainer/data/source.h"
#include "trainer/gate_learner.h"
#include "trainer/schedule.h"
#include "trainer/weights_optimizer.h"

namespace prulong {

/// What one optimizer step measured.
struct StepResult {
  double loss_nats = 0;  ///< mean per label
  ConstraintStep constraint;
  double gradient_norm = 0;
  double learning_rate_factor = 0;
  double fractional_share = 0;  ///< of the step's draws: neither 0 nor 1, both branches computed
  double local_share = 0;       ///< of the step's draws: exactly 0
  int64_t labels = 0;
  bool finite = true;  ///< else the step changed nothing but the counters
};

/// Optimizer steps of a training, one after another: batches become gradients, gradients new gates and weights. Knows
/// the model, the data and the ranks; no files, no log. Every rank takes the same steps: of a step's sequences each has
/// its share, and the sums over all sequences are made in their order. So gates do not depend on the number of ranks
/// where passes do not; trained weights do, by float32 rounding.
class TrainStep {
 public:
  /// @param model  where weights are trained they are made trainable. It, `data` and `mesh` outlive this.
  /// @param start  the mask that gates start from, or that weights are trained under.
  TrainStep(const TrainConfig& config, Llama& model, const Source& data, const std::optional<Pattern>& start,
            const Mesh& mesh);

  /// @returns nothing when a stop was requested of any rank (common/stop.h); the step then has had no effect.
  /// @throws Error if no sequence of the step has a label.
  std::optional<StepResult> run();

  int64_t step() const { return step_; }            ///< steps taken
  int64_t sequences() const { return sequences_; }  ///< sequences of the stream that they took
  int64_t skipped_in_a_row() const { return skipped_in_a_row_; }
  const GateLearner& learner() const { return learner_; }
  /// As configured; with train.recompute: auto what fits beside weights and optimizer.
  const RecomputePolicy& policy() const { return policy_; }

  /// Everything that a later run of the same configuration goes on from, aliasing what is live.
  TensorMap state() const;
  /// @throws Error naming what is missing or of another size.
  void set_state(int64_t step, int64_t sequences, const TensorMap& state);

 private:
  struct Gradients;
  struct Pass;

  bool trains_gates() const { return config_.train.mode != TrainMode::kWeights; }
  GateSample draw(int64_t micro_step) const;
  int64_t agree_on_labels(const std::vector<Batch>& batches) const;
  Pass run_pass(const Batch& batch, const GateSample& sample, int64_t labels);
  Gradients sum(const std::vector<Pass>& own, const std::vector<GateSample>& draws, StepResult& result) const;
  double squared_weights_norm() const;
  void finish(Gradients& sum, StepResult& result);
  void abandon();

  TrainConfig config_;
  Llama& model_;
  const Source& data_;
  const Mesh& mesh_;
  std::vector<double> fixed_mask_;  // mode weights
  GateLearner learner_;
  std::optional<WeightsOptimizer> weights_optimizer_;
  LearningRateSchedule learning_rate_;
  RecomputePolicy policy_;
  int64_t step_ = 0, sequences_ = 0, skipped_in_a_row_ = 0;
};

}  // namespace prulong
