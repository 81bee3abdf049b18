// SPDX-License-Identifier: MIT
#include <cstdio>

#include "engine/engine.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;  // MODEL_DIR PATTERN
  prulong::Engine engine(prulong::Llama::load(argv[1], at::kFloat, at::kCPU), prulong::Pattern::load(argv[2]));
  engine.submit({504, 3575, 282, 4649, 314}, {.max_new_tokens = 8});  // "The capital of France is"
  while (engine.busy()) {
    for (const auto& [request, token] : engine.step().tokens)
      std::printf("%d ", static_cast<int>(token));  // 7042, " Paris"
  }
  std::printf("\nkeys and values: %d bytes\n", static_cast<int>(engine.stats().peak_kv_bytes));
}
