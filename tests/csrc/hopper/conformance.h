// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "tests/csrc/hopper/conformance_kernels.h"

/// Every function of the device layer against the plain mathematics, on random operands. The same code, with the test
/// cases of conformance_cases.h, runs on the emulation (test_conformance.cpp) and on a GPU (conformance.cu): `Machine`
/// is either's way to
///   input(vector) -> const T*, output<T>(count) -> T* (all bits set), contents(const T*, count) -> vector,
///   map(base, element_bytes, extent, stride_bytes, box, swizzle) -> TensorMap, launch<Kernel>(arguments),
///   report(name, error, tolerance).
namespace prulong::kernels::conformance {

using Random = std::mt19937;

struct Format {
  int digits, least_exponent, bias;  // significant bits; of the smallest normal number; of the exponent field
};
inline Format format_of(ElementType type) {
  return type == ElementType::kBFloat16 ? Format{8, -126, 127} : Format{11, -14, 15};
}

/// The 16 bits of x rounded to nearest even, by arithmetic alone.
inline uint16_t nearest(ElementType type, double x) {
  const Format f = format_of(type);
  const int sign = std::signbit(x) ? 1 << 15 : 0, fraction_bits = f.digits - 1;
  if (x == 0) return static_cast<uint16_t>(sign);
  const double size = std::fabs(x);
  int exponent = std::isinf(x) ? f.bias + 1 : std::max(std::ilogb(size), f.least_exponent);
  double units = std::isinf(x) ? 0 : std::nearbyint(std::ldexp(size, fraction_bits - exponent));
  if (units == std::ldexp(1.0, f.digits)) {
    ++exponent;
    units /= 2;
  }
  if (exponent > f.bias) return static_cast<uint16_t>(sign | (2 * f.bias + 1) << fraction_bits);  // infinity
  const int field = units < std::ldexp(1.0, fraction_bits) ? 0 : exponent + f.bias;
  const int fraction = static_cast<int>(units) & ((1 << fraction_bits) - 1);
  return static_cast<uint16_t>(sign | field << fraction_bits | fraction);
}
inline double value_of(ElementType type, uint16_t bits) {
  const Format f = format_of(type);
  const int fraction_bits = f.digits - 1, magnitude = bits & 0x7fff;
  const int field = magnitude >> fraction_bits, fraction = magnitude & ((1 << fraction_bits) - 1);
  double value = std::ldexp(fraction, f.least_exponent - fraction_bits);
  if (field > 0) value = std::ldexp(fraction + (1 << fraction_bits), field - f.bias - fraction_bits);
  if (field == 2 * f.bias + 1) value = std::numeric_limits<double>::infinity();
  return bits >> 15 != 0 ? -value : value;
}

inline std::vector<uint32_t> random_words(size_t count, Random& random) {
  std::vector<uint32_t> words(count);
  for (uint32_t& word : words) word = static_cast<uint32_t>(random());
  return words;
}
inline std::vector<float> random_floats(size_t count, float from, float to, Random& random) {
  std::uniform_real_distribution<float> draw(from, to);
  std::vector<float> values(count);
  for (float& value : values) value = draw(random);
  return values;
}
inline std::vector<uint16_t> random_elements(ElementType type, size_t count, Random& random) {
  std::vector<uint16_t> elements(count);
  for (size_t i = 0; i < count; ++i) elements[i] = nearest(type, std::normal_distribution<double>()(random));
  return elements;
}

/// Number of places that differ.
template <class T>
double differences(const std::vector<T>& found, const std::vector<T>& expected) {
  size_t count = found.size() == expected.size() ? 0 : 1;
  for (size_t i = 0; i < std::min(found.size(), expected.size()); ++i) {
    count += std::memcmp(&found[i], &expected[i], sizeof(T)) != 0 ? 1 : 0;
  }
  return static_cast<double>(count);
}

/// Runs a kernel with one input and returns its output.
template <class Kernel, class Out, class Machine, class In>
std::vector<Out> outcome(Machine& machine, const std::vector<In>& in, size_t count, std::array<int, 4> numbers = {}) {
  Arguments arguments = {};
  arguments.in[0] = machine.input(in);
  Out* const out = machine.template output<Out>(count);
  arguments.out = out;
  std::copy(numbers.begin(), numbers.end(), arguments.numbers);
  machine.template launch<Kernel>(arguments);
  return machine.contents(out, count);
}

template <class Machine>
void check_identity(Machine& machine) {
  const std::vector<int> nothing(4);
  std::vector<int> expected;
  for (int t = 0; t < 3 * 256; ++t) {
    const int i = t % 256;
    expected.insert(expected.end(), {i, 3, i / 32, i % 32, i / 128, 0});
  }
  machine.report("thread, block, warp, lane and warpgroup",
                 differences(outcome<Identity, int>(machine, nothing, 3 * 256 * 6), expected), 0);
}

template <class Machine>
void check_warp_functions(Machine& machine) {
  const std::vector<int> nothing(4);
  std::vector<int> found = outcome<WarpFunctions, int>(machine, nothing, 64 * 7);
  double wrong = 0;
  for (size_t warp = 0; warp < 2; ++warp) {
    int elected = 0;
    for (size_t lane = 0; lane < 32; ++lane) {
      const int* const out = found.data() + (32 * warp + lane) * 7;
      const int first = static_cast<int>(100 * warp), l = static_cast<int>(lane);
      elected += out[0];
      const std::array<int, 6> right = {out[0], first + (l ^ 1), first + (l ^ 18), first + 5, warp == 1 ? 1 : 0, 0};
      wrong += std::equal(right.begin(), right.end(), out + 1) ? 0 : 1;
    }
    wrong += elected == 1 ? 0 : 1;
  }
  machine.report("elect, shuffle and any", wrong, 0);
}

template <class Machine>
void check_registers(Machine& machine) {
  const std::vector<int> nothing(4);
  std::vector<int> registers(128, 24);
  registers.resize(384, 240);
  machine.report("registers", differences(outcome<Registers, int>(machine, nothing, 384), registers), 0);
}

template <class Machine>
void check_arithmetic(Machine& machine, Random& random) {
  constexpr size_t kCount = 2000;
  std::vector<float> in(3 * kCount);
  const std::array<float, 12> corners = {0.0f,    -0.0f,   1.0f,    65504.0f,      65519.0f, 65520.0f,
                                         3.3e38f, 6.1e-5f, 5.9e-8f, 2.9802322e-8f, 1e-40f,   -2049.0f};
  for (size_t i = 0; i < kCount; ++i) {
    in[3 * i] = random_floats(1, -100, 20, random)[0];
    in[3 * i + 1] = std::exp2(random_floats(1, -60, 60, random)[0]);
    in[3 * i + 2] = i < corners.size() ? corners[i] : random_floats(1, -3, 3, random)[0];
  }
  in[0] = -std::numeric_limits<float>::infinity();
  const std::vector<float> out =
      outcome<Arithmetic, float>(machine, in, 10 * kCount, {static_cast<int>(kCount), 0, 0, 0});
  double exp2_error = 0, log2_error = 0, wrong = 0, wrong_packs = 0;
  for (size_t i = 0; i < kCount; ++i) {
    const float x = in[3 * i], y = in[3 * i + 1], z = in[3 * i + 2];
    const float* const found = &out[10 * i];
    const double power = std::exp2(static_cast<double>(x)), logarithm = std::log2(static_cast<double>(y));
    exp2_error = std::max(exp2_error, std::fabs(found[0] - power) / (power == 0 ? 1 : power));
    log2_error = std::max(log2_error, std::fabs(found[1] - logarithm) / std::max(1.0, std::fabs(logarithm)));
    wrong += (found[2] == std::fma(x, y, z) ? 0 : 1) + (found[3] == std::max(x, z) ? 0 : 1);
    for (const ElementType type : {ElementType::kBFloat16, ElementType::kFloat16}) {
      const float* const packed = found + (type == ElementType::kBFloat16 ? 4 : 7);
      uint32_t word;
      std::memcpy(&word, packed, 4);
      const uint16_t low = nearest(type, x), high = nearest(type, z);
      wrong_packs += word == (low | uint32_t{high} << 16) && packed[1] == static_cast<float>(value_of(type, low)) &&
                             packed[2] == static_cast<float>(value_of(type, high))
                         ? 0
                         : 1;
    }
  }
  machine.report("exp2", exp2_error, 3e-7);
  machine.report("log2", log2_error, 1e-6);
  machine.report("fused and largest", wrong, 0);
  machine.report("pack and unpack", wrong_packs, 0);
}

template <bool kStore, bool kTransposed, class Machine>
void check_matrices(Machine& machine, Random& random) {
  const std::vector<uint32_t> in = random_words(128, random);
  std::vector<uint32_t> expected(128);
  const auto* const from = reinterpret_cast<const uint16_t*>(in.data());
  auto* const to = reinterpret_cast<uint16_t*>(expected.data());
  for (size_t matrix = 0; matrix < 4; ++matrix) {
    for (size_t row = 0; row < 8; ++row) {
      for (size_t column = 0; column < 8; ++column) {
        const size_t place = (matrix * 8 + row) * 8 + column;  // in memory
        const size_t major = kTransposed ? column : row, minor = kTransposed ? row : column;
        const size_t held = ((4 * major + minor / 2) * 4 + matrix) * 2 + minor % 2;  // in the lanes' words
        to[kStore ? place : held] = from[kStore ? held : place];
      }
    }
  }
  const std::string name = std::string(kStore ? "store" : "load") + " matrices" + (kTransposed ? ", transposed" : "");
  machine.report(name, differences(outcome<Matrices<kStore, kTransposed>, uint32_t>(machine, in, 128), expected), 0);
}

template <class Machine>
void check_shared_memory(Machine& machine, Random& random) {
  const std::vector<uint32_t> in = random_words(128, random);
  std::vector<uint32_t> expected;
  for (size_t t = 0; t < 32; ++t) {
    for (size_t i = 0; i < 12; ++i) expected.push_back(in[4 * t + i % 4]);
  }
  machine.report("shared loads and stores",
                 differences(outcome<SharedAccess, uint32_t>(machine, in, 32 * 12), expected), 0);
}

template <class Machine>
void check_memory_barriers(Machine& machine) {
  const std::vector<int> nothing(4);
  constexpr int kRounds = 9;
  uint32_t number = 1;
  for (int turn = 0; turn < 2 * kRounds; ++turn) number = 3 * number + static_cast<uint32_t>(turn % 2);
  machine.report("memory barriers",
                 differences(outcome<MemoryBarriers, uint32_t>(machine, nothing, 1, {kRounds, 0, 0, 0}), {number}), 0);
}

template <class Machine>
void check_named_barriers(Machine& machine) {
  const std::vector<int> nothing(4);
  std::vector<int> expected(64);
  for (int i = 0; i < 64; ++i) expected[static_cast<size_t>(i)] = 7 * i + 1;
  machine.report("barriers by number", differences(outcome<NamedBarriers, int>(machine, nothing, 64), expected), 0);
}

/// A tensor [3][10][kWidth] and boxes of it, inside and over every edge.
template <class T, bool kSwizzle, int kWidth = 70>
struct Boxes {
  static constexpr int kBytes = sizeof(T), kColumns = kWidth, kRows = 10, kHeads = 3;
  static constexpr int kBoxColumns = kSwizzle ? 128 / kBytes : 20, kBoxRows = 6, kBoxHeads = 2;
  // Rows are longer than their extent, heads further apart than rows.
  static constexpr int64_t kRowStride = (kColumns * kBytes + 31) / 16 * 16, kHeadStride = kRows * kRowStride + 48;
  static constexpr size_t kTensorBytes = kHeads * kHeadStride, kBoxBytes = kBoxColumns * kBoxRows * kBoxHeads * kBytes;

