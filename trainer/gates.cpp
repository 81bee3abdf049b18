// SPDX-License-Identifier: MIT
#include "trainer/gates.h"

#include <cmath>
#include <stdexcept>

#include "common/philox.h"

namespace prulong {
namespace {

// T ln(-low / high), about -1.5986: how far log_alpha must lie from 0 before clamping becomes likely.
const double kClampOffset = kGateTemperature * std::log(-kGateStretchLow / kGateStretchHigh);

// Without overflow for either sign.
double sigmoid(double x) {
  if (x >= 0) return 1 / (1 + std::exp(-x));
  const double e = std::exp(x);
  return e / (1 + e);
}

}  // namespace

GateDraw draw_gate(double log_alpha, double u) {
  const double x = (std::log(u) - std::log1p(-u) + log_alpha) / kGateTemperature;
  const double s = sigmoid(x);
  const double stretch = kGateStretchHigh - kGateStretchLow;
  const double z = kGateStretchLow + stretch * s;
  if (z <= 0) return {0, 0};
  if (z >= 1) return {1, 0};
  return {z, stretch * s * sigmoid(-x) / kGateTemperature};
}

double probability_zero(double log_alpha) { return sigmoid(kClampOffset - log_alpha); }

double probability_zero_derivative(double log_alpha) {
  return -sigmoid(kClampOffset - log_alpha) * sigmoid(log_alpha - kClampOffset);
}

// By symmetry of the stretch interval about 1/2.
double probability_one(double log_alpha) { return sigmoid(kClampOffset + log_alpha); }

Gates::Gates(int64_t layers, int64_t kv_heads, double mean, double std, uint64_t seed)
    : layers_(layers), kv_heads_(kv_heads), seed_(seed) {
  if (layers < 1 || kv_heads < 1 || layers >= 65536 || kv_heads >= 65536) {
    throw std::invalid_argument("Gates: layers and kv_heads must lie in [1, 65535]");
  }
  log_alpha_.reserve(static_cast<size_t>(layers * kv_heads));
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (int64_t head = 0; head < kv_heads; ++head) {
      log_alpha_.push_back(mean + std * initial_normal(seed, layer, head));
    }
  }
}

Gates Gates::from_mask(int64_t layers, int64_t kv_heads, const std::vector<uint8_t>& mask, double mean, double std,
                       uint64_t seed) {
  Gates gates(layers, kv_heads, mean, std, seed);
  if (mask.size() != gates.log_alpha_.size()) {
    throw std::invalid_argument("Gates: the mask must have layers * kv_heads entries");
  }
  for (size_t i = 0; i < mask.size(); ++i) {
    if (mask[i] == 0) gates.log_alpha_[i] -= 2 * mean;
  }
  return gates;
}

GateSample Gates::sample(int64_t step, int64_t micro_step) const {
  GateSample sample;
  sample.z.reserve(log_alpha_.size());
  sample.dz.reserve(log_alpha_.size());
  for (int64_t layer = 0; layer < layers_; ++layer) {
    for (int64_t head = 0; head < kv_heads_; ++head) {
      const double a = log_alpha_[static_cast<size_t>(layer * kv_heads_ + head)];
      const GateDraw draw = draw_gate(a, uniform(seed_, step, micro_step, layer, head));
      sample.z.push_back(draw.z);
      sample.dz.push_back(draw.dz);
    }
  }
  return sample;
}

}  // namespace prulong
