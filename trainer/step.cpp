// SPDX-License-Identifier: MIT
#include "trainer/step.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "common/error.h"
#include "common/hash.h"
#include "common/stop.h"
#include "parallel/agreement.h"
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

/// The same on all ranks: those of one sequence gather keys in every pass.
RecomputePolicy decide_policy(const TrainConfig& config, const Llama& model, const Mesh& mesh) {
  if (config.train.recompute != Recompute::kAuto) return {config.train.recompute == Recompute::kOn};
  const RecomputePolicy own = plan_recompute(model, config, available_bytes(model, mesh.launch()),
                                             {mesh.world().size(), mesh.context().size()});
  return {any(mesh.world(), own.inputs_only), -largest(mesh.world(), -own.attention_results)};
}

}  // namespace

/// Sums over the sequences of a step.
struct TrainStep::Gradients {
  explicit Gradients(size_t count)
      : gates(count, 0.0), mean_sample{std::vector<double>(count, 0.0), std::vector<double>(count, 0.0)} {}
  std::vector<double> gates;  // by log_alpha
  GateSample mean_sample;
};

/// What this rank finds of one sequence.
struct TrainStep::Pass {
  at::Tensor loss;         // read when everything is under way: reading waits for the GPU
  std::vector<double> dz;  // the loss's gradient by the gates; zeros where they are not trained
};

TrainStep::TrainStep(const TrainConfig& config, Llama& model, const Source& data, const std::optional<Pattern>& start,
                     const Mesh& mesh)
    : config_(config),
      model_(model),
      data_(data),
      mesh_(mesh),
      learner_(config, initial_gates(config, model.config().shape(), start)),
      learning_rate_{config.train.steps, config.optimizer.warmup_ratio, config.optimizer.min_lr_ratio,
                     config.optimizer.warmup_from_zero} {
  if (start) fixed_mask_.assign(start->mask.begin(), start->mask.end());
  if (config.train.mode != TrainMode::kMasks) {
    weights_optimizer_.emplace(model_, AdamWOptions{config.optimizer.beta1, config.optimizer.beta2,
                                                    config.optimizer.eps, config.optimizer.weight_decay, false});
  }
  policy_ = decide_policy(config, model, mesh);
}

std::optional<StepResult> TrainStep::run() {
  const RankGroup& ranks = mesh_.data();
  const int64_t sequences = config_.train.sequences_per_step;
  const std::string name = "step " + std::to_string(step_ + 1);
  mesh_.enter(name + ", reading sequences");
  std::vector<Batch> batches;
  for (int64_t i = ranks.rank(); i < sequences; i += ranks.size()) {
    batches.push_back(make_batch(data_.sequence(sequences_ + i), model_.config().vocab_size,
                                 config_.train.loss_tokens == LossTokens::kAnswers, model_.device()));
  }
  std::vector<GateSample> draws;
  for (int64_t i = 0; i < sequences; ++i) draws.push_back(draw(i));
  StepResult result;
  result.labels = agree_on_labels(batches);
  if (result.labels == 0) throw Error("data.train: a step of sequences without a single label; use longer documents");

  std::vector<Pass> passes;
  for (int64_t first = 0; first < sequences; first += ranks.size()) {  // of those under way at the same time
    if (any(mesh_.world(), stop_requested())) {
      abandon();
      return std::nullopt;
    }
    const int64_t i = first + ranks.rank();
    if (i >= sequences) continue;
    mesh_.enter(name + ", sequence " + std::to_string(sequences_ + i));
    passes.push_back(run_pass(batches[passes.size()], draws[static_cast<size_t>(i)], result.labels));
    if (weights_optimizer_ && batches.size() > 1) weights_optimizer_->accumulate();
  }
  mesh_.enter(name + ", sums over sequences");
  Gradients gradients = sum(passes, draws, result);
  if (weights_optimizer_) weights_optimizer_->sum_over(mesh_.world());
  finish(gradients, result);
  return result;
}

