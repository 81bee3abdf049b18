// SPDX-License-Identifier: MIT
#include "trainer/step.h"

#include <cmath>

#include "common/error.h"
#include "common/stop.h"
#include "model/batch.h"
#include "trainer/adamw.h"
#include "trainer/gates.h"
#include "trainer/host_tensor.h"
#include "trainer/memory.h"

namespace prulong {
namespace {

Gates initial_gates(const TrainConfig& config, const ModelShape& shape, const std::optional<Pattern>& start) {
  const auto& g = config.gates;
  const auto seed = static_cast<uint64_t>(config.train.seed);
  if (!start) return Gates(shape.layers, shape.kv_heads, g.init_mean, g.init_std, seed);
  return Gates::from_mask(shape.layers, shape.kv_heads, start->mask, g.init_mean, g.init_std, seed);
}

RecomputePolicy decide_policy(const TrainConfig& config, const Llama& model) {
  if (config.train.recompute != Recompute::kAuto) return {config.train.recompute == Recompute::kOn};
  return plan_recompute(model, config, available_bytes(model.device()));
}

}  // namespace

/// Sums over the sequences of a step.
struct TrainStep::Gradients {
  explicit Gradients(size_t count)
      : gates(count, 0.0), mean_sample{std::vector<double>(count, 0.0), std::vector<double>(count, 0.0)} {}
  std::vector<double> gates;  // by log_alpha
  GateSample mean_sample;
};

TrainStep::TrainStep(const TrainConfig& config, Llama& model, const Source& data, const std::optional<Pattern>& start)
    : config_(config),
      model_(model),
      data_(data),
      learner_(config, initial_gates(config, model.config().shape(), start)),
      learning_rate_{config.train.steps, config.optimizer.warmup_ratio, config.optimizer.min_lr_ratio,
                     config.optimizer.warmup_from_zero} {
  if (start) fixed_mask_.assign(start->mask.begin(), start->mask.end());
  if (config.train.mode != TrainMode::kMasks) {
    weights_optimizer_.emplace(model_, AdamWOptions{config.optimizer.beta1, config.optimizer.beta2,
                                                    config.optimizer.eps, config.optimizer.weight_decay, false});
  }
  policy_ = decide_policy(config, model);
}

std::optional<StepResult> TrainStep::run() {
  const int64_t micro_steps = config_.train.sequences_per_step;
  std::vector<Batch> batches;
  StepResult result;
  for (int64_t i = 0; i < micro_steps; ++i) {
    batches.push_back(make_batch(data_.sequence(sequences_ + i), model_.config().vocab_size,
                                 config_.train.loss_tokens == LossTokens::kAnswers, model_.device()));
    result.labels += batches.back().label_count;
  }
  if (result.labels == 0) throw Error("data.train: a step of sequences without a single label; use longer documents");

  Gradients sum(learner_.gates().log_alpha().size());
  std::vector<at::Tensor> losses;
  for (int64_t i = 0; i < micro_steps; ++i) {
    if (stop_requested()) {
      abandon();
      return std::nullopt;
    }
    const Batch& batch = batches[static_cast<size_t>(i)];
    const GateSample sample = draw(i);
    const auto shape = model_.config().shape();
    HeadMask mask{to_tensor(sample.z).view({shape.layers, shape.kv_heads}).to(model_.device(), at::kFloat),
                  config_.attention.sink, config_.attention.window};
    if (trains_gates()) mask.heads.set_requires_grad(true);
    const auto hidden = model_.forward(batch.input, mask, policy_);
    const auto loss =
        next_token_loss(hidden, model_.head_weight(), batch.labels, config_.train.loss_chunk, batch.label_rows)
            .div(static_cast<double>(result.labels));
    loss.backward();
    losses.push_back(loss.detach());  // read when everything is under way: reading waits for the GPU
    if (weights_optimizer_ && micro_steps > 1) weights_optimizer_->accumulate();
    add(sample, mask.heads, sum, result);
  }
  for (const at::Tensor& loss : losses) result.loss_nats += loss.item<double>();
  finish(sum, result);
  return result;
}

/// Of mode weights the mask itself.
GateSample TrainStep::draw(int64_t micro_step) const {
  if (trains_gates()) return learner_.gates().sample(step_, micro_step);
  return {fixed_mask_, std::vector<double>(fixed_mask_.size(), 0.0)};
}

void TrainStep::add(const GateSample& sample, const at::Tensor& heads, Gradients& sum, StepResult& result) const {
  const auto dz = heads.grad().defined() ? to_vector(heads.grad()) : std::vector<double>(sample.z.size(), 0.0);
  const auto share = 1.0 / static_cast<double>(config_.train.sequences_per_step);
  for (size_t g = 0; g < sample.z.size(); ++g) {
    sum.gates[g] += dz[g] * sample.dz[g];
    sum.mean_sample.z[g] += sample.z[g] * share;
    sum.mean_sample.dz[g] += sample.dz[g] * share;
    const double each = share / static_cast<double>(sample.z.size());
    result.fractional_share += sample.z[g] > 0 && sample.z[g] < 1 ? each : 0;
    result.local_share += sample.z[g] == 0 ? each : 0;
  }
}

/// Adds the constraint, checks, clips and updates.
void TrainStep::finish(Gradients& sum, StepResult& result) {
  result.constraint = learner_.constrain(step_, sum.mean_sample, sum.gates);
  const double gates_norm = squared_norm(sum.gates) + squared_norm(result.constraint.multiplier_gradient);
  result.gradient_norm = std::sqrt((trains_gates() ? gates_norm : 0.0) +
                                   (weights_optimizer_ ? weights_optimizer_->squared_gradient_norm() : 0.0));
  result.finite = std::isfinite(result.loss_nats) && std::isfinite(result.gradient_norm);
  const double factor = learning_rate_.factor(step_);
  result.learning_rate_factor = factor;
  if (result.finite) {
    const double scale = clip_factor(result.gradient_norm, config_.optimizer.clip_norm);
    if (trains_gates()) learner_.update(sum.gates, result.constraint.multiplier_gradient, scale, factor);
    if (weights_optimizer_) weights_optimizer_->step(config_.optimizer.lr_weights * factor, scale);
    skipped_in_a_row_ = 0;
  } else {
    abandon();
    ++skipped_in_a_row_;
  }
  sequences_ += config_.train.sequences_per_step;
  ++step_;
}

void TrainStep::abandon() {
  if (weights_optimizer_) weights_optimizer_->zero_gradients();
}

TensorMap TrainStep::state() const {
  TensorMap state = learner_.state();
  state["skipped_in_a_row"] = to_tensor({static_cast<double>(skipped_in_a_row_)});
  if (weights_optimizer_) state.merge(weights_optimizer_->state());
  return state;
}

void TrainStep::set_state(int64_t step, int64_t sequences, const TensorMap& state) {
  step_ = step;
  sequences_ = sequences;
  skipped_in_a_row_ = static_cast<int64_t>(values_of(state, "skipped_in_a_row", 1)[0]);
  learner_.set_state(state);
  if (weights_optimizer_) weights_optimizer_->set_state(state);
}

}  // namespace prulong
