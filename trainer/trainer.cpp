// SPDX-License-Identifier: MIT
#include "trainer/trainer.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "common/error.h"
#include "common/provenance.h"
#include "common/run_log.h"
#include "eval/held_out.h"
#include "model/batch.h"
#include "model/llama.h"
#include "model/open_model.h"
#include "model/save_model.h"
#include "trainer/adamw.h"
#include "trainer/checkpoint.h"
#include "trainer/data/open_source.h"
#include "trainer/gate_learner.h"
#include "trainer/host_tensor.h"
#include "trainer/memory.h"
#include "trainer/run_folder.h"
#include "trainer/schedule.h"
#include "trainer/weights_optimizer.h"

namespace prulong {
namespace {

using Clock = std::chrono::steady_clock;
std::atomic<bool> stop_requested{false};

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// What one optimizer step measured.
struct StepResult {
  double loss_nats = 0;  ///< mean per label
  ConstraintStep constraint;
  double gradient_norm = 0;
  double learning_rate_factor = 0;
  double fractional_share = 0;  ///< of the step's draws: neither 0 nor 1, both branches computed
  double local_share = 0;       ///< of the step's draws: exactly 0
  int64_t labels = 0;
  bool finite = true;
};

class Trainer {
 public:
  explicit Trainer(const TrainConfig& config)
      : config_(config),
        folder_(config.run.dir, config.run.resume),
        model_(open_model(config.model)),
        device_(model_.device()),
        dtype_(model_.dtype()),
        shape_(model_.config().shape()),
        train_data_(open_sources(config.data.train, config.train.seq_len, config.train.seed, false,
                                 model_.config().vocab_size)),
        start_(load_start(config, shape_)),
        learner_(config, initial_gates()),
        learning_rate_{config.train.steps, config.optimizer.warmup_ratio, config.optimizer.min_lr_ratio,
                       config.optimizer.warmup_from_zero} {
    if (!config.data.eval.empty()) {
      eval_data_ =
          open_sources(config.data.eval, config.train.seq_len, config.train.seed, true, model_.config().vocab_size);
    }
    if (config.train.mode != TrainMode::kMasks) {
      weights_optimizer_.emplace(model_, AdamWOptions{config.optimizer.beta1, config.optimizer.beta2,
                                                      config.optimizer.eps, config.optimizer.weight_decay, false});
    }
    policy_ = decide_policy();
    facts_ = find_facts();
    resume();
  }

  Outcome run() {
    if (step_ == config_.train.steps) {
      save_missing_results();
      log_->info("nothing to do: all " + std::to_string(step_) + " steps are finished");
      return Outcome::kFinished;
    }
    announce();
    const int64_t first = step_;
    const auto start = Clock::now();
    while (step_ < config_.train.steps) {
      const auto step_start = Clock::now();
      const auto result = train_step();
      if (!result) {
        save();
        log_->info("stopped by a signal after step " + std::to_string(step_) + ", saved in " + folder_.path().string() +
                   "; the same command goes on from there");
        return Outcome::kStopped;
      }
      report(*result, seconds_since(step_start), seconds_since(start), first);
      // Evaluation first: killed in between, the run repeats both rather than losing the held-out line.
      if (eval_data_ && due(config_.eval.every)) evaluate_held_out();
      if (due(config_.checkpoint.every)) save();
    }
    try {
      if (eval_data_) evaluate_held_out();
      if (weights_optimizer_) save_model(model_folder(), model_, config_.model.path);
    } catch (...) {
      save();  // damaged held-out data, say, must not cost the steps
      throw;
    }
    save();
    log_->info("finished " + std::to_string(step_) + " steps in " + format_seconds(seconds_since(start)) +
               "; pattern.json, masks.tsv and metrics.jsonl are in " + folder_.path().string());
    return Outcome::kFinished;
  }

 private:
  bool trains_gates() const { return config_.train.mode != TrainMode::kWeights; }

  static std::optional<Pattern> load_start(const TrainConfig& config, const ModelShape& shape) {
    const std::string& path = config.gates.pattern;
    if (path.empty()) return std::nullopt;
    auto pattern = Pattern::load(path);
    pattern.check_fits(shape, path);
    const auto& attention = config.attention;
    if (config.train.mode == TrainMode::kWeights &&
        (pattern.sink != attention.sink || pattern.window != attention.window)) {
      const auto keys = [](int64_t sink, int64_t window) {
        return "attention.sink=" + std::to_string(sink) + " attention.window=" + std::to_string(window);
      };
      throw Error(path + ": a mask for " + keys(pattern.sink, pattern.window) + ", but the configuration has " +
                  keys(attention.sink, attention.window) + "; mode weights keeps the mask: set what it is for");
    }
    return pattern;
  }