/// Also holds the ranks' gates against each other: they are never exchanged, since all ranks compute the same.
int64_t TrainStep::agree_on_labels(const std::vector<Batch>& batches) const {
  const std::vector<double>& gates = learner_.gates().log_alpha();
  const uint64_t digest = hash64({reinterpret_cast<const char*>(gates.data()), gates.size() * sizeof(double)});
  int64_t own = 0;
  for (const Batch& batch : batches) own += batch.label_count;
  const at::Tensor values = at::empty({2}, at::kLong);
  values.mutable_data_ptr<int64_t>()[0] = own;
  values.mutable_data_ptr<int64_t>()[1] = static_cast<int64_t>(digest);
  const at::Tensor all = mesh_.world().all_gather(values);
  const int64_t shared_by = mesh_.context().size();
  int64_t labels = 0;
  for (int64_t r = 0; r < mesh_.world().size(); ++r) {
    const int64_t* const theirs = all.const_data_ptr<int64_t>() + 2 * r;
    if (r % shared_by == 0) labels += theirs[0];
    if (theirs[1] == all.const_data_ptr<int64_t>()[1]) continue;
    throw Error("rank " + std::to_string(r) + " has other gates than rank 0 at step " + std::to_string(step_ + 1) +
                ": its arithmetic differs; run the same program with the same libraries on every machine");
  }
  return labels;
}

TrainStep::Pass TrainStep::run_pass(const Batch& batch, const GateSample& sample, int64_t labels) {
  const auto shape = model_.config().shape();
  HeadMask mask{to_tensor(sample.z).view({shape.layers, shape.kv_heads}).to(model_.device(), at::kFloat),
                config_.attention.sink, config_.attention.window};
  if (trains_gates()) mask.heads.set_requires_grad(true);
  const auto hidden = model_.forward(batch.input, mask, policy_);
  const auto loss =
      next_token_loss(hidden, model_.head_weight(), batch.labels, config_.train.loss_chunk, batch.label_rows)
          .div(static_cast<double>(labels));
  loss.backward();
  const at::Tensor& gradient = mask.heads.grad();
  return {loss.detach(), gradient.defined() ? to_vector(gradient) : std::vector<double>(sample.z.size(), 0.0)};
}

/// Of mode weights the mask itself.
GateSample TrainStep::draw(int64_t micro_step) const {
  if (trains_gates()) return learner_.gates().sample(step_, micro_step);
  return {fixed_mask_, std::vector<double>(fixed_mask_.size(), 0.0)};
}

/// Exchanges what ranks found of their sequences, and adds it up in the order of sequences and stretches.
TrainStep::Gradients TrainStep::sum(const std::vector<Pass>& own, const std::vector<GateSample>& draws,
                                    StepResult& result) const {
  const int64_t world = mesh_.data().size(), stretches = mesh_.context().size();
  const auto sequences = static_cast<int64_t>(draws.size()), rounds = (sequences + world - 1) / world;
  const auto gates = static_cast<int64_t>(draws[0].z.size()), width = 1 + gates;
  const at::Tensor found = at::zeros({rounds, width}, at::kDouble);
  for (size_t i = 0; i < own.size(); ++i) {
    double* const row = found.mutable_data_ptr<double>() + static_cast<int64_t>(i) * width;
    row[0] = own[i].loss.item<double>();
    std::ranges::copy(own[i].dz, row + 1);
  }
  const at::Tensor all = mesh_.world().all_gather(found);
  Gradients sum(static_cast<size_t>(gates));
  const double share = 1.0 / static_cast<double>(sequences), each = share / static_cast<double>(gates);
  for (int64_t i = 0; i < sequences; ++i) {
    const GateSample& sample = draws[static_cast<size_t>(i)];
    for (int64_t c = 0; c < stretches; ++c) {
      const int64_t rank = i % world * stretches + c;
      const double* const row = all.const_data_ptr<double>() + (rank * rounds + i / world) * width;
      result.loss_nats += row[0];
      for (size_t g = 0; g < sample.z.size(); ++g) sum.gates[g] += row[1 + g] * sample.dz[g];
    }
    for (size_t g = 0; g < sample.z.size(); ++g) {
      sum.mean_sample.z[g] += sample.z[g] * share;
      sum.mean_sample.dz[g] += sample.dz[g] * share;
      result.fractional_share += sample.z[g] > 0 && sample.z[g] < 1 ? each : 0;
      result.local_share += sample.z[g] == 0 ? each : 0;
    }
  }
  return sum;
}

/// Adds the constraint, checks, clips and updates.
void TrainStep::finish(Gradients& sum, StepResult& result) {
  result.constraint = learner_.constrain(step_, sum.mean_sample, sum.gates);
  const double gates_norm = squared_norm(sum.gates) + squared_norm(result.constraint.multiplier_gradient);
  result.gradient_norm =
      std::sqrt((trains_gates() ? gates_norm : 0.0) + (weights_optimizer_ ? squared_weights_norm() : 0.0));
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

/// The first rank's: all ranks must branch and scale alike.
double TrainStep::squared_weights_norm() const {
  const at::Tensor norm = to_tensor({weights_optimizer_->squared_gradient_norm()});
  mesh_.world().broadcast(norm);
  return *norm.const_data_ptr<double>();
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
