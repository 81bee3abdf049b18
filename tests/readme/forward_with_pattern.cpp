// SPDX-License-Identifier: MIT
#include <ATen/ops/tensor.h>

#include <cstdio>

#include "model/llama.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;  // MODEL_DIR PATTERN
  const auto model = prulong::Llama::load(argv[1], at::kFloat, at::kCPU);
  const auto pattern = prulong::Pattern::load(argv[2]);
  const auto mask = prulong::HeadMask::from_pattern(pattern, model.config(), model.device());
  const auto tokens = at::tensor({504, 3575, 282, 4649, 314}, at::kLong);  // "The capital of France is"
  const auto hidden = model.forward(prulong::PackedTokens::single(tokens), mask);
  const auto next = prulong::greedy_tokens(hidden.slice(0, -1), model.head_weight(), 1);
  std::printf("next token: %d\n", static_cast<int>(next.item<int64_t>()));  // 7042, " Paris"
}
