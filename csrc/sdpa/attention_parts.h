// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/cpu/tile_plan.h"

namespace prulong {

/// One document: its queries, and its keys in the packed key tensors. Query row r stands at position
/// k_length - q_length + r.
struct Document {
  int64_t q_begin;
  int64_t q_length;
  int64_t k_begin;
  int64_t k_length;
};

/// Attention that one call of a library computes: stretches of queries and keys, each pair with one mask. A causal
/// stretch's last query sees its last key; `window` counts the keys that a causal query sees up to its own, 0 = all.
struct AttentionPart {
  std::vector<Document> stretches;
  bool causal;
  int64_t window;
};

/// All of every document: one causal part without empty stretches.
AttentionPart global_part(const std::vector<Document>& documents);

/// Local visibility as parts that share no pair of query and key: the window (every query, in order), then the sink as
/// seen by queries that see some of it outside their window, then by those that see all of it there, in stretches of at
/// most `max_rows` queries. Parts without queries are left out.
std::vector<AttentionPart> local_parts(const std::vector<Document>& documents, const Locality& locality,
                                       int64_t max_rows);

}  // namespace prulong
