// SPDX-License-Identifier: MIT
#include "trainer/config.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "common/config/config_io.h"
#include "common/error.h"

namespace prulong {
namespace {

using Names = std::string_view;
constexpr std::array<Names, 2> kPresets = {"default", "reference"};
constexpr std::array<Names, 2> kSchedules = {"linear", "logarithmic"};
constexpr std::array<Names, 2> kEstimates = {"expected", "sampled"};
constexpr std::array<Names, 3> kModes = {"masks", "weights", "both"};
constexpr std::array<Names, 2> kLossTokens = {"all", "answers"};
constexpr std::array<Names, 3> kRecompute = {"auto", "on", "off"};
constexpr std::array<Names, 2> kResume = {"auto", "never"};
/// Where the preset is not what the published trainer does, for configs/README.md.
constexpr const char* kReferenceNote = R"(
## What preset reference leaves out
Its keys are the published recipe's; three things that the published trainer does are not done, under any preset:
- It draws one set of gates for all sequences of a step. Here every sequence has its own: the gradient's mean is the same, its
  noise smaller, and the share of heads that compute both branches is the same on average.
- It averages the constraint of each draw. Here the constraint is that of the mean draw. The linear term l1 (s - t) is equal; the
  quadratic one lacks l2 times the variance of the sampled sparsity between draws, which with one set of gates a step is 0 too.
- In mode both it decays the weights of RMSNorms like matrices. Here norms are not decayed: at the published rate that is a
  difference of at most 0.1 % of such a weight over the run.
)";

// Token positions are 32-bit; steps and micro-steps key 32-bit counters.
constexpr int64_t kMaxTokens = int64_t{1} << 30;
constexpr int64_t kMaxSteps = int64_t{1} << 30;
constexpr int64_t kMaxSeed = std::numeric_limits<int64_t>::max();

void visit_options(ConfigVisitor& v, GateOptions& o) {
  v.number(o.init_mean, {"init_mean", "mean of the initial log_alpha; 4 = global in 92 % of draws"},
           Interval::closed(-100, 100));
  v.number(o.init_std, {"init_std", "standard deviation of the initial log_alpha"}, Interval::closed(0, 100));
  v.text(o.pattern,
         {"pattern", "pattern.json with the mask to start from (local heads at -init_mean); in mode weights, to keep"},
         TextRule::kOptional);
}

void visit_options(ConfigVisitor& v, SparsityOptions& o) {
  v.number(o.start, {"start", "target at the first step", "share of KV heads"}, Interval::closed(0, 1));
  v.number(o.end, {"end", "target after the warm-up", "share of KV heads"}, Interval::closed(0, 1));
  v.number(o.warmup_ratio, {"warmup_ratio", "how long the target rises", "share of train.steps"},
           Interval::closed(0, 1));
  v.choice(o.schedule, {"schedule", "what rises linearly: the target t, or ln(1 - t)"}, kSchedules);
  v.choice(o.estimate, {"estimate", "expected: mean P(z = 0); sampled: 1 - mean z of the step's draws"}, kEstimates);
  v.boolean(o.linear_term, {"linear_term", "false leaves only l2 (s - t)^2 of the constraint"});
}

void visit_options(ConfigVisitor& v, OptimizerOptions& o) {
  v.number(o.lr_gates, {"lr_gates", "learning rate of log_alpha"}, Interval::at_least(0));
  v.number(o.lr_multipliers, {"lr_multipliers", "learning rate of the two multipliers"}, Interval::at_least(0));
  v.number(o.lr_weights, {"lr_weights", "learning rate of the model's weights, where they are trained"},
           Interval::at_least(0));
  v.number(o.beta1, {"beta1", "AdamW's decay of the gradient's mean"}, Interval::half_open(0, 1));
  v.number(o.beta2, {"beta2", "AdamW's decay of the squared gradient's mean"}, Interval::half_open(0, 1));
  v.number(o.eps, {"eps", "AdamW's addition to the denominator"}, Interval::above(0));
  v.number(o.weight_decay, {"weight_decay", "decoupled decay of the model's weights"}, Interval::at_least(0));
  v.number(o.gates_weight_decay, {"gates_weight_decay", "decoupled decay of log_alpha and the multipliers"},
           Interval::at_least(0));
  v.number(o.clip_norm, {"clip_norm", "largest joint norm of all gradients; 0 = no clipping"}, Interval::at_least(0));
  v.number(o.warmup_ratio, {"warmup_ratio", "how long the learning rates rise", "share of train.steps"},
           Interval::closed(0, 1));
  v.number(o.min_lr_ratio, {"min_lr_ratio", "where the cosine ends", "share of the learning rate"},
           Interval::closed(0, 1));
  v.boolean(o.warmup_from_zero,
            {"warmup_from_zero", "the first step has learning rate 0, as in Hugging Face's schedules"});
}

void visit_options(ConfigVisitor& v, TrainOptions& o) {
  v.choice(o.mode, {"mode", "what is trained: gates, the model's weights under a fixed mask, or both"}, kModes);
  v.integer(o.steps, {"steps", "optimizer steps", "steps"}, 1, kMaxSteps);
  v.integer(o.seq_len, {"seq_len", "length of a packed sequence", "tokens"}, 2, kMaxTokens);
  v.integer(o.sequences_per_step,
            {"sequences_per_step", "sequences whose gradients one optimizer step adds up", "sequences"}, 1, 1 << 20);
  v.choice(o.loss_tokens, {"loss_tokens", "which tokens are predicted: all, or only synthetic tasks' answers"},
           kLossTokens);
  v.integer(o.seed, {"seed", "of the initial gates, their noise and the order of documents"}, 0, kMaxSeed);
  v.choice(o.recompute, {"recompute", "compute layers again in the backward pass; auto: when memory is short"},
           kRecompute);
  v.integer(o.loss_chunk, {"loss_chunk", "rows of logits that exist at one time", "tokens"}, 1, kMaxTokens);
  v.integer(o.max_skipped_steps,
            {"max_skipped_steps", "consecutive steps with a non-finite loss or gradient that end the run", "steps"}, 1,
            kMaxSteps);
}

void visit_options(ConfigVisitor& v, DataOptions& o) {
  const auto visit_one_source = [](ConfigVisitor& item, SourceOptions& source) { visit_options(item, source); };
  v.list(o.train, {"train", "sources of training sequences; at least one"}, visit_one_source);
  v.list(o.eval, {"eval", "sources of held-out sequences (recall takes its held-out half); none = no evaluation"},
         visit_one_source);
}

void visit_options(ConfigVisitor& v, EvalOptions& o) {
  v.integer(o.every, {"every", "between evaluations; 0 = only at the end", "steps"}, 0, kMaxSteps);
  v.integer(o.sequences, {"sequences", "held-out sequences per evaluation", "sequences"}, 1, 1 << 20);
}

void visit_options(ConfigVisitor& v, CheckpointOptions& o) {
  v.integer(o.every, {"every", "between checkpoints; 0 = only at the end", "steps"}, 0, kMaxSteps);
  v.integer(o.keep, {"keep", "newest checkpoints to keep", "checkpoints"}, 1, 1 << 20);
}

void visit_options(ConfigVisitor& v, RunOptions& o) {
  v.text(o.dir, {"dir", "folder of the run's results"}, TextRule::kRequired);
  v.choice(o.resume, {"resume", "auto: go on from the newest checkpoint; never: refuse a folder that is not empty"},
           kResume);
}

void visit_options(ConfigVisitor& v, ParallelOptions& o) {
  v.integer_or(o.context,
               {"context",
                "ranks that share a sequence; they divide the ranks that torchrun starts. auto: as few as "
                "memory allows",
                "ranks"},
               1, 1 << 20, "auto");
  v.integer(o.timeout, {"timeout", "a rank that waits longer for others, or for its own step, ends the run", "seconds"},
            1, 1 << 24);
}

TrainConfig read(ConfigDocument document, const std::vector<std::string>& overrides) {
  for (const std::string& assignment : overrides) document.set(assignment);
  // The preset is a key like any other, but decides what the others start from: read it first.
  TrainConfig first;
  document.read([&](ConfigVisitor& v) { visit_config(v, first); });
  TrainConfig config = TrainConfig::of(first.preset);
  document.read([&](ConfigVisitor& v) { visit_config(v, config); });
  if (const auto problem = find_problem(config)) {
    throw ConfigError(document.where(problem->key) + ": " + problem->key + ": " + problem->what);
  }
  return config;
}

}  // namespace

