// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>

#include "model/llama.h"

namespace prulong {

/// Writes a Hugging Face folder that transformers loads: config.json (its dtype set to the model's) and, where they
/// exist, the generation config and tokenizer files of `config_from`, then model.safetensors, so that a folder with
/// weights is whole. Files of these names in `folder` are replaced.
/// @param config_from  the folder the model was loaded from.
/// @throws Error naming the path and the reason.
void save_model(const std::filesystem::path& folder, const Llama& model, const std::filesystem::path& config_from);

}  // namespace prulong
