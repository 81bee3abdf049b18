// SPDX-License-Identifier: MIT
// Runs a Hugging Face folder on token ids and writes what the Python tests compare with transformers.
#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "common/error.h"
#include "model/llama.h"
#include "model/save_model.h"

namespace prulong {
namespace {

constexpr int64_t kNoLabel = -100;
constexpr const char* kUsage =
    "Usage: prulong_llama_logits FOLDER OUT DTYPE ID... [/ ID...]...\n"
    "Writes OUT/logits.safetensors (logits [T, vocab] in float32, greedy [T]) and the model again to OUT/model.\n"
    "If there is OUT/gates.safetensors (gates [layers, kv_heads] float32, locality [2] int64: sink, window), writes\n"
    "OUT/gradients.safetensors: loss, the next-token loss summed over all documents, and its gradient by each gate.\n"
    "DTYPE: float32 or bfloat16; / separates documents.\n";

/// Each token's successor in its document.
at::Tensor next_tokens(const std::vector<int64_t>& tokens, const std::vector<int32_t>& boundaries) {
  std::vector<int64_t> labels(tokens.begin() + 1, tokens.end());
  labels.push_back(kNoLabel);
  for (size_t d = 1; d < boundaries.size(); ++d) labels[static_cast<size_t>(boundaries[d]) - 1] = kNoLabel;
  return at::tensor(labels);
}

void write_gradients(const Llama& model, const PackedTokens& input, const at::Tensor& labels,
                     const std::filesystem::path& out) {
  const TensorMap given = load_safetensors(out / "gates.safetensors");
  const auto* locality = given.at("locality").const_data_ptr<int64_t>();
  TensorMap found;
  for (const bool recompute : {false, true}) {
    const at::Tensor gates = given.at("gates").clone().set_requires_grad(true);
    const at::Tensor hidden = model.forward(input, {gates, locality[0], locality[1]}, {recompute, 1});
    const at::Tensor loss = next_token_loss(hidden, model.head_weight(), labels, 16);
    loss.backward();
    if (recompute && !at::equal(gates.grad(), found.at("gates"))) throw Error("recomputing changes the gradient");
    found = {{"loss", loss.detach()}, {"gates", gates.grad()}};
  }
  save_safetensors(out / "gradients.safetensors", found);
}

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

  const std::clock_t start = std::clock();  // of this process: other work may share the machine
  const Llama model = Llama::load(arguments[0], arguments[2] == "float32" ? at::kFloat : at::kBFloat16, at::kCPU);
  std::cout << "load_cpu_seconds " << static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC << "\n";

  const PackedTokens input = PackedTokens::documents(at::tensor(tokens), boundaries);
  const std::filesystem::path out = arguments[1];
  if (std::filesystem::exists(out / "gates.safetensors")) {
    write_gradients(model, input, next_tokens(tokens, boundaries), out);
  }
  const c10::NoGradGuard no_grad;
  const at::Tensor hidden = model.forward(input, {});
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
