// SPDX-License-Identifier: MIT
// Runs a Hugging Face folder on token ids and writes what the Python tests compare with transformers.
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "model/error.h"
#include "model/llama.h"
#include "model/save_model.h"

namespace prulong {
namespace {

constexpr const char* kUsage =
    "Usage: prulong_llama_logits FOLDER OUT DTYPE ID... [/ ID...]...\n"
    "Writes OUT/logits.safetensors (logits [T, vocab] in float32, greedy [T]) and the model again to OUT/model.\n"
    "DTYPE: float32 or bfloat16; / separates documents.\n";

int run(const std::vector<std::string>& arguments) {
  if (arguments.size() < 4 || (arguments[2] != "float32" && arguments[2] != "bfloat16")) {
    std::cerr << kUsage;
    return 2;
  }
  std::vector<int64_t> tokens;
  std::vector<int32_t> boundaries{0};
  for (size_t i = 3; i < arguments.size(); ++i) {
    if (arguments[i] == "/") {
      boundaries.push_back(static_cast<int32_t>(tokens.size()));
    } else {
      tokens.push_back(std::stoll(arguments[i]));
    }
  }
  boundaries.push_back(static_cast<int32_t>(tokens.size()));

  const auto start = std::chrono::steady_clock::now();
  const Llama model = Llama::load(arguments[0], arguments[2] == "float32" ? at::kFloat : at::kBFloat16, at::kCPU);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::cout << "load_seconds " << seconds.count() << "\n";

  const c10::NoGradGuard no_grad;
  const PackedTokens input{at::tensor(tokens), at::tensor(boundaries, at::TensorOptions().dtype(at::kInt)),
                           static_cast<int64_t>(tokens.size())};
  const at::Tensor hidden = model.forward(input, {});
  const std::filesystem::path out = arguments[1];
  save_model(out / "model", model, arguments[0]);
  save_safetensors(out / "logits.safetensors", {{"logits", model.logits(hidden).to(at::kFloat)},
                                                {"greedy", greedy_tokens(hidden, model.head_weight(), 16)}});
  return 0;
}

}  // namespace
}  // namespace prulong

int main(int argc, char** argv) {
  try {
    return prulong::run({argv + 1, argv + argc});
  } catch (const prulong::Error& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
