// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace prulong {

/// The shape of a model, as far as head masks care.
struct ModelShape {
  std::string type;  ///< Hugging Face model_type, "llama"
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t query_heads = 0;
  int64_t head_dim = 0;
  bool operator==(const ModelShape&) const = default;
};

/// A mask with everything needed to use it.
struct Pattern {
  ModelShape model;
  int64_t sink = 0;            ///< tokens
  int64_t window = 1;          ///< tokens, the query included
  double sparsity = 0;         ///< asked for; the mask's own share of local heads is local_fraction()
  std::vector<double> scores;  ///< [layers * kv_heads], row = layer; larger stays global longer
  std::vector<uint8_t> mask;   ///< [layers * kv_heads], 1 = global, 0 = local
  std::map<std::string, std::string>
      provenance;  ///< free text by key: data, steps, seed, config_hash, versions, source

  /// Ranks all heads by score, ties by (layer, head), the earlier one first, and makes exactly
  /// global_heads(sparsity, layers * kv_heads) of them global.
  /// @throws Error if sparsity is outside [0, 1], scores has the wrong size or a value that is not finite, sink < 0 or
  ///         window < 1.
  static Pattern from_scores(const ModelShape& model, std::vector<double> scores, double sparsity, int64_t sink,
                             int64_t window);

  /// Reads a pattern file, or pattern.json of a folder.
  /// @throws Error naming the file and the mismatch: unknown format, version, key, wrong size or type.
  static Pattern load(const std::filesystem::path& path);

  /// Writes one pattern file, under any name, atomically.
  /// @throws Error naming the file, or the field that load would refuse.
  void save_json(const std::filesystem::path& file) const;

  /// Writes `folder`/pattern.json and `folder`/masks.tsv (layers x kv_heads, 1.0 or 0.0, as DuoAttention's and
  /// PruLong's tools read). A new folder appears whole or not at all; in an old one each file is replaced atomically
  /// and the two never disagree, whoever else saves there at the same time.
  /// @throws Error as save_json.
  void save(const std::filesystem::path& folder) const;

  /// @param what  names the pattern in messages.
  /// @throws Error where load would refuse a file with these values.
  void check(const std::string& what = "the pattern") const;

  /// @param name  the file, for messages.
  /// @throws Error naming the first mismatch if this pattern was made for another shape of model.
  void check_fits(const ModelShape& other, const std::string& name = "the pattern") const;

  /// The same scores ranked anew for another sparsity; provenance stays.
  /// @param name  the file, for messages.
  /// @throws Error as from_scores, and where the scores have only two values and the cut lies inside one: they are a
  ///         mask, not a ranking, and position alone would choose.
  Pattern rounded(double sparsity, const std::string& name = "scores") const;

  /// Heads of one score, some of them global and some local: there position decided, not score.
  struct Tie {
    double score;
    int64_t heads, global;
  };
  std::optional<Tie> tie() const;

  /// Share of heads that are local, in [0, 1].
  double local_fraction() const;

  /// Whether every score is exactly 0 or 1: the scores then are a mask and rank nothing inside its two halves.
  bool scores_are_a_mask() const;
};

/// round((1 - sparsity) * heads) in double arithmetic, to nearest with halves away from zero: how many heads stay
/// global.
int64_t global_heads(double sparsity, int64_t heads);

/// Reads a DuoAttention folder (full_attention_heads.tsv and config.json, whose sink_size and recent_size become sink
/// and window unless given) or a file with such a table, as PruLong's masks.tsv (then sink and window must be given).
/// Scores are kept as read. A table of only 0 and 1 is taken as the mask; of any other, every head is global and
/// sparsity is 0: round it with Pattern::from_scores.
/// @param model  the shape that the table's rows (layers) and columns (KV heads) must fit.
/// @throws Error naming file and line.
Pattern import_head_table(const std::filesystem::path& path, const ModelShape& model,
                          std::optional<int64_t> sink = std::nullopt, std::optional<int64_t> window = std::nullopt);

/// The mask as text, as masks.tsv holds it: one row per layer, 1.0 or 0.0, tab-separated.
std::string mask_table(const Pattern& pattern);

/// The mask as text for people, one row per layer, last layer first: '#' global, '.' local, with layer numbers.
std::string mask_map(const Pattern& pattern);

}  // namespace prulong
