// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace prulong {

/// The shape of a model, as far as head masks care.
struct ModelShape {
  std::string type;         ///< Hugging Face model_type, "llama"
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t query_heads = 0;
  int64_t head_dim = 0;
  bool operator==(const ModelShape&) const = default;
};

/// A mask with everything needed to use it (DESIGN section 6).
struct Pattern {
  ModelShape model;
  int64_t sink = 0;    ///< tokens
  int64_t window = 1;  ///< tokens, the query included
  double sparsity = 0; ///< asked for; the mask's own share of local heads is local_fraction()
  std::vector<double> scores;    ///< [layers * kv_heads], row = layer; larger stays global longer
  std::vector<uint8_t> mask;     ///< [layers * kv_heads], 1 = global, 0 = local
  std::map<std::string, std::string> provenance;  ///< free text by key: data, steps, seed, config_hash, versions, source

  /// Ranks all heads by score, ties by (layer, head), the earlier one first, and makes exactly
  /// round((1 - sparsity) * layers * kv_heads) of them global.
  /// @throws Error if sparsity is outside [0, 1] or scores has the wrong size or a NaN.
  static Pattern from_scores(const ModelShape& model, std::vector<double> scores, double sparsity, int64_t sink,
                             int64_t window);

  /// Reads pattern.json, or the folder that holds one.
  /// @throws Error naming the file and the mismatch: unknown format, version, key, wrong size or type.
  static Pattern load(const std::filesystem::path& path);

  /// Writes `folder`/pattern.json and `folder`/masks.tsv (layers x kv_heads, 1.0 or 0.0, as DuoAttention's and PruLong's
  /// tools read), each atomically.
  void save(const std::filesystem::path& folder) const;

  /// @throws Error naming the first mismatch if this pattern was made for another shape of model.
  void check_fits(const ModelShape& other) const;

  /// Share of heads that are local, in [0, 1].
  double local_fraction() const;
};

/// Reads a DuoAttention folder (full_attention_heads.tsv and config.json, which gives sink and window) or a PruLong TSV
/// (0/1; then sink and window come from the arguments, which otherwise override). The result has the scores as read and
/// sparsity 0 heads local; round it with Pattern::from_scores.
/// @param model  the shape must fit the table's rows and columns.
/// @throws Error naming file and line.
Pattern import_head_table(const std::filesystem::path& path, const ModelShape& model, int64_t sink, int64_t window);

/// The mask as text, one row per layer, last layer first: '#' global, '.' local, with layer numbers.
std::string mask_map(const Pattern& pattern);

}  // namespace prulong
