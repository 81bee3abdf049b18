// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>

#include "trainer/data/corpus.h"
#include "trainer/data/source.h"

namespace prulong {

/// Makes a stream of a corpus.
///
/// An epoch is every sample once: the blocks in an order drawn from (seed, epoch), the samples of each in an order
/// drawn from (seed, epoch, block), one after another; the epochs follow each other, and sequence(n) is the n-th slice
/// of seq_len tokens of that. A document that a slice cuts counts as two documents.
///
/// Blocks are opened when they are first needed. Where sequence n lies depends on how many tokens the blocks before it
/// have, so the first sequence that is asked for opens all of those once; reading on from there opens one at a time.
/// @param seq_len  tokens of a sequence, 1 to 2^31 - 1.
/// @throws ConfigError for another seq_len.
std::unique_ptr<Source> pack_corpus(std::unique_ptr<const Corpus> corpus, int64_t seq_len, uint64_t seed);

/// Refuses a seq_len out of range.
void check_seq_len(int64_t seq_len);

}  // namespace prulong