TrainConfig TrainConfig::of(Preset preset) {
  TrainConfig config;
  config.preset = preset;
  if (preset == Preset::kReference) {
    config.sparsity.estimate = SparsityEstimate::kSampled;
    config.optimizer.lr_gates = 1.0;
    config.optimizer.gates_weight_decay = 0.1;
    config.optimizer.warmup_from_zero = true;
    config.train.seq_len = 131072;
    config.train.sequences_per_step = 8;
  }
  return config;
}

void visit_config(ConfigVisitor& v, TrainConfig& c) {
  const auto section = [&v](auto& options, const Key& key) { v.section(key, [&] { visit_options(v, options); }); };
  v.choice(c.preset, {"preset", "what the keys are that a file leaves out; reference: the published recipe"}, kPresets);
  section(c.model, {"model", "The pretrained model"});
  section(c.attention, {"attention", "What local heads see"});
  section(c.gates, {"gates", "Where the gates start"});
  section(c.sparsity, {"sparsity", "The target and how it is enforced"});
  section(c.optimizer, {"optimizer", "AdamW and its schedule"});
  section(c.train, {"train", "The run"});
  section(c.data, {"data", "Where sequences come from"});
  section(c.eval, {"eval", "Held-out evaluation"});
  section(c.checkpoint, {"checkpoint", "What a run can go on from"});
  section(c.run, {"run", "Where results go"});
  section(c.parallel, {"parallel", "Several processes, started by torchrun"});
}

