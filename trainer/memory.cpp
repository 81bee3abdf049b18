// SPDX-License-Identifier: MIT
#include "trainer/memory.h"

#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "common/host_memory.h"
#include "eval/advice.h"
#include "model/open_model.h"
#include "parallel/agreement.h"

namespace prulong {
namespace {

/// What one layer keeps of one token, in elements. With it stands or falls what model/llama_layer.cpp saves: the inputs
/// of both norms; q, k, v, the output and the difference of its two branches; gate and up. Trained projections keep
/// their inputs, norms of q's and k's heads theirs.
int64_t kept_elements(const ModelConfig& config, bool train_weights) {
  const int64_t query = config.query_heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  const int64_t hidden = config.hidden_size, mlp = config.intermediate_size;
  return 2 * hidden + 3 * query + 2 * kv + 2 * mlp + (config.qk_norms ? query + kv : 0) +
         (train_weights ? 2 * hidden + mlp : 0);
}

/// What gated attention's results of one layer take, in bytes, with every head fractional: the output, the difference
/// of the branches, and two log-sum-exps.
int64_t attention_result_bytes(const ModelConfig& config, int64_t tokens, int64_t element_size) {
  const int64_t wide = std::max<int64_t>(element_size, sizeof(float));
  return tokens * config.query_heads * 2 * (config.head_dim * element_size + wide);
}

/// The backward pass of one layer: gradients of the MLP's three products with a copy, and of the residual stream.
int64_t layer_work_elements(const ModelConfig& config) { return 4 * config.intermediate_size + 4 * config.hidden_size; }

/// Keys and values of all heads of the whole sequence that the ranks of a context gather in a layer, and their
/// gradients in float32.
int64_t gathered_bytes(const ModelConfig& config, int64_t tokens, int64_t element_size, int64_t context) {
  return context == 1 ? 0 : 2 * tokens * config.kv_heads * config.head_dim * (element_size + int64_t{sizeof(float)});
}

/// Of a sequence, one rank's.
int64_t own_tokens(const TrainConfig& config, const Ranks& ranks) {
  return (config.train.seq_len + ranks.context - 1) / ranks.context;
}

/// next_token_loss: the logits of one chunk as products, scores, shares and gradients; the hidden states' gradient.
int64_t loss_work_bytes(const ModelConfig& config, int64_t tokens, int64_t chunk, int64_t element_size) {
  const int64_t wide = sizeof(float);
  const int64_t per_logit = element_size == wide ? 2 * wide : 2 * (element_size + wide);
  return std::min(chunk, tokens) * config.vocab_size * per_logit + 2 * tokens * config.hidden_size * element_size;
}

std::string gibibytes(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%10.2f GiB", static_cast<double>(bytes) / static_cast<double>(int64_t{1} << 30));
  return text;
}

/// 1234567 as 1,234,567.
std::string grouped(int64_t number) {
  const std::string digits = std::to_string(number);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string describe_ranks(int64_t ranks, int64_t context) {
  if (ranks == 1) return "one at a time";
  const std::string shared = context == 1 ? "" : ", each shared by " + std::to_string(context);
  return std::to_string(ranks / context) + " at a time" + shared + ": of one of " + std::to_string(ranks) + " ranks";
}

}  // namespace

int64_t activation_bytes(const ModelConfig& config, int64_t tokens, int64_t element_size, bool train_weights) {
  return config.layers * tokens * kept_elements(config, train_weights) * element_size;
}

MemoryNeed memory_need(const Llama& model, const TrainConfig& config, const RecomputePolicy& policy,
                       const Ranks& ranks) {
  const ModelConfig& shape = model.config();
  const int64_t tokens = own_tokens(config, ranks);
  const auto element_size = static_cast<int64_t>(at::elementSize(model.dtype()));
  const bool train_weights = config.train.mode != TrainMode::kMasks;
  MemoryNeed need;
  int64_t count = 0;
  for (const auto& [name, weight] : model.weights()) count += weight.numel();
  need.weights = count * element_size;
  if (train_weights) {
    const int64_t wide = sizeof(float);
    need.optimizer = count * (element_size + 2 * wide + (element_size == wide ? 0 : wide));
    // Copies of the gradients in float32: of several sequences or ranks kept throughout, of one made for the update.
    const bool sums = (config.train.sequences_per_step > 1 || ranks.count > 1) && element_size != wide;
    (sums ? need.optimizer : need.update) += count * wide;
  }
  const int64_t all_layers = activation_bytes(shape, tokens, element_size, train_weights);
  const int64_t layer_inputs = shape.layers * tokens * shape.hidden_size * element_size;
  // The final norm's input and output, and RoPE's cosines and sines.
  const int64_t shared = tokens * (2 * shape.hidden_size + shape.head_dim) * element_size;
  const int64_t results =
      std::min(policy.attention_results, shape.layers) * attention_result_bytes(shape, tokens, element_size);
  need.activations = (policy.inputs_only ? layer_inputs + results : all_layers) + shared;
  const int64_t layer = tokens * layer_work_elements(shape) * element_size +
                        (policy.inputs_only ? all_layers / shape.layers : 0) +
                        gathered_bytes(shape, config.train.seq_len, element_size, ranks.context);
  need.work = std::max(layer, loss_work_bytes(shape, tokens, config.train.loss_chunk, element_size));
  return need;
}

RecomputePolicy plan_recompute(const Llama& model, const TrainConfig& config, int64_t available, const Ranks& ranks) {
  const ModelConfig& shape = model.config();
  const auto element_size = static_cast<int64_t>(at::elementSize(model.dtype()));
  const int64_t tokens = own_tokens(config, ranks);
  if (activation_bytes(shape, tokens, element_size, config.train.mode != TrainMode::kMasks) <= available / 2) return {};
  const MemoryNeed need = memory_need(model, config, {true}, ranks);
  const int64_t spare = available / 10 * 9 - need.activations - need.work;
  return {true, std::clamp<int64_t>(spare / attention_result_bytes(shape, tokens, element_size), 0, shape.layers)};
}

int64_t plan_context(const Llama& model, const TrainConfig& config, const Mesh& mesh) {
  const int64_t count = mesh.world().size(), available = available_bytes(model, mesh.launch());
  int64_t context = 1;
  const auto enough = [&] {
    if (count % context != 0 || count / context > config.train.sequences_per_step) return false;
    const MemoryNeed need = memory_need(model, config, {true}, {count, context});
    return need.total() - need.weights <= available / 10 * 9;
  };
  while (context < count && !enough()) ++context;
  return largest(mesh.world(), context);
}

int64_t available_bytes(const Llama& model, const Launch& launch) {
  return available_bytes(model.device()) / (model.device().is_cpu() ? launch.local_size : 1);
}

std::string memory_report(const TrainConfig& config, int64_t ranks) {
  const int64_t context = std::max<int64_t>(1, config.parallel.context);
  check_context(context, ranks);
  const Llama model = Llama::without_values(read_model_config(config.model.path), planned_dtype(config.model));
  const ModelShape shape = model.config().shape();
  int64_t count = 0;
  for (const auto& [name, weight] : model.weights()) count += weight.numel();
  std::string text = "model   " + config.model.path + ": " + shape.type + ", " + grouped(count) + " weights, " +
                     std::to_string(shape.layers) + " layers of " + std::to_string(shape.kv_heads) + " KV heads, " +
                     std::to_string(shape.query_heads) + " query heads, head_dim " + std::to_string(shape.head_dim) +
                     "\nstep    sequences of " + grouped(config.train.seq_len) + " tokens in " +
                     dtype_name(model.dtype()) + ", " + describe_ranks(ranks, context) + "; " +
                     grouped(shape.layers * shape.kv_heads) + " gates, kept on the host\n\n" +
                     "train.recompute                             off              on\n";
  const std::array needs{memory_need(model, config, {}, {ranks, context}),
                         memory_need(model, config, {true}, {ranks, context})};
  const auto row = [&](const char* name, const auto& bytes) {
    char label[40];
    std::snprintf(label, sizeof label, "%-32s", name);
    text += label + gibibytes(bytes(needs[0])) + "  " + gibibytes(bytes(needs[1])) + "\n";
  };
  row("weights", [](const MemoryNeed& n) { return n.weights; });
  if (config.train.mode != TrainMode::kMasks) {
    row("gradients, masters, moments", [](const MemoryNeed& n) { return n.optimizer; });
    row("or, in an update, their copies", [](const MemoryNeed& n) { return n.update; });
  }
  row("activations", [](const MemoryNeed& n) { return n.activations; });
  row("loss or one layer, the larger", [](const MemoryNeed& n) { return n.work; });
  row("in all, about", [](const MemoryNeed& n) { return n.total(); });
  for (int64_t c = 1; ranks > 1 && c <= ranks; ++c) {
    if (ranks % c != 0 || c == context) continue;
    std::string label = "with parallel.context=" + std::to_string(c);
    label.resize(32, ' ');
    text += label;
    for (const bool inputs_only : {false, true}) {
      text += (inputs_only ? "  " : "") + gibibytes(memory_need(model, config, {inputs_only}, {ranks, c}).total());
    }
    text += "\n";
  }
  const std::string advice = position_advice("sequences", config.train.seq_len, model.config());
  if (!advice.empty()) text += "\nwarning: " + advice + "\n";
  return text +
         "\nauto recomputes where the activations would fill more than half of what the device has free, and keeps the "
         "attention's results of as many layers as fit.\n";
}

int64_t available_bytes(c10::Device device) {
  if (!device.is_cuda()) return available_host_bytes();
  return static_cast<int64_t>(c10::getDeviceAllocator(device.type())->getMemoryInfo(device.index()).first);
}

}  // namespace prulong
