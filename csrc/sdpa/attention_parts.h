// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "csrc/attention_spec.h"

namespace prulong {

/// Attention that one call of PyTorch's computes: segments of queries and keys, each with one mask. A causal
/// segment's last query sees its last key; `window` counts the keys that a causal query sees up to its own, 0 = all.
struct AttentionPart {
  std::vector<DocumentRows> segments;
  bool causal;
  int window;
};

/// All of every document: one causal part without empty segments.
AttentionPart global_part(const std::vector<DocumentRows>& documents);

/// Local visibility as parts that share no pair of query and key: the window (every query, in order), then the sink as
/// seen by queries that see some of it outside their window, then by those that see all of it there, in segments of at
/// most `max_rows` queries. Parts without queries are left out.
std::vector<AttentionPart> local_parts(const std::vector<DocumentRows>& documents, Locality locality, int max_rows);

}  // namespace prulong
