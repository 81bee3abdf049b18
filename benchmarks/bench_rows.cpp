// SPDX-License-Identifier: MIT
// bench_rows [REPEATS]: the matrix products of one forward pass on the CPU in float32, by independent::linear and by
// torch in turn; prints for every shape the shortest times in microseconds and their ratio, as one JSON line each.
#include <ATen/Parallel.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "csrc/cpu/independent_rows.h"

namespace {

using namespace prulong;

template <typename Function>
double microseconds(const Function& function) {
  const auto start = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

void measure(int64_t outputs, int64_t depth, int64_t rows, int repeats) {
  const at::Tensor x = at::randn({rows, depth}), w = at::randn({outputs, depth});
  std::vector<double> ours, torchs;
  const double operations = 2e-3 * static_cast<double>(outputs * depth * rows);  // per microsecond: GFLOP/s
  const int turns = std::clamp(static_cast<int>(repeats * 2e5 / (operations + 500)), 5, 2000);
  for (int i = 0; i < turns; ++i) {
    ours.push_back(microseconds([&] { independent::linear(x, w, {}); }));
    torchs.push_back(microseconds([&] { at::linear(x, w); }));
  }
  const double our = std::ranges::min(ours), theirs = std::ranges::min(torchs);
  std::printf(
      "{\"outputs\": %lld, \"depth\": %lld, \"rows\": %lld, \"us\": %.1f, \"torch_us\": %.1f, \"speedup\": %.2f, "
      "\"gflops\": %.1f, \"torch_gflops\": %.1f, \"weight_gb_s\": %.1f}\n",
      static_cast<long long>(outputs), static_cast<long long>(depth), static_cast<long long>(rows), our, theirs,
      theirs / our, operations / our, operations / theirs, 4e-3 * static_cast<double>(outputs * depth) / our);
}

}  // namespace

int main(int argc, char** argv) {
  const c10::NoGradGuard no_grad;
  const int repeats = argc > 1 ? std::stoi(argv[1]) : 100;
  std::printf("{\"threads\": %d}\n", at::get_num_threads());
  for (const auto& [outputs, depth] :
       {std::pair{192, 576}, {576, 576}, {1536, 576}, {576, 1536}, {49152, 576}, {4096, 4096}, {4096, 14336}}) {
    for (const int64_t rows : {1, 2, 4, 5, 8, 16, 32, 128, 512}) measure(outputs, depth, rows, repeats);
  }
}
