// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <optional>
#include <string>

#include "common/launch.h"
#include "model/llama.h"
#include "model/options.h"

namespace prulong {

/// Loads the configured model; `auto` takes a GPU where there is one, and bfloat16 where it is fast.
/// @param launch  of several processes each takes the GPU that its LOCAL_RANK names, and makes it current.
/// @throws Error naming the file, or the device that is not there.
Llama open_model(const ModelOptions& options, const Launch& launch = {});

/// The GPU that a process of several takes. @param gpus  on this machine.
/// @throws Error naming LOCAL_RANK where there is none.
int64_t gpu_of(const Launch& launch, int64_t gpus);

/// The dtype in which open_model loads the model; a GPU that is asked for is taken to be there.
at::ScalarType planned_dtype(const ModelOptions& options);

/// The name of a model's dtype in configurations and results: float32 or bfloat16.
std::string dtype_name(at::ScalarType dtype);

/// The machine, as key = value: cpu, threads (torch's), and for a run on a GPU gpu. "unknown" where the system does not
/// say.
std::map<std::string, std::string> machine(at::Device device);

/// What to tell the user when `auto` could not choose bfloat16.
std::optional<std::string> dtype_note(const ModelOptions& options, const Llama& model);

}  // namespace prulong
