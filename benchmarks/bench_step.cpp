// SPDX-License-Identifier: MIT
// Times masks training steps of a model and prints JSON lines. Random weights exist on the device alone.
#include <ATen/Context.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/tensor.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cxxopts.hpp>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "benchmarks/random_llama.h"
#include "common/config/program.h"
#include "model/llama.h"
#include "trainer/gates.h"
#include "trainer/host_tensor.h"

namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kLossChunk = 2048;  // rows of logits at a time

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Of this process so far.
double peak_resident_gib() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    double kib = 0;
    if (word == "VmHWM:" && status >> kib) return kib / (1 << 20);
  }
  return 0;
}

struct StepTime {
  double forward_s, total_s, fractional_share, local_share;
};

StepTime run_step(const prulong::Llama& model, const prulong::PackedTokens& input, const at::Tensor& labels,
                  const prulong::Gates& gates, int64_t step, int64_t sink, int64_t window,
                  const prulong::RecomputePolicy& policy) {
  const auto start = Clock::now();
  const prulong::GateSample sample = gates.sample(step, 0);
  at::Tensor heads = at::tensor(sample.z, at::kDouble)
                         .view({gates.layers(), gates.kv_heads()})
                         .to(at::kFloat)
                         .to(model.device())
                         .set_requires_grad(true);
  const at::Tensor hidden = model.forward(input, {heads, sink, window}, policy);
  const at::Tensor loss = prulong::next_token_loss(hidden, model.head_weight(), labels, kLossChunk)
                              .div(static_cast<double>(labels.size(0)));
  if (!(loss.item<double>() > 0)) throw std::runtime_error("the loss is not a positive number");  // waits for the GPU
  const double forward_s = seconds_since(start);
  loss.backward();
  for (const double dz : prulong::to_vector(heads.grad())) {
    if (!std::isfinite(dz)) throw std::runtime_error("a gate's gradient is not finite");
  }
  StepTime time{forward_s, seconds_since(start), 0, 0};
  const double each = 1.0 / static_cast<double>(sample.z.size());
  for (const double z : sample.z) {
    time.fractional_share += z > 0 && z < 1 ? each : 0;
    time.local_share += z == 0 ? each : 0;
  }
  return time;
}

