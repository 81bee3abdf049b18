// SPDX-License-Identifier: MIT
#include "trainer/run.h"

#include <ATen/Parallel.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <vector>

#include "common/error.h"
#include "common/provenance.h"
#include "eval/advice.h"
#include "model/open_model.h"
#include "model/save_model.h"
#include "parallel/agreement.h"
#include "trainer/checkpoint.h"
#include "trainer/data/open_source.h"
#include "trainer/memory.h"

namespace prulong {
namespace {

std::optional<Pattern> load_start(const TrainConfig& config, const ModelShape& shape) {
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

std::unique_ptr<Source> open_data(const TrainConfig& config, const std::vector<SourceOptions>& sources, bool held_out,
                                  const Llama& model) {
  if (sources.empty()) return nullptr;
  return open_sources(sources, config.train.seq_len, config.train.seed, held_out, model.config().vocab_size);
}

/// Under torchrun the folder's last user may be a rank that is just being ended.
std::unique_ptr<RunFolder> open_folder(const TrainConfig& config, const Mesh& mesh) {
  mesh.enter("opening model and data");
  if (!mesh.leader()) return nullptr;
  return std::make_unique<RunFolder>(config.run.dir, config.run.resume,
                                     mesh.world().size() > 1 ? std::chrono::seconds(10) : std::chrono::seconds(0));
}

}  // namespace

Run::Run(const TrainConfig& config, Mesh& mesh)
    : config_(config),
      mesh_(mesh),
      path_(config.run.dir),
      folder_(open_folder(config, mesh)),
      model_(open_model(config.model, mesh.launch())),
      train_data_(open_data(config, config.data.train, false, model_)),
      eval_data_(open_data(config, config.data.eval, true, model_)),
      start_(load_start(config, model_.config().shape())),
      provenance_{{"model", model_fingerprint(config.model.path)},
                  {"model.dtype", dtype_name(model_.dtype())},
                  {"data.train", train_data_->fingerprint()},
                  {"gates.pattern", start_ ? mask_fingerprint(start_->mask) : "none"}},
      step_(config, model_, *train_data_, start_, join_ranks()) {
  resume();
}

/// Refuses ranks with other inputs, before anything is computed, and forms the groups.
Mesh& Run::join_ranks() {
  mesh_.enter("comparing what ranks were started with");
  auto values = shared_values(config_, provenance_);
  values["data.eval"] = eval_data_ ? eval_data_->fingerprint() : "none";
  values["model.device"] = model_.device().is_cuda() ? "cuda" : "cpu";
  for (const char* const program : {"prulong", "commit", "torch"}) values[program] = versions().at(program);
  check_same_on_all(mesh_.world(), values);
  const int64_t context = config_.parallel.context;
  mesh_.split(context == 0 ? plan_context(model_, config_, mesh_) : context);
  if (mesh_.context().size() > 1) throw ConfigError("parallel.context: expected 1, ranks cannot share a sequence yet");
  if (mesh_.data().size() > config_.train.sequences_per_step) {
    throw ConfigError("train.sequences_per_step: expected a sequence for each of " +
                      std::to_string(mesh_.data().size()) + " ranks (" + std::to_string(mesh_.world().size()) +
                      ", parallel.context " + std::to_string(mesh_.context().size()) + "), found " +
                      std::to_string(config_.train.sequences_per_step) +
                      "; raise it, start fewer ranks, or raise parallel.context");
  }
  return mesh_;
}

/// The leader reads; the others get what it found.
void Run::resume() {
  mesh_.enter("reading the newest checkpoint");
  std::vector<std::string> warnings;
  std::optional<TrainingState> saved;
  if (folder_) {
    saved = load_newest_checkpoint(folder_->checkpoints(), [&](const std::string& text) { warnings.push_back(text); });
    if (saved) check_same_run(saved->identity, identity(), path_);
  }
  const nlohmann::json head = nlohmann::json::parse(first_text(
      mesh_.world(), saved ? nlohmann::json{saved->step, saved->sequences}.dump() : nlohmann::json::array().dump()));
  if (!head.empty()) {
    const TensorMap tensors = first_tensors(mesh_.world(), saved ? saved->tensors : TensorMap());
    try {
      step_.set_state(head[0].get<int64_t>(), head[1].get<int64_t>(), tensors);
    } catch (const Error& error) {
      throw Error((path_ / "checkpoints").string() + ", step " + head[0].dump() + ": " + error.what());
    }
  }
  if (folder_) log_.emplace(path_, step_.step());
  for (const auto& warning : warnings) warn(warning);
  if (!head.empty()) info("going on after step " + std::to_string(step_.step()));
  evaluation_missing_ = any(mesh_.world(), log_ && eval_data_ && !log_->resumed_with("held_out"));
  auto described = provenance_;
  if (eval_data_) described["data.eval"] = eval_data_->fingerprint();
  if (folder_) folder_->describe(config_, described, model_.device());
}

void Run::info(const std::string& message) {
  if (log_) log_->info(message);
}

void Run::warn(const std::string& message) {
  if (log_) log_->warn(message);
}

void Run::announce() {
  if (log_) announce_run();
  announce_ranks();
}

void Run::announce_run() {
  const auto program = versions();
  const ModelShape shape = model_.config().shape();
  info("prulong " + program.at("prulong") + ", commit " + program.at("commit") + ", torch " + program.at("torch") +
       ", on " + machine(model_.device()).at(model_.device().is_cuda() ? "gpu" : "cpu"));
  info("model " + config_.model.path + ": " + std::to_string(shape.layers) + " layers x " +
       std::to_string(shape.kv_heads) + " KV heads, " + dtype_name(model_.dtype()) + " on " + model_.device().str() +
       (model_.device().is_cpu() ? " (" + std::to_string(at::get_num_threads()) + " threads)" : ""));
  info(std::to_string(config_.train.steps) + " steps of " + std::to_string(config_.train.sequences_per_step) + " x " +
       std::to_string(config_.train.seq_len) + " tokens" + describe_policy());
  const auto lengths =
      first_documents(*train_data_, config_.train.seq_len, config_.train.steps * config_.train.sequences_per_step);
  for (const auto& advice : length_advice(lengths, model_.config(), config_.attention.sink, config_.attention.window)) {
    warn("data.train: " + advice);
  }
}

/// What each rank has to say of itself, once where all say the same.
void Run::announce_ranks() {
  const auto note = dtype_note(config_.model, model_);
  const auto notes = gather_texts(mesh_.world(), note.value_or(""));
  for (size_t r = 0; r < notes.size(); ++r) {
    if (notes[r].empty() || (r > 0 && notes[r] == notes[0])) continue;
    info((r > 0 ? "rank " + std::to_string(r) + ": " : "") + notes[r]);
  }
  const int64_t ranks = mesh_.world().size(), data = mesh_.data().size(), context = mesh_.context().size();
  if (ranks == 1) return;
  info(std::to_string(ranks) + " ranks: " + std::to_string(data) + " with sequences of their own" +
       (context == 1 ? "" : ", each shared by " + std::to_string(context)));
  if (config_.train.sequences_per_step % data != 0) {
    warn("train.sequences_per_step " + std::to_string(config_.train.sequences_per_step) + " over " +
         std::to_string(data) +
         " ranks: some wait while others take the last sequences of a step; a multiple is faster");
  }
}

std::string Run::describe_policy() const {
  const RecomputePolicy& policy = step_.policy();
  if (!policy.inputs_only) return "";
  const std::string layers = ", computing layers again in the backward pass";
  if (policy.attention_results == 0) return layers;
  return layers + ", without the attention of " + std::to_string(policy.attention_results);
}

void Run::report(const StepResult& r, double step_s, double elapsed_s, int64_t first_step) {
  const double tokens = static_cast<double>(config_.train.sequences_per_step * config_.train.seq_len);
  const Multipliers& lambda = step_.learner().multipliers();
  nlohmann::json line = {{"step", step_.step()},
                         {"loss_nats", r.loss_nats},
                         {"labels", r.labels},
                         {"sequences", step_.sequences()},
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
  const int64_t ranks = mesh_.world().size();
  if (ranks > 1) {
    line["ranks"] = ranks;
    line["tokens_per_s_per_rank"] = tokens / step_s / static_cast<double>(ranks);
    line["leader_bytes_sent"] = mesh_.bytes_sent();
  }
  if (!r.finite) {
    line["skipped"] = true;
    line["first_sequence"] = step_.sequences() - config_.train.sequences_per_step;
  }
  if (log_) log_->metrics(line.dump());
  const auto done = static_cast<double>(step_.step() - first_step);
  const double left_s = elapsed_s / done * static_cast<double>(config_.train.steps - step_.step());
  if (log_) {
    log_->progress({step_.step(), config_.train.steps, r.loss_nats, r.constraint.sparsity, r.constraint.target,
                    lambda.linear, lambda.quadratic, tokens * done / elapsed_s, left_s, ranks});
  }
  if (r.finite) return;
  warn("step " + std::to_string(step_.step()) + " skipped: loss or gradient is not finite (sequences " +
       std::to_string(step_.sequences() - config_.train.sequences_per_step) + " to " +
       std::to_string(step_.sequences() - 1) + " of the stream)");
  if (step_.skipped_in_a_row() >= config_.train.max_skipped_steps) {
    throw Error("training ended at step " + std::to_string(step_.step()) + ": " +
                std::to_string(step_.skipped_in_a_row()) +
                " steps in a row had a non-finite loss or gradient (train.max_skipped_steps); look at the model's "
                "weights and at optimizer.lr_*");
  }
}

void Run::evaluate() {
  if (!eval_data_) return;
  const auto measure = [&](const HeadMask& mask) {
    return prulong::evaluate(model_, *eval_data_, 0, config_.eval.sequences, mask, false, config_.train.loss_chunk,
                             mesh_);
  };
  if (!full_attention_ || config_.train.mode != TrainMode::kMasks) full_attention_ = measure({});
  const EvalResult full = *full_attention_;
  const auto masked = measure(HeadMask::from_pattern(pattern(), model_.config(), model_.device()));
  const auto as_json = [](const EvalResult& h) {
    nlohmann::json object = {{"loss_nats", h.loss_nats}, {"labels", h.labels}};
    if (h.answer_tokens > 0) {
      object["answer_accuracy"] = h.answer_accuracy;
      object["answer_exact"] = h.answer_exact;
    }
    return object;
  };
  if (!log_) return;
  log_->metrics(
      nlohmann::json{{"step", step_.step()}, {"held_out", {{"full", as_json(full)}, {"masked", as_json(masked)}}}}
          .dump());
  char text[160];
  std::snprintf(text, sizeof text, "held out after step %lld: loss %.4f with all heads global, %.4f with the mask",
                static_cast<long long>(step_.step()), full.loss_nats, masked.loss_nats);
  std::string message = text;
  if (full.answer_tokens > 0) {
    std::snprintf(text, sizeof text, "; answer tokens right: %.1f %% and %.1f %%", 100 * full.answer_accuracy,
                  100 * masked.answer_accuracy);
    message += text;
  }
  info(message);
}

/// The rounded mask; with mode weights the one that was given.
Pattern Run::pattern() const {
  auto made = config_.train.mode == TrainMode::kWeights
                  ? *start_
                  : Pattern::from_scores(model_.config().shape(), step_.learner().gates().log_alpha(),
                                         config_.sparsity.end, config_.attention.sink, config_.attention.window);
  made.provenance = versions();
  made.provenance["made_by"] = "prulong-train";
  made.provenance["steps"] = std::to_string(step_.step());
  made.provenance["seed"] = std::to_string(config_.train.seed);
  made.provenance["config_hash"] = fingerprint(identity());
  made.provenance["data"] = provenance_.at("data.train");
  made.provenance["model"] = config_.model.path;
  made.provenance["model_fingerprint"] = provenance_.at("model");
  return made;
}

void Run::save() {
  mesh_.enter("saving step " + std::to_string(step_.step()));
  if (!folder_) return;
  const TrainingState state{step_.step(), step_.sequences(), step_.state(), identity()};
  save_checkpoint(folder_->checkpoints(), state, config_.checkpoint.keep);
  pattern().save(path_);
}

void Run::save_weights() {
  if (folder_ && config_.train.mode != TrainMode::kMasks) save_model(model_folder(), model_, config_.model.path);
}

void Run::save_missing_results() {
  if (!folder_) return;
  pattern().save(path_);
  if (!std::filesystem::exists(model_folder() / "model.safetensors")) save_weights();
}

}  // namespace prulong
