// SPDX-License-Identifier: MIT
#pragma once

#include <c10/core/Device.h>

#include <cstdint>

#include "model/model_config.h"

namespace prulong {

/// Bytes of activations that one sequence keeps for its backward pass when no layer is computed again: per layer about
/// four hidden states, four query-sized and two KV-sized tensors and three MLP-sized ones; twice the linear inputs when
/// weights are trained.
int64_t activation_bytes(const ModelConfig& config, int64_t tokens, int64_t element_size, bool train_weights);

/// Bytes free on a device now: system memory for the CPU, the driver's answer for a GPU.
int64_t available_bytes(c10::Device device);

}  // namespace prulong
