// SPDX-License-Identifier: MIT
// Precompiled for the operators.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>
