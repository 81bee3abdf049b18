// SPDX-License-Identifier: MIT
#include "csrc/sdpa/attention_parts.h"

#include <algorithm>
#include <utility>

namespace prulong {

AttentionPart global_part(const std::vector<DocumentRows>& documents) {
  AttentionPart part{{}, true, 0};
  for (const DocumentRows& document : documents) {
    // Keys without queries stay: joining them to the next segment would change it.
    if (document.q_length > 0 || document.k_length > 0) part.segments.push_back(document);
  }
  return part;
}

std::vector<AttentionPart> local_parts(const std::vector<DocumentRows>& documents, Locality locality, int max_rows) {
  AttentionPart window = global_part(documents), triangle{{}, true, 0}, rest{{}, false, 0};
  window.window = locality.window;
  for (const DocumentRows& document : documents) {
    // Position p sees sink keys j <= p - window outside its window.
    const int keys = std::min(locality.sink, document.k_length - locality.window);
    if (keys <= 0 || document.q_length == 0) continue;
    const int offset = document.first_position();
    const int first = std::max(locality.window, offset);
    const int all_seen = std::max(locality.window + keys, offset);
    if (first < all_seen) {
      // The last of these rows, at window + keys - 1, sees the last of these keys: causal as a part defines it.
      triangle.segments.push_back({document.q_begin + first - offset, all_seen - first, document.k_begin, keys});
    }
    for (int row = all_seen; row < document.k_length;) {
      const int rows = std::min(max_rows, document.k_length - row);
      rest.segments.push_back({document.q_begin + row - offset, rows, document.k_begin, keys});
      row += rows;
    }
  }
  std::vector<AttentionPart> parts;
  for (AttentionPart* part : {&window, &triangle, &rest}) {
    if (!part->segments.empty()) parts.push_back(std::move(*part));
  }
  return parts;
}

}  // namespace prulong
