// SPDX-License-Identifier: MIT
// What lies on disk, without an order: packing.h makes a stream of sequences of it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "trainer/data/source.h"

namespace prulong {

/// Samples that are read together: a file, a shard. Immutable and thread-safe.
class Block {
 public:
  virtual ~Block() = default;

  /// How many samples there are. A sample is what an epoch's order keeps together: a document, or several that were
  /// stored as one.
  virtual int64_t samples() const = 0;

  /// The tokens of a sample, >= 0.
  virtual int64_t tokens(int64_t sample) const = 0;

  /// Appends the tokens [first, first + count) of a sample, count > 0, all of which exist, and the boundary after each
  /// document among them; the last one ends with them in any case.
  /// @throws Error naming the file when it holds a token outside the vocabulary.
  virtual void append(int64_t sample, int64_t first, int64_t count, Sequence& sequence) const = 0;
};

/// Blocks of samples. Thread-safe.
class Corpus {
 public:
  virtual ~Corpus() = default;

  /// > 0.
  virtual int64_t blocks() const = 0;

  /// Opens and checks one block. Expensive for some: whoever needs it again keeps it.
  /// @throws Error naming the file that is missing or damaged.
  virtual std::shared_ptr<const Block> open_block(int64_t index) const = 0;

  /// What messages call it: a folder or file.
  virtual std::string name() const = 0;
  /// See Source.
  virtual int64_t vocab_size() const = 0;
  /// Changes whenever the data change.
  virtual std::string fingerprint() const = 0;
};

/// A corpus that is opened as a whole.
class OneBlock final : public Corpus {
 public:
  OneBlock(std::string name, std::shared_ptr<const Block> block, int64_t vocab_size, std::string fingerprint)
      : name_(std::move(name)),
        block_(std::move(block)),
        vocab_size_(vocab_size),
        fingerprint_(std::move(fingerprint)) {}

  int64_t blocks() const override { return 1; }
  std::shared_ptr<const Block> open_block(int64_t) const override { return block_; }
  std::string name() const override { return name_; }
  int64_t vocab_size() const override { return vocab_size_; }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  std::string name_;
  std::shared_ptr<const Block> block_;
  int64_t vocab_size_;
  std::string fingerprint_;
};

}  // namespace prulong
