// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/sequence.h"

namespace prulong {

/// A deterministic, random-access stream of packed sequences. sequence(n) is a pure function of n, so a run resumes
/// from one integer and any number of readers see the same stream. Thread-safe.
class Source {
 public:
  virtual ~Source() = default;

  /// The n-th sequence, n >= 0: exactly `seq_len` tokens unless the source says otherwise; the stream does not end (it
  /// starts further epochs, in another order).
  /// @throws Error naming the file when data on disk is damaged.
  virtual Sequence sequence(int64_t n) const = 0;

  /// One past the largest token id that may occur, to hold against the model's vocabulary.
  virtual int64_t vocab_size() const = 0;

  /// Changes whenever the stream changes: a resumed run refuses other data.
  virtual std::string fingerprint() const = 0;
};

}  // namespace prulong