  Gates initial_gates() const {
    const auto& g = config_.gates;
    const auto seed = static_cast<uint64_t>(config_.train.seed);
    if (!start_) return Gates(shape_.layers, shape_.kv_heads, g.init_mean, g.init_std, seed);
    return Gates::from_mask(shape_.layers, shape_.kv_heads, start_->mask, g.init_mean, g.init_std, seed);
  }

  RecomputePolicy decide_policy() const {
    if (config_.train.recompute != Recompute::kAuto) return {config_.train.recompute == Recompute::kOn};
    return plan_recompute(model_, config_, available_bytes(device_));
  }

  // --- Starting and resuming ---------------------------------------------------------------------------------------

  /// Fingerprints of what the run is made from, wherever it lies.
  std::map<std::string, std::string> find_facts() const {
    return {{"model", model_fingerprint(config_.model.path)},
            {"model.dtype", dtype_name(dtype_)},
            {"data.train", train_data_->fingerprint()},
            {"gates.pattern", start_ ? mask_fingerprint(start_->mask) : "none"}};
  }

  std::map<std::string, std::string> identity() const { return run_identity(config_, facts_); }

  void resume() {
    std::vector<std::string> warnings;
    const auto saved =
        load_newest_checkpoint(folder_.checkpoints(), [&](const std::string& text) { warnings.push_back(text); });
    if (saved) {
      check_same_run(saved->identity, identity(), folder_.path());
      try {
        restore(*saved);
      } catch (const Error& error) {
        throw Error((folder_.checkpoints().string() + ", step ") + std::to_string(saved->step) + ": " + error.what());
      }
    }
    log_.emplace(folder_.path(), step_);
    for (const auto& warning : warnings) log_->warn(warning);
    if (saved) log_->info("going on after step " + std::to_string(step_));
    auto described = facts_;
    if (eval_data_) described["data.eval"] = eval_data_->fingerprint();
    folder_.describe(config_, described, device_);
  }

  void announce() {
    const auto program = versions();
    log_->info("prulong " + program.at("prulong") + ", commit " + program.at("commit") + ", torch " +
               program.at("torch") + ", on " + machine(device_).at(device_.is_cuda() ? "gpu" : "cpu"));
    log_->info("model " + config_.model.path + ": " + std::to_string(shape_.layers) + " layers x " +
               std::to_string(shape_.kv_heads) + " KV heads, " + (dtype_name(dtype_)) + " on " + device_.str() +
               (device_.is_cpu() ? " (" + std::to_string(at::get_num_threads()) + " threads)" : ""));
    if (const auto note = dtype_note(config_.model, model_)) log_->info(*note);
    log_->info(std::to_string(config_.train.steps) + " steps of " + std::to_string(config_.train.sequences_per_step) +
               " x " + std::to_string(config_.train.seq_len) + " tokens" + describe_policy());
  }

  std::string describe_policy() const {
    if (!policy_.inputs_only) return "";
    const std::string layers = ", computing layers again in the backward pass";
    if (policy_.attention_results == 0) return layers;
    return layers + ", without the attention of " + std::to_string(policy_.attention_results);
  }

  // --- One optimizer step ------------------------------------------------------------------------------------------

  /// @returns nothing when a signal came; the step then has had no effect.
  std::optional<StepResult> train_step() {
    const int64_t micro_steps = config_.train.sequences_per_step;
    std::vector<Batch> batches;
    StepResult result;
    for (int64_t i = 0; i < micro_steps; ++i) {
      batches.push_back(make_batch(train_data_->sequence(sequences_ + i), model_.config().vocab_size,
                                   config_.train.loss_tokens == LossTokens::kAnswers, device_));
      result.labels += batches.back().label_count;
    }
    if (result.labels == 0) throw Error("data.train: a step of sequences without a single label; use longer documents");

    const auto gate_count = learner_.gates().log_alpha().size();
    std::vector<double> gate_gradient(gate_count, 0.0);
    GateSample mean_sample{std::vector<double>(gate_count, 0.0), std::vector<double>(gate_count, 0.0)};
    for (int64_t i = 0; i < micro_steps; ++i) {
      if (stop_requested) return abandon_step();
      const GateSample sample = trains_gates() ? learner_.gates().sample(step_, i) : fixed_sample();
      const auto z = to_tensor(sample.z).view({shape_.layers, shape_.kv_heads}).to(device_, at::kFloat);
      HeadMask mask{z, config_.attention.sink, config_.attention.window};
      if (trains_gates()) mask.heads.set_requires_grad(true);
      const auto hidden = model_.forward(batches[static_cast<size_t>(i)].input, mask, policy_);
      const auto loss = next_token_loss(hidden, model_.head_weight(), batches[static_cast<size_t>(i)].labels,
                                        config_.train.loss_chunk)
                            .div(static_cast<double>(result.labels));
      result.loss_nats += loss.item<double>();
      loss.backward();
      accumulate(sample, mask.heads, micro_steps, gate_gradient, mean_sample, result);
    }
    finish_step(gate_gradient, mean_sample, result);
    return result;
  }

