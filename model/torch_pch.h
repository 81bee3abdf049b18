// SPDX-License-Identifier: MIT
// Precompiled for model, trainer, eval and their tests: the torch headers that most files need, and no more
// (torch/torch.h would make small files slower).
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>
