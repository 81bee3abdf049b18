// SPDX-License-Identifier: MIT
#include "model/options.h"

#include <array>

namespace prulong {
namespace {

constexpr std::array<std::string_view, 3> kDtypes = {"auto", "float32", "bfloat16"};
constexpr std::array<std::string_view, 3> kDevices = {"auto", "cpu", "cuda"};

constexpr int64_t kMaxTokens = int64_t{1} << 30;  // token positions are 32-bit

}  // namespace

void visit_options(ConfigVisitor& v, ModelOptions& o) {
  v.text(o.path, {"path", "Hugging Face folder of the pretrained model"}, TextRule::kRequired);
  v.choice(o.dtype, {"dtype", "auto: bfloat16 where it is fast (CUDA, some CPUs), else float32"}, kDtypes);
  v.choice(o.device, {"device", "auto: cuda where there is one"}, kDevices);
}

void visit_options(ConfigVisitor& v, AttentionOptions& o) {
  v.integer(o.sink, {"sink", "first tokens of a document that local heads keep", "tokens"}, 0, kMaxTokens);
  v.integer(o.window, {"window", "last tokens that local heads keep, the query included", "tokens"}, 1, kMaxTokens);
}

}  // namespace prulong