void run(const cxxopts::ParseResult& options) {
  const at::Device device(options["device"].as<std::string>());
  const auto tokens = options["tokens"].as<int64_t>();
  const auto attention = options["attention"].as<std::string>();
  if (attention != "prulong") setenv("PRULONG_ATTENTION", "sdpa", 1);
  if (attention == "flash") at::globalContext().setSDPUseCuDNN(false);
  at::manual_seed(1);
  const at::ScalarType dtype = options["dtype"].as<std::string>() == "float32" ? at::kFloat : at::kBFloat16;
  const prulong::Llama model =
      prulong::bench::make_model(options["model"].as<std::string>(), options["layers"].as<int64_t>(), dtype, device);
  const prulong::ModelConfig& config = model.config();
  const auto ids = at::TensorOptions().dtype(at::kLong).device(device);
  const auto input = prulong::PackedTokens::single(at::randint(config.vocab_size, {tokens}, ids));
  const at::Tensor labels = input.tokens.roll(-1);

  prulong::Gates gates(config.layers, config.kv_heads, options["log-alpha"].as<double>(), 0.01, 1);
  const double local = options["local"].as<double>();
  if (local > 0) {  // that share saturated local, spread evenly, the others saturated global
    const auto count = static_cast<double>(gates.log_alpha().size());
    for (size_t g = 0; g < gates.log_alpha().size(); ++g) {
      const auto turn = static_cast<double>(g * 97 % gates.log_alpha().size());
      gates.log_alpha()[g] = turn < local * count ? -8 : 8;
    }
  }
  const auto timed_step = [&](int64_t step) {
    return run_step(model, input, labels, gates, step, options["sink"].as<int64_t>(), options["window"].as<int64_t>(),
                    {!options["keep-all"].as<bool>(), options["keep-attention"].as<int64_t>()});
  };
  if (options["on-request"].as<bool>()) {
    std::string line;
    for (int64_t step = 0; std::getline(std::cin, line); ++step) {
      const StepTime time = timed_step(step);
      const nlohmann::json result = {{"step_s", time.total_s},
                                     {"forward_s", time.forward_s},
                                     {"fractional_share", time.fractional_share},
                                     {"local_share", time.local_share},
                                     {"peak_resident_gib", peak_resident_gib()}};
      std::cout << result.dump() << std::endl;
    }
    return;
  }
  std::vector<StepTime> times;
  const auto warm_up = options["warm-up"].as<int64_t>(), steps = options["steps"].as<int64_t>();
  for (int64_t step = 0; step < warm_up + steps; ++step) {
    if (step == warm_up && device.is_cuda()) c10::getDeviceAllocator(device.type())->resetPeakStats(0);
    const StepTime time = timed_step(step);
    std::fprintf(stderr, "  step %lld: %.3f s (forward %.3f s)\n", static_cast<long long>(step), time.total_s,
                 time.forward_s);
    if (step >= warm_up) times.push_back(time);
  }
  std::sort(times.begin(), times.end(), [](const StepTime& a, const StepTime& b) { return a.total_s < b.total_s; });
  const StepTime& median = times[times.size() / 2];
  nlohmann::json result = {{"tokens", tokens},
                           {"step_s", median.total_s},
                           {"forward_s", median.forward_s},
                           {"fastest_step_s", times.front().total_s},
                           {"slowest_step_s", times.back().total_s},
                           {"tokens_per_s", static_cast<double>(tokens) / median.total_s},
                           {"fractional_share", median.fractional_share},
                           {"local_share", median.local_share}};
  if (device.is_cuda()) {
    const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(0);
    const auto gib = [](const auto& figures) { return static_cast<double>(figures[0].peak) / (1 << 30); };
    result["peak_allocated_gib"] = gib(stats.allocated_bytes);
    result["peak_reserved_gib"] = gib(stats.reserved_bytes);
  }
  std::cout << result.dump() << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  cxxopts::Options options("prulong_bench_step", "Times masks training steps of a model.");
  options.add_options()("model", "llama-3.1-8b or small, with random weights, or a Hugging Face folder",
                        cxxopts::value<std::string>()->default_value("llama-3.1-8b"))(
      "layers", "0 = the model's", cxxopts::value<int64_t>()->default_value("0"))(
      "dtype", "bfloat16 or float32", cxxopts::value<std::string>()->default_value("bfloat16"))(
      "device", "cuda or cpu", cxxopts::value<std::string>()->default_value("cuda"))(
      "attention", "prulong: our kernels; cudnn or flash: without them",
      cxxopts::value<std::string>()->default_value("prulong"))("tokens", "one document's",
                                                               cxxopts::value<int64_t>()->default_value("32768"))(
      "sink", "tokens", cxxopts::value<int64_t>()->default_value("128"))(
      "window", "tokens", cxxopts::value<int64_t>()->default_value("1024"))(
      "log-alpha", "every gate's", cxxopts::value<double>()->default_value("3"))(
      "local", "saturate this share of gates at 0, the others at 1", cxxopts::value<double>()->default_value("0"))(
      "keep-all", "keep activations instead of computing layers again")(
      "keep-attention", "layers that keep their attention's results", cxxopts::value<int64_t>()->default_value("24"))(
      "on-request", "a step for each line of standard input")("warm-up", "steps before measuring",
                                                              cxxopts::value<int64_t>()->default_value("2"))(
      "steps", "steps to measure", cxxopts::value<int64_t>()->default_value("3"))("h,help", "this text");
  return prulong::run_program<cxxopts::exceptions::exception>("prulong_bench_step", [&] {
    const auto parsed = options.parse(argc, argv);
    if (parsed.count("help") != 0) {
      std::cout << options.help();
    } else {
      run(parsed);
    }
    return 0;
  });
}
