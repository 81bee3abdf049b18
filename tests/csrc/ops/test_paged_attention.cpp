// SPDX-License-Identifier: MIT
// The operators over pages as the C++ engine calls them: no Python in the process. The wider comparison is
// tests/python/test_paged.py.
#include "csrc/ops/paged_attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "csrc/gathered_attention.h"
#include "csrc/ops/append_kv.h"
#include "csrc/ops/masked_attention.h"
#include "tests/support/catch.h"

namespace {

constexpr int64_t kPage = 16, kHeads = 2, kGroup = 3, kDim = 24, kSink = 5, kWindow = 21;
const at::TensorOptions kInt = at::TensorOptions().dtype(at::kInt);

at::Tensor bounds_of(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> bounds = {0};
  for (const int32_t n : lengths) bounds.push_back(bounds.back() + n);
  return at::tensor(bounds, kInt);
}

/// Sequences that were appended in one call, their pages in any order; and the same as packed documents.
struct Case {
  std::vector<int32_t> lengths, rows;  // both heads are as long
  at::Tensor k, v, q, k_pages, v_pages, table, list_lengths, is_global;

  Case(std::vector<int32_t> lengths_, std::vector<int32_t> rows_, at::ScalarType dtype)
      : lengths(std::move(lengths_)), rows(std::move(rows_)) {
    const auto sequences = static_cast<int64_t>(lengths.size());
    int64_t tokens = 0, queries = 0, width = 1;
    for (size_t b = 0; b < lengths.size(); ++b) {
      tokens += lengths[b];
      queries += rows[b];
      width = std::max<int64_t>(width, (lengths[b] + kPage - 1) / kPage);
    }
    const at::TensorOptions options = at::TensorOptions().dtype(dtype);
    k = at::randn({tokens, kHeads, kDim}, options);
    v = at::randn({tokens, kHeads, kDim}, options);
    q = at::randn({queries, kHeads * kGroup, kDim}, options);
    const int64_t pages = sequences * kHeads * width;
    k_pages = at::full({pages, kPage, kDim}, std::numeric_limits<double>::quiet_NaN(), options);
    v_pages = k_pages.clone();
    table = at::randperm(pages, kInt).view({sequences, kHeads, width});
    list_lengths = at::tensor(lengths, kInt).view({sequences, 1}).expand({sequences, kHeads});
    is_global = at::tensor(std::vector<int64_t>{1, 0}).to(at::kBool);
    prulong::append_kv({k, v, k_pages, v_pages, table, list_lengths, bounds_of(lengths)});
  }

  prulong::PagedArguments arguments() const {
    return {.q = q,
            .k_pages = k_pages,
            .v_pages = v_pages,
            .page_table = table,
            .lengths = list_lengths,
            .is_global = is_global,
            .cu_seqlens_q = bounds_of(rows),
            .max_seqlen_q = 1000,
            .sink = kSink,
            .window = kWindow,
            .scale = 0.2};
  }

  prulong::PageLists lists() const {
    const at::Tensor bounds = bounds_of(rows);
    const auto* data = bounds.const_data_ptr<int32_t>();
    return {table.contiguous(), list_lengths.contiguous(), std::vector<int>(data, data + bounds.numel())};
  }
};

double distance(const at::Tensor& a, const at::Tensor& b) {
  return a.to(at::kDouble).sub(b.to(at::kDouble)).abs().max().item().toDouble();
}

}  // namespace

TEST_CASE("attention over pages equals attention over documents and over gathered entries") {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    const double tolerance = dtype == at::kDouble ? 1e-13 : dtype == at::kFloat ? 2e-6 : 2e-2;
    const Case c({200, 9, 64, 1}, {37, 0, 64, 1}, dtype);
    const auto [out, lse] = prulong::paged_attention(c.arguments());
    CHECK(out.scalar_type() == dtype);
    CHECK(lse.scalar_type() == (dtype == at::kDouble ? at::kDouble : at::kFloat));

    const auto [gathered, gathered_lse] = prulong::gathered_attention(c.lists(), c.arguments());
    CHECK(gathered.scalar_type() == dtype);
    CHECK(gathered_lse.scalar_type() == lse.scalar_type());
    CHECK(gathered_lse.sizes() == lse.sizes());
    CHECK(distance(out, gathered) <= tolerance);
    CHECK(distance(lse, gathered_lse) <= 10 * std::min(tolerance, 2e-6));

    const auto [masked, masked_lse] = prulong::masked_attention({.q = c.q,
                                                                 .k = c.k,
                                                                 .v = c.v,
                                                                 .is_global = c.is_global,
                                                                 .cu_seqlens_q = bounds_of(c.rows),
                                                                 .cu_seqlens_k = bounds_of(c.lengths),
                                                                 .max_seqlen_q = 1000,
                                                                 .max_seqlen_k = 1000,
                                                                 .sink = kSink,
                                                                 .window = kWindow,
                                                                 .scale = 0.2});
    CHECK(distance(out, masked) <= tolerance);
    CHECK(distance(lse, masked_lse) <= 10 * std::min(tolerance, 2e-6));
  }
}

TEST_CASE("no rows, and no sequences, have no results") {
  for (const Case& c : {Case({40, 3}, {0, 0}, at::kFloat), Case({}, {}, at::kFloat)}) {
    for (const auto& [out, lse] :
         {prulong::paged_attention(c.arguments()), prulong::gathered_attention(c.lists(), c.arguments())}) {
      CHECK(out.sizes() == at::IntArrayRef({0, kHeads * kGroup, kDim}));
      CHECK(lse.sizes() == at::IntArrayRef({kHeads * kGroup, 0}));
    }
  }
}

TEST_CASE("threads do not change a bit") {
  const int threads = at::get_num_threads();
  for (const std::vector<int32_t>& rows : {std::vector<int32_t>{1, 1}, {90, 1}}) {
    const Case c({900, 333}, rows, at::kFloat);
    at::set_num_threads(1);
    const auto [out, lse] = prulong::paged_attention(c.arguments());
    for (const int count : {2, 3, 5}) {
      at::set_num_threads(count);
      const auto [other, other_lse] = prulong::paged_attention(c.arguments());
      CHECK(other.equal(out));
      CHECK(other_lse.equal(lse));
    }
  }
  at::set_num_threads(threads);
}

TEST_CASE("what does not fit is refused, and nothing written") {
  Case c({20, 5}, {3, 1}, at::kFloat);
  const at::Tensor before = c.k_pages.clone();
  const at::Tensor bad = c.table.clone();
  bad.select(0, 1).select(0, 1).fill_(static_cast<int64_t>(c.k_pages.size(0)));
  c.table = bad;
  CHECK_THROWS_WITH(
      prulong::append_kv({c.k.neg(), c.v, c.k_pages, c.v_pages, bad, c.list_lengths, bounds_of(c.lengths)}),
      ContainsSubstring("append_kv: page_table must name pages in [0, 8), got 8 for sequence 1"));
  CHECK(c.k_pages.nan_to_num().equal(before.nan_to_num()));
  CHECK_THROWS_WITH(prulong::paged_attention(c.arguments()),
                    ContainsSubstring("paged_attention: page_table must name pages in [0, 8), got 8 for sequence 1"));
}
