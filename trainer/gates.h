// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

namespace prulong {

// Hard-concrete gates (Louizos et al., arXiv 1712.01312, with the constants of arXiv 2506.17121). With a = log_alpha
// and u in (0, 1):  s = sigmoid((ln u - ln(1-u) + a) / T),  z = clamp(low + (high - low) s, 0, 1).
inline constexpr double kGateTemperature = 2.0 / 3.0;
inline constexpr double kGateStretchLow = -0.1;
inline constexpr double kGateStretchHigh = 1.1;

/// One draw of one gate.
struct GateDraw {
  double z = 0;   ///< in [0, 1], exactly 0 or 1 where clamped
  double dz = 0;  ///< dz / dlog_alpha, exactly 0 where clamped
};

/// @param u  noise strictly inside (0, 1).
GateDraw draw_gate(double log_alpha, double u);

/// Probability that a draw is exactly 0: sigmoid(T ln(-low / high) - a) = sigmoid(-1.5986 - a).
double probability_zero(double log_alpha);

/// Its derivative by log_alpha, <= 0; never 0 for log_alpha within +-700.
double probability_zero_derivative(double log_alpha);

/// Probability that a draw is exactly 1.
double probability_one(double log_alpha);

/// A draw of every gate, [layers * kv_heads], row = layer.
struct GateSample {
  std::vector<double> z;
  std::vector<double> dz;  ///< dz[i] / dlog_alpha[i]
};

/// The learned gates of a model, one per layer and KV head, on the host in double precision.
class Gates {
 public:
  /// log_alpha drawn from N(mean, std) with `seed`, which also keys the noise of sample().
  /// @param layers, kv_heads  below 65536.
  Gates(int64_t layers, int64_t kv_heads, double mean, double std, uint64_t seed);

  /// Gates that start from a mask: as the constructor, with -mean instead of mean where the mask is 0 (local).
  /// @param mask  [layers * kv_heads], row = layer.
  static Gates from_mask(int64_t layers, int64_t kv_heads, const std::vector<uint8_t>& mask, double mean, double std,
                         uint64_t seed);

  int64_t layers() const { return layers_; }
  int64_t kv_heads() const { return kv_heads_; }

  /// [layers * kv_heads], row = layer; also the scores of an exported pattern.
  std::vector<double>& log_alpha() { return log_alpha_; }
  const std::vector<double>& log_alpha() const { return log_alpha_; }

  /// The draw of one micro-step: a pure function of log_alpha, the seed and the arguments.
  /// @param step, micro_step  in [0, 2^32).
  GateSample sample(int64_t step, int64_t micro_step) const;

 private:
  int64_t layers_;
  int64_t kv_heads_;
  uint64_t seed_;
  std::vector<double> log_alpha_;
};

}  // namespace prulong
