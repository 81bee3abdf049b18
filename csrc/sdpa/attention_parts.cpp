// SPDX-License-Identifier: MIT
#include "csrc/sdpa/attention_parts.h"

#include <algorithm>
#include <utility>

namespace prulong {

AttentionPart global_part(const std::vector<Document>& documents) {
  AttentionPart part{{}, true, 0};
  for (const Document& document : documents) {
    // Keys without queries stay: joining them to the next stretch would change it.
    if (document.q_length > 0 || document.k_length > 0) part.stretches.push_back(document);
  }
  return part;
}

std::vector<AttentionPart> local_parts(const std::vector<Document>& documents, const Locality& locality,
                                       int64_t max_rows) {
  AttentionPart window = global_part(documents), triangle{{}, true, 0}, rest{{}, false, 0};
  window.window = locality.window;
  for (const Document& document : documents) {
    // Position p sees sink keys j <= p - window outside its window.
    const int64_t keys = std::min(locality.sink, document.k_length - locality.window);
    if (keys <= 0 || document.q_length == 0) continue;
    const int64_t offset = document.k_length - document.q_length;
    const int64_t first = std::max(locality.window, offset);
    const int64_t all_seen = std::max(locality.window + keys, offset);
    if (first < all_seen) {
      // The last of these rows, at window + keys - 1, sees the last of these keys: causal as a part defines it.
      triangle.stretches.push_back({document.q_begin + first - offset, all_seen - first, document.k_begin, keys});
    }
    for (int64_t row = all_seen; row < document.k_length; row += max_rows) {
      rest.stretches.push_back(
          {document.q_begin + row - offset, std::min(max_rows, document.k_length - row), document.k_begin, keys});
    }
  }
  std::vector<AttentionPart> parts;
  for (AttentionPart* part : {&window, &triangle, &rest}) {
    if (!part->stretches.empty()) parts.push_back(std::move(*part));
  }
  return parts;
}

}  // namespace prulong
