// SPDX-License-Identifier: MIT
#pragma once

#include "model/model_config.h"
#include "model/safetensors.h"

namespace prulong {

/// Checks that `weights` are those of the model, in shape, dtype (one floating dtype) and device (one), and drops what
/// a model does not need: rotary_emb.inv_freq buffers, and a lm_head.weight that repeats tied embeddings.
/// @throws Error naming the tensor that is missing, unexpected or different.
void check_llama_weights(const ModelConfig& config, TensorMap& weights);

}  // namespace prulong