std::optional<ConfigProblem> find_problem(const TrainConfig& c) {
  if (c.sparsity.start > c.sparsity.end) {
    return {{"sparsity.end", "expected at least sparsity.start, which is " + show_number(c.sparsity.start) +
                                 ", found " + show_number(c.sparsity.end)}};
  }
  // ln(1 - t) has no end at t = 1; start <= end < 1 follows.
  if (c.sparsity.schedule == SparsitySchedule::kLogarithmic && c.sparsity.end == 1) {
    return {{"sparsity.end", "expected less than 1 with sparsity.schedule: logarithmic, found 1"}};
  }
  if (c.attention.sink + c.attention.window >= c.train.seq_len) {
    return {{"train.seq_len", "expected more than attention.sink + attention.window, which is " +
                                  std::to_string(c.attention.sink + c.attention.window) + ", found " +
                                  std::to_string(c.train.seq_len) + ": local heads would see everything"}};
  }
  if (c.train.mode == TrainMode::kWeights && c.gates.pattern.empty()) {
    return {{"gates.pattern", "required with train.mode: weights, which trains under a fixed mask"}};
  }
  if (c.train.mode != TrainMode::kWeights && !c.gates.pattern.empty() && c.gates.init_mean <= 0) {
    return {
        {"gates.init_mean", "expected more than 0 with gates.pattern, whose local heads start at -init_mean; found " +
                                show_number(c.gates.init_mean)}};
  }
  if (c.data.train.empty()) return {{"data.train", "expected at least one source, found none"}};
  for (const auto& [name, sources] : {std::pair{"train", &c.data.train}, std::pair{"eval", &c.data.eval}}) {
    for (size_t i = 0; i < sources->size(); ++i) {
      const SourceOptions& source = (*sources)[i];
      const std::string key = std::string("data.") + name + "." + std::to_string(i);
      if (source.type != SourceType::kRecall && c.train.loss_tokens == LossTokens::kAnswers) {
        return {{key + ".type", "expected recall with train.loss_tokens: answers, found " +
                                    std::string(name_of(source.type)) + ", which has no answers"}};
      }
      if (const auto problem = find_problem(source)) return {{key + "." + problem->key, problem->what}};
    }
  }
  return std::nullopt;
}

TrainConfig load_train_config(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  return read(ConfigDocument::load(path), overrides);
}

TrainConfig parse_train_config(const std::string& text, const std::string& name,
                               const std::vector<std::string>& overrides) {
  return read(ConfigDocument::parse(text, name), overrides);
}

std::string to_yaml(const TrainConfig& config) {
  TrainConfig copy = config;
  return to_yaml([&](ConfigVisitor& v) { visit_config(v, copy); });
}

std::string train_config_table() {
  const auto rows_of = [](Preset preset) {
    TrainConfig config = TrainConfig::of(preset);
    return list_keys([&](ConfigVisitor& v) { visit_config(v, config); });
  };
  return config_table("prulong-train", "trainer/config.cpp", rows_of(Preset::kDefault), "preset reference",
                      rows_of(Preset::kReference)) +
         kReferenceNote;
}

}  // namespace prulong
