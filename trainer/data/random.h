// SPDX-License-Identifier: MIT
// Random numbers of the data pipeline: counter-based, and the same on every machine and standard library (the
// standard's distributions are not).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

namespace prulong {

/// A bijection of 64-bit words that scatters its input (the output function of the splitmix64 generator).
constexpr uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

/// The splitmix64 generator, keyed by any number of words: Random({seed, n}) is independent of Random({seed, n + 1}).
class Random {
 public:
  explicit constexpr Random(std::initializer_list<uint64_t> key) {
    for (const uint64_t word : key) state_ = mix64(state_ + kStep + mix64(word + kStep));
  }

  constexpr uint64_t next() { return mix64(state_ += kStep); }

  /// Uniform in [0, bound), bound > 0; unbiased.
  constexpr uint64_t below(uint64_t bound) {
    const uint64_t rejected = (0 - bound) % bound;  // 2^64 mod bound: the incomplete last run of residues
    uint64_t word = next();
    while (word < rejected) word = next();
    return word % bound;
  }

  /// Puts the elements into a uniformly random order.
  template <typename T>
  void shuffle(std::vector<T>& items) {
    for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(i)]);
  }

 private:
  static constexpr uint64_t kStep = 0x9E3779B97F4A7C15ull;
  uint64_t state_ = 0;
};

/// A keyed permutation of [0, size) without a table: a Feistel network over the next even power of two; images outside
/// the range are permuted again until they fall inside, fewer than four times on average.
class Permutation {
 public:
  /// @param size  > 0
  constexpr Permutation(uint64_t size, uint64_t key) : size_(size) {
    const int bits = size > 1 ? static_cast<int>(std::bit_width(size - 1)) : 1;
    half_ = (bits + 1) / 2;
    Random random({key});
    for (uint64_t& round_key : round_keys_) round_key = random.next();
  }

  /// The image of index, in [0, size).
  constexpr uint64_t operator()(uint64_t index) const {
    do {
      index = encrypt(index);
    } while (index >= size_);
    return index;
  }

 private:
  static constexpr int kRounds = 8;

  constexpr uint64_t encrypt(uint64_t value) const {
    const uint64_t mask = (uint64_t{1} << half_) - 1;
    uint64_t left = value >> half_, right = value & mask;
    for (const uint64_t round_key : round_keys_) {
      const uint64_t mixed = left ^ (mix64(right ^ round_key) & mask);
      left = right;
      right = mixed;
    }
    return (left << half_) | right;
  }

  uint64_t size_;
  int half_ = 1;
  uint64_t round_keys_[kRounds] = {};
};

}  // namespace prulong
