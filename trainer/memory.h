// SPDX-License-Identifier: MIT
#pragma once

#include <c10/core/Device.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "model/llama.h"
#include "parallel/mesh.h"
#include "trainer/config.h"

namespace prulong {

/// Bytes of activations that one sequence keeps for its backward pass when no layer is computed again.
int64_t activation_bytes(const ModelConfig& config, int64_t tokens, int64_t element_size, bool train_weights);

/// What the model's device holds at the fullest moment of a training step, in bytes. An estimate: what operators borrow
/// for a moment and what an allocator keeps in reserve is not in it.
struct MemoryNeed {
  int64_t weights = 0;
  int64_t optimizer = 0;    ///< of weights that are trained: gradients, float32 masters, moments
  int64_t update = 0;       ///< float32 copies of the gradients, while weights are updated
  int64_t activations = 0;  ///< kept from the forward to the backward pass
  int64_t work = 0;         ///< the loss on one chunk of logits, or one layer's backward pass, whichever is more
  int64_t total() const { return weights + optimizer + std::max(update, activations + work); }
};

/// How a step is spread over ranks.
struct Ranks {
  int64_t count = 1;
  int64_t context = 1;  ///< of them share a sequence
};

/// Of one rank. @param model  one without values will do.
MemoryNeed memory_need(const Llama& model, const TrainConfig& config, const RecomputePolicy& policy,
                       const Ranks& ranks = {});

/// What a step keeps where `available` bytes are free beside the weights and their optimizer: everything if that fits
/// into half of them; else the layers' inputs, and the attention's results of as many layers as fit into nine tenths.
RecomputePolicy plan_recompute(const Llama& model, const TrainConfig& config, int64_t available,
                               const Ranks& ranks = {});

/// parallel.context: auto, the same on all ranks: as few as leave each rank enough memory beside the weights, and a
/// sequence to each group of them; all where nothing is enough.
int64_t plan_context(const Llama& model, const TrainConfig& config, const Mesh& mesh);

/// What plan_recompute and plan_context may count with: available_bytes, of a processor's memory a process's share.
int64_t available_bytes(const Llama& model, const Launch& launch);

/// The shape of the configured model and the memory of a training step, as a table for people. Reads the model's
/// config.json and nothing else: no weights, no data.
/// @param ranks  that torchrun will start.
/// @throws Error as read_model_config; ConfigError where parallel.context does not divide the ranks.
std::string memory_report(const TrainConfig& config, int64_t ranks = 1);

/// Bytes free on a device now: what the system and this process's control groups leave for the CPU, the driver's answer
/// for a GPU.
int64_t available_bytes(c10::Device device);

}  // namespace prulong
