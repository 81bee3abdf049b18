// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "csrc/hopper/schedule.h"

/// Where rows lie in the kernels' arrays, and how large those may be. Tokens, heads, tiles and items are counted in 32
/// bits, within the limits below; offsets of elements and bytes pass 2^31 long before and have 64 bits.
namespace prulong::kernels {

/// Most tokens of queries or of keys: positions plus a window stay below 2^31.
constexpr int64_t kMaxTokens = int64_t{1} << 29;
/// Most query heads: what one token has of vectors fits 32 bits many times over.
constexpr int64_t kMaxHeads = int64_t{1} << 16;
/// Most tiles of 64 tokens over all documents and query heads: items and tiles of all kernels are at most twice as
/// many.
constexpr int64_t kMaxTiles = int64_t{1} << 29;

/// Are the sizes of a call within the limits?
PRULONG_HOST_DEVICE bool within_limits(int64_t q_tokens, int64_t k_tokens, int64_t documents, int64_t query_heads) {
  const int64_t tokens = q_tokens > k_tokens ? q_tokens : k_tokens;
  return tokens <= kMaxTokens && query_heads <= kMaxHeads && documents < kMaxTiles &&
         (tokens / 64 + documents) * query_heads <= kMaxTiles;
}

/// Row of a dense tensor [tokens, heads, head_dim], of head_dim elements.
PRULONG_HOST_DEVICE int64_t packed_row(int token, int heads, int head) { return int64_t{token} * heads + head; }

/// Place in an array [query heads, q tokens].
PRULONG_HOST_DEVICE int64_t lse_place(const Batch& batch, int query_head, int token) {
  return int64_t{query_head} * batch.q_tokens + token;
}

/// Row of partial results [QueryItem::partial, query rows, head_dim].
PRULONG_HOST_DEVICE int64_t partial_row(int partial, int query_rows, int row) {
  return int64_t{partial} * query_rows + row;
}

}  // namespace prulong::kernels
