// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
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

  /// The fixed parts of one task: a statement is before, name, middle, value, after; questions repeat it.
  struct Template {
    std::vector<int32_t> intro, before, middle, after, outro, ask;
  };

  /// Reads and checks one split of a kit, as a whole.
  /// @throws Error naming the file.
  RecallKit(const std::filesystem::path& folder, bool eval_split);
  RecallKit(const RecallKit&) = delete;
  RecallKit& operator=(const RecallKit&) = delete;

  int64_t vocab_size() const { return vocab_size_; }
  /// Changes whenever the kit changes.
  uint64_t hash() const { return hash_; }
  /// Tokens before every text, such as a beginning-of-text token.
  Tokens prefix() const { return prefix_; }

  const List& prose() const { return prose_; }
  const List& adjectives() const { return adjectives_; }
  const List& nouns() const { return nouns_; }
  const List& codes() const { return codes_; }
  const List& passkeys() const { return passkeys_; }

  const Template& codes_template() const { return codes_template_; }
  const Template& passkey_template() const { return passkey_template_; }
  const Template& key_values_template() const { return key_values_template_; }

 private:
  std::vector<int32_t> tokens_;  ///< what the lists' spans point into
  int64_t vocab_size_ = 0;
  uint64_t hash_ = 0;
  std::vector<int32_t> prefix_;
  List prose_, adjectives_, nouns_, codes_, passkeys_;
  Template codes_template_, passkey_template_, key_values_template_;
};

}  // namespace prulong