  std::optional<StepResult> abandon_step() {
    if (weights_optimizer_) weights_optimizer_->zero_gradients();
    return std::nullopt;
  }

  /// The mask that weights are trained under.
  GateSample fixed_sample() const {
    return {std::vector<double>(start_->mask.begin(), start_->mask.end()),
            std::vector<double>(start_->mask.size(), 0.0)};
  }

  void accumulate(const GateSample& sample, const at::Tensor& heads, int64_t micro_steps,
                  std::vector<double>& gate_gradient, GateSample& mean_sample, StepResult& result) const {
    const auto dz = heads.grad().defined() ? to_vector(heads.grad()) : std::vector<double>(sample.z.size(), 0.0);
    const auto share = 1.0 / static_cast<double>(micro_steps);
    for (size_t g = 0; g < sample.z.size(); ++g) {
      gate_gradient[g] += dz[g] * sample.dz[g];
      mean_sample.z[g] += sample.z[g] * share;
      mean_sample.dz[g] += sample.dz[g] * share;
      const double each = share / static_cast<double>(sample.z.size());
      result.fractional_share += sample.z[g] > 0 && sample.z[g] < 1 ? each : 0;
      result.local_share += sample.z[g] == 0 ? each : 0;
    }
  }

  /// Adds the constraint, checks, clips and updates; a step that is not finite changes nothing but the counters.
  void finish_step(std::vector<double>& gate_gradient, const GateSample& mean_sample, StepResult& result) {
    result.constraint = learner_.constrain(step_, mean_sample, gate_gradient);
    const double gates_norm = squared_norm(gate_gradient) + squared_norm(result.constraint.multiplier_gradient);
    result.gradient_norm = std::sqrt((trains_gates() ? gates_norm : 0.0) +
                                     (weights_optimizer_ ? weights_optimizer_->squared_gradient_norm() : 0.0));
    result.finite = std::isfinite(result.loss_nats) && std::isfinite(result.gradient_norm);
    const double factor = learning_rate_.factor(step_);
    result.learning_rate_factor = factor;
    if (result.finite) {
      const double scale = clip_factor(result.gradient_norm, config_.optimizer.clip_norm);
      if (trains_gates()) learner_.update(gate_gradient, result.constraint.multiplier_gradient, scale, factor);
      if (weights_optimizer_) weights_optimizer_->step(config_.optimizer.lr_weights * factor, scale);
      skipped_in_a_row_ = 0;
    } else {
      abandon_step();
      ++skipped_in_a_row_;
    }
    sequences_ += config_.train.sequences_per_step;
    ++step_;
  }

  // --- Reporting ---------------------------------------------------------------------------------------------------

  bool due(int64_t every) const { return every > 0 && step_ % every == 0 && step_ < config_.train.steps; }

  void report(const StepResult& r, double step_s, double elapsed_s, int64_t first_step) {
    const double tokens = static_cast<double>(config_.train.sequences_per_step * config_.train.seq_len);
    const Multipliers& lambda = learner_.multipliers();
    nlohmann::json line = {{"step", step_},
                           {"loss_nats", r.loss_nats},
                           {"labels", r.labels},
                           {"sequences", sequences_},
                           {"sparsity", r.constraint.sparsity},
                           {"sparsity_expected", r.constraint.expected},
                           {"sparsity_target", r.constraint.target},
                           {"constraint_loss", r.constraint.loss},
                           {"lambda_1", lambda.linear},
                           {"lambda_2", lambda.quadratic},
                           {"gradient_norm", r.gradient_norm},
                           {"learning_rate_factor", r.learning_rate_factor},
                           {"fractional_share", r.fractional_share},
                           {"local_share", r.local_share},
                           {"step_s", step_s},
                           {"tokens_per_s", tokens / step_s}};
    if (!r.finite) {
      line["skipped"] = true;
      line["first_sequence"] = sequences_ - config_.train.sequences_per_step;
    }
    log_->metrics(line.dump());
    const auto done = static_cast<double>(step_ - first_step);
    log_->progress({step_, config_.train.steps, r.loss_nats, r.constraint.sparsity, r.constraint.target, lambda.linear,
                    lambda.quadratic, tokens * done / elapsed_s,
                    elapsed_s / done * static_cast<double>(config_.train.steps - step_)});
    if (r.finite) return;
    log_->warn("step " + std::to_string(step_) + " skipped: loss or gradient is not finite (sequences " +
               std::to_string(sequences_ - config_.train.sequences_per_step) + " to " + std::to_string(sequences_ - 1) +
               " of the stream)");
    if (skipped_in_a_row_ >= config_.train.max_skipped_steps) {
      throw Error("training ended at step " + std::to_string(step_) + ": " + std::to_string(skipped_in_a_row_) +
                  " steps in a row had a non-finite loss or gradient (train.max_skipped_steps); look at the model's "
                  "weights and at optimizer.lr_*");
    }
  }

