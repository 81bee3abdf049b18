// SPDX-License-Identifier: MIT
// Times a prompt and decoding over a KV cache and prints one JSON line.
#include <ATen/Context.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/randint.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cxxopts.hpp>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "benchmarks/random_llama.h"
#include "common/config/program.h"
#include "engine/cached_attention.h"
#include "engine/decoder.h"

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

prulong::KvCacheOptions cache_options(const prulong::ModelConfig& config, const cxxopts::ParseResult& options,
                                      at::ScalarType dtype, at::Device device) {
  prulong::KvCacheOptions cache;
  cache.layers = config.layers;
  cache.kv_heads = config.kv_heads;
  cache.head_dim = config.head_dim;
  const int64_t heads = config.layers * config.kv_heads;
  const double local = options["local"].as<double>();
  for (int64_t h = 0; h < heads; ++h) {  // that share local, spread evenly
    cache.is_global.push_back(static_cast<double>(h * 97 % heads) >= local * static_cast<double>(heads) ? 1 : 0);
  }
  cache.sink = options["sink"].as<int64_t>();
  cache.window = options["window"].as<int64_t>();
  cache.page = device.is_cuda() ? 128 : 64;
  cache.bytes = static_cast<int64_t>(options["kv-gib"].as<double>() * (1 << 30));
  cache.dtype = dtype;
  cache.device = device;
  return cache;
}

void run(const cxxopts::ParseResult& options) {
  const c10::NoGradGuard no_grad;
  const at::Device device(options["device"].as<std::string>());
  const at::ScalarType dtype = options["dtype"].as<std::string>() == "float32" ? at::kFloat : at::kBFloat16;
  at::manual_seed(1);
  const prulong::Llama model =
      prulong::bench::make_model(options["model"].as<std::string>(), options["layers"].as<int64_t>(), dtype, device);
  const prulong::ModelConfig& config = model.config();
  const auto tokens = options["tokens"].as<int64_t>(), chunk = options["chunk"].as<int64_t>();
  const auto steps = options["new"].as<int64_t>();
  prulong::KvCache cache(cache_options(config, options, dtype, device));
  const int64_t fitting = cache.pages() / cache.pages_needed(tokens + steps + 3, chunk);
  const int64_t batch = options["batch"].as<int64_t>() > 0 ? options["batch"].as<int64_t>() : fitting;
  const auto ids = at::TensorOptions().dtype(at::kLong).device(device);
  const auto places = at::TensorOptions().dtype(at::kFloat).device(device);
  const auto forward = [&](const at::Tensor& input, const at::Tensor& positions, prulong::CacheStep step) {
    return model.forward(input, positions, std::make_shared<prulong::CachedAttention>(cache, std::move(step)));
  };

  // Prompts of the first sequence, of which the fastest counts; the others' entries are booked, not computed.
  const at::Tensor prompt = at::randint(config.vocab_size, {tokens}, ids);
  std::vector<double> prompt_s;
  std::vector<int64_t> sequences;
  for (int64_t round = 0; round < options["prompts"].as<int64_t>(); ++round) {
    if (round > 0) cache.drop(sequences.front());
    sequences = {cache.add()};
    const auto start = Clock::now();
    at::Tensor last;
    for (int64_t i = 0; i < tokens; i += chunk) {
      const int64_t count = std::min(chunk, tokens - i);
      last = forward(prompt.narrow(0, i, count), at::arange(i, i + count, places), cache.append(sequences, {count}));
    }
    model.logits(last.narrow(0, last.size(0) - 1, 1)).argmax(-1).cpu();
    prompt_s.push_back(seconds_since(start));
  }
  while (static_cast<int64_t>(sequences.size()) < batch) {
    sequences.push_back(cache.add());
    for (int64_t i = 0; i < tokens; i += chunk) cache.append({sequences.back()}, {std::min(chunk, tokens - i)});
  }
  const int64_t entries_bytes = cache.bytes().in_use;

  std::vector<double> step_s;
  prulong::Decoder decoder(model, cache);
  std::vector<int64_t> next(static_cast<size_t>(batch), 1);
  for (int64_t s = 0; s < steps + 3; ++s) {  // the first ones ready and capture
    const auto start = Clock::now();
    const at::Tensor chosen = decoder.step(next, sequences).argmax(-1).cpu();  // as generating waits for each token
    std::copy_n(chosen.const_data_ptr<int64_t>(), batch, next.begin());
    if (s >= 3) step_s.push_back(seconds_since(start));
  }
  std::sort(step_s.begin(), step_s.end());
  const double median = step_s[step_s.size() / 2];
  const int64_t full_bytes = batch * tokens * config.layers * config.kv_heads * config.head_dim * 2 *
                             static_cast<int64_t>(c10::elementSize(dtype));
  nlohmann::json result = {
      {"tokens", tokens},
      {"batch", batch},
      {"fitting_batch", fitting},
      {"local", options["local"].as<double>()},
      {"prompt_s", *std::min_element(prompt_s.begin(), prompt_s.end())},
      {"all_prompt_s", prompt_s},
      {"prompt_tokens_per_s", static_cast<double>(tokens) / *std::min_element(prompt_s.begin(), prompt_s.end())},
      {"decode_step_s", median},
      {"fastest_step_s", step_s.front()},
      {"slowest_step_s", step_s.back()},
      {"decode_tokens_per_s", static_cast<double>(batch) / median},
      {"kv_bytes", entries_bytes},
      {"kv_bytes_of_full", static_cast<double>(entries_bytes) / static_cast<double>(full_bytes)},
      {"kv_bytes_allocated", cache.bytes().allocated},
      {"kv_bytes_peak", cache.bytes().peak}};
  if (device.is_cuda()) {
    const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(0);
    result["peak_allocated_gib_beside"] = static_cast<double>(stats.allocated_bytes[0].peak) / (1 << 30);
  }
  std::cout << result.dump() << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  cxxopts::Options options("prulong_bench_engine", "Times a prompt and decoding over a KV cache.");
  const auto number = [](const char* value) { return cxxopts::value<int64_t>()->default_value(value); };
  options.add_options()("model", "llama-3.1-8b or small, with random weights, or a Hugging Face folder",
                        cxxopts::value<std::string>()->default_value("llama-3.1-8b"))(
      "layers", "0 = the model's", number("0"))("dtype", "bfloat16 or float32",
                                                cxxopts::value<std::string>()->default_value("bfloat16"))(
      "device", "cuda or cpu", cxxopts::value<std::string>()->default_value("cuda"))(
      "local", "share of local KV heads", cxxopts::value<double>()->default_value("0"))(
      "sink", "tokens", number("128"))("window", "tokens", number("1024"))(
      "kv-gib", "memory for keys and values", cxxopts::value<double>()->default_value("100"))(
      "tokens", "of a prompt", number("32768"))("chunk", "tokens of a prompt computed at once", number("8192"))(
      "batch", "sequences that decode together; 0: as many as fit", number("1"))(
      "prompts", "how often the prompt is computed", number("2"))("new", "decode steps to time", number("32"))(
      "h,help", "this text");
  return prulong::run_program<cxxopts::exceptions::exception>("prulong_bench_engine", [&] {
    const auto parsed = options.parse(argc, argv);
    if (parsed.count("help") != 0) {
      std::cout << options.help();
    } else {
      run(parsed);
    }
    return 0;
  });
}