  using Start = std::array<int, 3>;
  // Columns on 16 bytes, as copies demand.
  static std::vector<Start> starts() { return {{0, 0, 0}, {8, 2, 1}, {40, 7, 2}, {64, 12, 0}}; }
  static std::vector<Start> negative_starts() { return {{0, -2, 0}, {0, 0, -1}, {-8, 0, 0}, {-8, -2, -1}}; }

  template <class Machine>
  static TensorMap map(const Machine& machine, const void* tensor) {
    return machine.map(tensor, kBytes, {kColumns, kRows, kHeads}, {kRowStride, kHeadStride},
                       {kBoxColumns, kBoxRows, kBoxHeads}, kSwizzle);
  }
  static std::string name(const char* verb, Start start) {
    std::string text = std::string(verb) + " a box of " + std::to_string(8 * kBytes) + " bits" +
                       (kSwizzle ? ", swizzled" : "") + ", at";
    for (const int i : start) text += ' ' + std::to_string(i);
    return text;
  }
  /// Calls visit(byte in the box, byte in the tensor) for every element of the box that lies in the tensor.
  template <class Visit>
  static void for_each(Start start, Visit visit) {
    for (int h = 0, line = 0; h < kBoxHeads; ++h) {
      for (int r = 0; r < kBoxRows; ++r, ++line) {
        for (int c = 0; c < kBoxColumns; ++c) {
          const int in_line = kSwizzle ? c * kBytes ^ line % 8 * 16 : c * kBytes;
          const int column = start[0] + c, row = start[1] + r, head = start[2] + h;
          if (column < 0 || column >= kColumns || row < 0 || row >= kRows || head < 0 || head >= kHeads) continue;
          visit(static_cast<size_t>(line * kBoxColumns * kBytes + in_line),
                static_cast<size_t>(head * kHeadStride + row * kRowStride + column * kBytes));
        }
      }
    }
  }
};

template <class T, bool kSwizzle, class Machine>
void check_loads(Machine& machine, Random& random, const std::vector<std::array<int, 3>>& starts) {
  using B = Boxes<T, kSwizzle>;
  for (const std::array<int, 3>& start : starts) {
    const std::vector<uint32_t> words = random_words(B::kTensorBytes / 4, random);
    const auto* const tensor = reinterpret_cast<const uint8_t*>(words.data());
    uint8_t* const loaded = machine.template output<uint8_t>(B::kBoxBytes);
    machine.template launch<LoadBox>(
        {B::map(machine, machine.input(words)), {}, loaded, {start[0], start[1], start[2], int{B::kBoxBytes}}});
    std::vector<uint8_t> expected(B::kBoxBytes, 0);
    B::for_each(start, [&](size_t in_box, size_t place) { std::memcpy(&expected[in_box], tensor + place, sizeof(T)); });
    machine.report(B::name("load", start), differences(machine.contents(loaded, B::kBoxBytes), expected), 0);
  }
}

template <class T, bool kSwizzle, class Machine>
void check_stores(Machine& machine, Random& random) {
  using B = Boxes<T, kSwizzle, 72>;  // rows of a multiple of 16 bytes
  for (const std::array<int, 3>& start : B::starts()) {
    const std::vector<uint32_t> words = random_words(B::kBoxBytes / 4, random);
    const auto* const tile = reinterpret_cast<const uint8_t*>(words.data());
    uint8_t* const stored = machine.template output<uint8_t>(B::kTensorBytes);
    machine.template launch<StoreBox>(
        {B::map(machine, stored), {machine.input(words)}, nullptr, {start[0], start[1], start[2], int{B::kBoxBytes}}});
    std::vector<uint8_t> expected(B::kTensorBytes, 0xff);
    B::for_each(start, [&](size_t in_box, size_t place) { std::memcpy(&expected[place], tile + in_box, sizeof(T)); });
    machine.report(B::name("store", start), differences(machine.contents(stored, B::kTensorBytes), expected), 0);
  }
}

template <class Machine>
void check_bulk_copies(Machine& machine, Random& random) {
  constexpr size_t kCount = 1000;
  const std::vector<float> in = random_floats(kCount, -1, 1, random);
  Arguments arguments = {};
  arguments.in[0] = machine.input(in);
  std::vector<float> start = random_floats(kCount, -1, 1, random);
  float* const out = machine.output(start);
  arguments.out = out;
  arguments.numbers[0] = static_cast<int>(kCount);
  machine.template launch<BulkCopies>(arguments);
  const std::vector<float> found = machine.contents(out, kCount);
  double error = 0;
  for (size_t i = 0; i < kCount; ++i) error = std::max(error, std::fabs(start[i] + 3.0 * in[i] - found[i]));
  machine.report("bulk loads and additions", error, 1e-6);
}

template <class Machine>
void check_atomics(Machine& machine) {
  Arguments arguments = {};
  constexpr size_t kThreads = 3 * 64;
  int* const out = machine.output(std::vector<int>(5 + kThreads, 0));
  arguments.out = out;
  machine.template launch<GlobalAtomics>(arguments);
  std::vector<int> found = machine.contents(out, 5 + kThreads);
  std::sort(found.begin() + 5, found.end());
  std::vector<int> expected = {static_cast<int>(kThreads), 3, 1, 12, 123};
  for (size_t i = 0; i < kThreads; ++i) expected.push_back(static_cast<int>(i));
  machine.report("atomics and semaphores", differences(found, expected), 0);
}

template <ElementType kType, int kColumns, Major kMajorA, Major kMajorB, bool kRegisters, class Machine>
void check_product(Machine& machine, Random& random) {
  constexpr size_t kRows = 64, kDepth = kProductDepth, kN = kColumns;
  const std::vector<uint16_t> a = random_elements(kType, kRows * kDepth, random);
  const std::vector<uint16_t> b = random_elements(kType, kN * kDepth, random);
  const auto values = [](const std::vector<uint16_t>& bits) {
    std::vector<double> out(bits.size());
    for (size_t i = 0; i < bits.size(); ++i) out[i] = value_of(kType, bits[i]);
    return out;
  };
  const std::vector<double> values_a = values(a), values_b = values(b);
  double error = 0;
  for (const int start : {0, 3}) {
    Arguments arguments = {};
    arguments.in[0] = machine.input(a);
    arguments.in[1] = machine.input(b);
    float* const out = machine.template output<float>(kRows * kN);
    arguments.out = out;
    arguments.numbers[0] = start;
    machine.template launch<Products<kType, kColumns, kMajorA, kMajorB, kRegisters>>(arguments);
    const std::vector<float> found = machine.contents(out, kRows * kN);
    for (size_t i = 0; i < kRows; ++i) {
      for (size_t j = 0; j < kN; ++j) {
        double sum = start, size = 1;
        for (size_t k = 0; k < kDepth; ++k) {
          const double term = values_a[i * kDepth + k] * values_b[j * kDepth + k];
          sum += term;
          size += std::fabs(term);
        }
        const double difference = std::fabs(sum - found[i * kN + j]) / size;
        if (!(difference <= error)) error = difference;  // NaN counts
      }
    }
  }
  const auto major = [](Major m) { return m == Major::kK ? "K" : "MN"; };
  machine.report(std::string("product ") + (kType == ElementType::kBFloat16 ? "bfloat16" : "float16") + " N " +
                     std::to_string(kColumns) + ", A " + (kRegisters ? "in registers" : major(kMajorA)) + ", B " +
                     major(kMajorB),
                 error, 1e-6);
}

}  // namespace prulong::kernels::conformance