  void evaluate_held_out() {
    const auto measure = [&](const HeadMask& mask) {
      return evaluate(model_, *eval_data_, 0, config_.eval.sequences, mask, false, config_.train.loss_chunk);
    };
    const auto full = measure({}), masked = measure(HeadMask::from_pattern(pattern(), model_.config(), device_));
    const auto as_json = [](const EvalResult& h) {
      nlohmann::json object = {{"loss_nats", h.loss_nats}, {"labels", h.labels}};
      if (h.answer_tokens > 0) {
        object["answer_accuracy"] = h.answer_accuracy;
        object["answer_exact"] = h.answer_exact;
      }
      return object;
    };
    log_->metrics(
        nlohmann::json{{"step", step_}, {"held_out", {{"full", as_json(full)}, {"masked", as_json(masked)}}}}.dump());
    char text[160];
    std::snprintf(text, sizeof text, "held out after step %lld: loss %.4f with all heads global, %.4f with the mask",
                  static_cast<long long>(step_), full.loss_nats, masked.loss_nats);
    std::string message = text;
    if (full.answer_tokens > 0) {
      std::snprintf(text, sizeof text, "; answer tokens right: %.1f %% and %.1f %%", 100 * full.answer_accuracy,
                    100 * masked.answer_accuracy);
      message += text;
    }
    log_->info(message);
  }

  // --- Saving ------------------------------------------------------------------------------------------------------

  /// The rounded mask; with mode weights the one that was given.
  Pattern pattern() const {
    auto made = trains_gates() ? Pattern::from_scores(shape_, learner_.gates().log_alpha(), config_.sparsity.end,
                                                      config_.attention.sink, config_.attention.window)
                               : *start_;
    made.provenance = versions();
    made.provenance["made_by"] = "prulong-train";
    made.provenance["steps"] = std::to_string(step_);
    made.provenance["seed"] = std::to_string(config_.train.seed);
    made.provenance["config_hash"] = fingerprint(identity());
    made.provenance["data"] = facts_.at("data.train");
    made.provenance["model"] = config_.model.path;
    made.provenance["model_fingerprint"] = facts_.at("model");
    return made;
  }

  void save() {
    TrainingState state{step_, sequences_, learner_.state(), identity()};
    state.tensors["skipped_in_a_row"] = to_tensor({static_cast<double>(skipped_in_a_row_)});
    if (weights_optimizer_) state.tensors.merge(weights_optimizer_->state());
    save_checkpoint(folder_.checkpoints(), state, config_.checkpoint.keep);
    pattern().save(folder_.path());
  }

  std::filesystem::path model_folder() const { return folder_.path() / "model"; }

  /// For a run that ended between its last checkpoint and what follows that.
  void save_missing_results() {
    pattern().save(folder_.path());
    if (weights_optimizer_ && !std::filesystem::exists(model_folder() / "model.safetensors")) {
      save_model(model_folder(), model_, config_.model.path);
    }
  }

  void restore(const TrainingState& state) {
    step_ = state.step;
    sequences_ = state.sequences;
    skipped_in_a_row_ = static_cast<int64_t>(values_of(state.tensors, "skipped_in_a_row", 1)[0]);
    learner_.set_state(state.tensors);
    if (weights_optimizer_) weights_optimizer_->set_state(state.tensors);
  }

  TrainConfig config_;
  RunFolder folder_;
  Llama model_;
  at::Device device_;
  at::ScalarType dtype_;
  ModelShape shape_;
  std::unique_ptr<Source> train_data_, eval_data_;
  std::optional<Pattern> start_;  // gates.pattern
  std::map<std::string, std::string> facts_;
  GateLearner learner_;
  std::optional<WeightsOptimizer> weights_optimizer_;
  LearningRateSchedule learning_rate_;
  std::optional<RunLog> log_;
  RecomputePolicy policy_;
  int64_t step_ = 0, sequences_ = 0, skipped_in_a_row_ = 0;
};

}  // namespace

Outcome train(const TrainConfig& config) { return Trainer(config).run(); }

void stop_on_signals() {
  struct sigaction action = {};
  action.sa_handler = [](int) { stop_requested = true; };
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
}

}  // namespace prulong
