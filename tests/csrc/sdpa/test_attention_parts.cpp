// SPDX-License-Identifier: MIT
#include "csrc/sdpa/attention_parts.h"

#include <algorithm>
#include <vector>

#include "tests/support/catch.h"

using prulong::AttentionPart;
using prulong::DocumentRows;
using prulong::Locality;

namespace {

// How often each packed pair [query][key] is computed.
std::vector<std::vector<int>> count_pairs(const std::vector<AttentionPart>& parts, int queries, int keys) {
  std::vector<std::vector<int>> counts(static_cast<size_t>(queries), std::vector<int>(static_cast<size_t>(keys)));
  for (const AttentionPart& part : parts) {
    for (const DocumentRows& s : part.segments) {
      for (int r = 0; r < s.q_length; ++r) {
        const int last = part.causal ? s.k_length - s.q_length + r : s.k_length - 1;
        const int first = part.window > 0 ? std::max<int>(0, last - part.window + 1) : 0;
        for (int j = first; j <= last; ++j) {
          ++counts[static_cast<size_t>(s.q_begin + r)][static_cast<size_t>(s.k_begin + j)];
        }
      }
    }
  }
  return counts;
}

std::vector<std::vector<int>> visible_pairs(const std::vector<DocumentRows>& documents, Locality locality,
                                            prulong::Branch branch, int queries, int keys) {
  std::vector<std::vector<int>> counts(static_cast<size_t>(queries), std::vector<int>(static_cast<size_t>(keys)));
  for (const DocumentRows& d : documents) {
    for (int r = 0; r < d.q_length; ++r) {
      for (int j = 0; j < d.k_length; ++j) {
        if (!visible(branch, locality, d.first_position() + r, j)) continue;
        ++counts[static_cast<size_t>(d.q_begin + r)][static_cast<size_t>(d.k_begin + j)];
      }
    }
  }
  return counts;
}

}  // namespace

TEST_CASE("the parts of a branch cover each visible pair once and nothing else") {
  const std::vector<std::vector<DocumentRows>> packs = {
      {{0, 1, 0, 1}},
      {{0, 40, 0, 40}},
      {{0, 7, 0, 40}},                                  // the last queries alone
      {{0, 1, 0, 33}, {1, 0, 33, 5}, {1, 30, 38, 31}},  // one without queries
      {{0, 0, 0, 0}, {0, 12, 0, 12}, {12, 25, 12, 25}},
  };
  for (const auto& documents : packs) {
    const DocumentRows& last = documents.back();
    const int queries = last.q_begin + last.q_length, keys = last.k_begin + last.k_length;
    CHECK(count_pairs({prulong::global_part(documents)}, queries, keys) ==
          visible_pairs(documents, {0, 1}, prulong::Branch::kGlobal, queries, keys));
    for (const int sink : {0, 1, 3, 10, 50}) {
      for (const int window : {1, 2, 9, 25, 60}) {
        const auto wanted = visible_pairs(documents, {sink, window}, prulong::Branch::kLocal, queries, keys);
        for (const int max_rows : {1, 4, 1000}) {
          INFO("sink " << sink << ", window " << window << ", segments of " << max_rows);
          const auto parts = prulong::local_parts(documents, {sink, window}, max_rows);
          CHECK(count_pairs(parts, queries, keys) == wanted);
          // The first covers all tokens in order: PyTorch computes every row's own output with it.
          int rows = 0;
          for (const DocumentRows& s : parts.front().segments) {
            CHECK(s.q_begin == rows);
            rows += s.q_length;
          }
          CHECK(rows == queries);
          for (const AttentionPart& part : parts) {
            for (const DocumentRows& s : part.segments)
              CHECK((part.window > 0 || s.q_length <= std::max(max_rows, sink)));
          }
        }
      }
    }
  }
}
