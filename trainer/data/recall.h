// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "trainer/data/source.h"

namespace prulong {

/// What synthetic long-range recall is made of.
struct RecallOptions {
  std::filesystem::path kit;  ///< folder written by `scripts/prepare_data.py recall`
  bool eval_split = false;    ///< prose, names and codes that training never sees
  std::vector<std::string> tasks = {
      "codes"};             ///< any of "codes", "key_values", "passkey"; drawn at random when several
  int64_t seq_len = 1024;   ///< tokens of a sequence
  int64_t statements = 12;  ///< facts to remember in a sequence (passkey: always 1)
  int64_t questions = 12;   ///< how many of them are asked, <= statements (passkey: always 1)
  uint64_t seed = 0;
};

/// Opens a source of synthetic recall: exactly seq_len tokens a sequence, one document each, is_answer set on the
/// answers.
///
/// Prose of the kit runs from the sequence's start (in the middle of a sentence) to the questions at its end. Facts
/// stand between its sentences, at random depths: "The secret code of the red apple is 48213." each on its own (codes),
/// all of them as one list of "- red apple: lantern" lines (key_values), or "The passkey is 4821357. Remember it."
/// (passkey). A question repeats a fact's words, so the model completes it; questions come in random order. sequence(n)
/// depends on the kit, the options and n alone.
/// @throws ConfigError for options out of range; Error naming the file for a missing or damaged kit.
std::unique_ptr<Source> open_recall(const RecallOptions& options);

}  // namespace prulong
