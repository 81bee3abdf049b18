// SPDX-License-Identifier: MIT
// Configuration of what every program opens: the model, and what its local heads see.
#pragma once

#include <cstdint>
#include <string>

#include "common/config/config_visitor.h"

namespace prulong {

enum class ModelDtype { kAuto, kFloat32, kBfloat16 };
enum class ModelDevice { kAuto, kCpu, kCuda };

struct ModelOptions {
  std::string path;
  ModelDtype dtype = ModelDtype::kAuto;
  ModelDevice device = ModelDevice::kAuto;
};

struct AttentionOptions {
  int64_t sink = 128;
  int64_t window = 1024;
};

/// The keys of these sections.
void visit_options(ConfigVisitor& visitor, ModelOptions& options);
void visit_options(ConfigVisitor& visitor, AttentionOptions& options);

}  // namespace prulong
