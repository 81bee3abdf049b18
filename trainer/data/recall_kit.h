// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace prulong {

/// The tokens of a recall kit (`scripts/prepare_data.py recall` writes it, and describes the files in its help).
class RecallKit {
 public:
  using Tokens = std::span<const int32_t>;

  /// Pieces of one kind: sentences in the order of the text, names, codes.
  struct List {
    std::string name;
    std::vector<Tokens> pieces;

    /// Tokens of the longest piece.
    int64_t longest() const;
  };

  /// The fixed parts of one task. Statements are before, name, middle, value, after; where they stand together, intro
  /// and outro are around them. After ask, questions are question_before, name, question_middle, values with separator
  /// between them, question_after.
  struct Template {
    std::vector<int32_t> intro, before, middle, after, outro, ask;
    std::vector<int32_t> question_before, question_middle, separator, question_after;
  };

  /// Reads and checks one half of a kit, the one that training sees or the held-out one, as a whole.
  /// @throws Error naming the file.
  RecallKit(const std::filesystem::path& folder, bool held_out);
  RecallKit(const RecallKit&) = delete;
  RecallKit& operator=(const RecallKit&) = delete;

  /// The tokenizer's.
  int64_t vocab_size() const { return vocab_size_; }
  /// Of both halves, prefix and templates: what occurs.
  int64_t largest_token() const { return largest_token_; }
  /// Changes whenever the kit changes.
  uint64_t hash() const { return hash_; }
  /// Tokens before every text, such as a beginning-of-text token.
  Tokens prefix() const { return prefix_; }

  const List& prose() const { return prose_; }
  const List& adjectives() const { return adjectives_; }
  const List& nouns() const { return nouns_; }
  const List& codes() const { return codes_; }
  const List& passkeys() const { return passkeys_; }
  const List& labels() const { return labels_; }

  /// The parts of a task: "codes", "passkey", "key_values", "multi_values" or "labels".
  const Template& parts_of(const std::string& task) const { return templates_.at(task); }

 private:
  std::vector<int32_t> tokens_;  ///< what the lists' spans point into
  int64_t vocab_size_ = 0;
  int64_t largest_token_ = 0;
  uint64_t hash_ = 0;
  std::vector<int32_t> prefix_;
  List prose_, adjectives_, nouns_, codes_, passkeys_, labels_;
  std::map<std::string, Template> templates_;
};

}  // namespace prulong
