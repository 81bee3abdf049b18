// SPDX-License-Identifier: MIT
// Precompiled once, for every file that works with tensors: what they all need, and no more, for each file pays to load
// it. (Autograd's headers would make it half as large again for five files.)
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>
