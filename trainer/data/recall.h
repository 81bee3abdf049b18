// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "trainer/data/source.h"

namespace prulong {

/// What synthetic long-range recall is made of.
struct RecallOptions {
  std::filesystem::path kit;  ///< folder written by `scripts/prepare_data.py recall`
  bool held_out = false;      ///< prose, names and codes that training never sees
  std::vector<std::string> tasks = {
      "codes"};             ///< see RecallKind; one is drawn for each sequence when there are several
  int64_t seq_len = 1024;   ///< tokens of a sequence
  int64_t statements = 12;  ///< facts in a sequence
  int64_t questions = 12;   ///< questions at its end, <= statements
  uint64_t seed = 0;
  int64_t vocab_size = std::numeric_limits<int32_t>::max();  ///< the model's; a kit with larger tokens is refused
};

/// Opens a source of synthetic recall: exactly seq_len tokens a sequence, one document each, is_answer set on the
/// answers.
///
/// Prose of the kit runs from the sequence's start (in the middle of a sentence) to the questions at its end. Facts
/// (recall_kind.h says of which kinds) stand between its sentences, at random depths, or all as one list. The model
/// completes the questions, which come in random order. sequence(n) depends on the kit, the options and n alone.
/// @throws ConfigError for options out of range; Error naming the file for a missing or damaged kit.
std::unique_ptr<Source> open_recall(const RecallOptions& options);

}  // namespace prulong
