// SPDX-License-Identifier: MIT
#include "csrc/cpu/row_functions.h"

#include <cmath>
#include <cstring>

#include "csrc/cpu/exponential.h"

namespace prulong {
namespace {

/// A register of floats that need not be full: n values, then zeros.
template <typename Floats>
PRULONG_INLINE Floats load(const float* from, int64_t n) {
  if (n == sizeof(Floats) / sizeof(float)) return load_lanes<Floats>(from);
  Floats x = {};
  std::memcpy(&x, from, static_cast<size_t>(n) * sizeof(float));
  return x;
}

template <typename Floats>
PRULONG_INLINE void store(float* to, Floats x, int64_t n) {
  if (n == sizeof(Floats) / sizeof(float)) return store_lanes(to, x);
  std::memcpy(to, &x, static_cast<size_t>(n) * sizeof(float));
}

/// body(i, n) for n values from i on, a full register's at a time, then the last few.
template <int kBytes, typename Body>
PRULONG_INLINE void for_registers(int64_t count, const Body& body) {
  constexpr int64_t kLanes = kBytes / sizeof(float);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, kLanes);
  if (i < count) body(i, count - i);
}

struct RmsNorm {
  template <int kBytes>
  PRULONG_INLINE static void run(const float* x, const float* weight, float eps, float* out, int64_t rows,
                                 int64_t columns) {
    using Floats = Vector<float, kBytes>;
    for (int64_t r = 0; r < rows; ++r, x += columns, out += columns) {
      Floats squares = {};
      for_registers<kBytes>(
          columns, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
            const Floats values = load<Floats>(x + i, n);
            squares += values * values;
          });
      float sum = 0;
      for (size_t i = 0; i < sizeof(Floats) / sizeof(float); ++i) sum += squares[i];
      const float scale = 1.0F / std::sqrt(sum / static_cast<float>(columns) + eps);
      for_registers<kBytes>(
          columns, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
            store(out + i, load<Floats>(x + i, n) * scale * load<Floats>(weight + i, n), n);
          });
    }
  }
};

struct SwiGlu {
  template <int kBytes>
  PRULONG_INLINE static void run(const float* gate, const float* up, float* out, int64_t count) {
    using Floats = Vector<float, kBytes>;
    for_registers<kBytes>(
        count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
          const Floats g = load<Floats>(gate + i, n), power = exponential(g);
          store(out + i, g * (power / (power + 1.0F)) * load<Floats>(up + i, n), n);
        });
  }
};

struct Rotate {
  template <int kBytes>
  PRULONG_INLINE static void run(const float* x, const float* cos, const float* sin, float* out, int64_t rows,
                                 int64_t heads, int64_t half) {
    using Floats = Vector<float, kBytes>;
    for (int64_t r = 0; r < rows; ++r, cos += half, sin += half) {
      for (int64_t h = 0; h < heads; ++h, x += 2 * half, out += 2 * half) {
        for_registers<kBytes>(
            half, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
              const Floats first = load<Floats>(x + i, n), second = load<Floats>(x + half + i, n);
              const Floats c = load<Floats>(cos + i, n), s = load<Floats>(sin + i, n);
              store(out + i, first * c - second * s, n);
              store(out + half + i, second * c + first * s, n);
            });
      }
    }
  }
};

}  // namespace

void rms_norm_rows(Isa isa, const float* x, const float* weight, float eps, float* out, int64_t rows, int64_t columns) {
  run_kernel<RmsNorm>(isa, x, weight, eps, out, rows, columns);
}

void swiglu_values(Isa isa, const float* gate, const float* up, float* out, int64_t count) {
  run_kernel<SwiGlu>(isa, gate, up, out, count);
}

void rotate_rows(Isa isa, const float* x, const float* cos, const float* sin, float* out, int64_t rows, int64_t heads,
                 int64_t half) {
  run_kernel<Rotate>(isa, x, cos, sin, out, rows, heads, half);
}

void rope_rows(const float* positions, const float* frequencies, float* cos, float* sin, int64_t rows, int64_t half) {
  for (int64_t r = 0; r < rows; ++r, cos += half, sin += half) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = positions[r] * frequencies[i];
      cos[i] = static_cast<float>(std::cos(angle));
      sin[i] = static_cast<float>(std::sin(angle));
    }
  }
}

}  // namespace prulong
