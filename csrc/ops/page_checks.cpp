// SPDX-License-Identifier: MIT
#include "csrc/ops/page_checks.h"

#include <c10/util/Exception.h>

#include "csrc/ops/checks.h"

namespace prulong {
namespace {

void check_pool(const char* op, const char* pool_name, const at::Tensor& pool, const char* name,
                const at::Tensor& rows) {
  TORCH_CHECK(pool.defined(), op, ": ", pool_name, " must be a tensor, got none");
  TORCH_CHECK(pool.dim() == 3, op, ": ", pool_name, " must be [pages, page, head_dim], got shape ", pool.sym_sizes());
  TORCH_CHECK(pool.sym_size(1) > 0, op, ": ", pool_name, " must have at least one entry per page, got shape ",
              pool.sym_sizes());
  TORCH_CHECK(pool.sym_size(2) == rows.sym_size(2), op, ": ", pool_name, " must have ", name, "'s head_dim ",
              rows.sym_size(2), ", got ", pool.sym_size(2));
  check_same(op, pool_name, pool, name, rows);
  TORCH_CHECK(pool.layout() == at::kStrided && pool.is_contiguous(), op, ": ", pool_name, " must be dense, got layout ",
              pool.layout(), " and strides ", pool.sym_strides());
}

void check_list(const char* op, const char* list_name, const at::Tensor& list, const char* name,
                const at::Tensor& rows) {
  TORCH_CHECK(list.scalar_type() == at::kInt, op, ": ", list_name, " must be int32, got ", list.scalar_type());
  TORCH_CHECK(list.device() == rows.device(), op, ": ", list_name, " must be on ", name, "'s device ", rows.device(),
              ", got ", list.device());
}

}  // namespace

void check_paged(const char* op, const char* name, const at::Tensor& rows, const PagedTensors& paged) {
  const auto& [k_pages, v_pages, page_table, lengths, cu_seqlens_q] = paged;
  check_pool(op, "k_pages", k_pages, name, rows);
  check_pool(op, "v_pages", v_pages, name, rows);
  TORCH_CHECK(v_pages.sym_size(0) == k_pages.sym_size(0) && v_pages.sym_size(1) == k_pages.sym_size(1), op,
              ": v_pages must have k_pages' shape ", k_pages.sym_sizes(), ", got ", v_pages.sym_sizes());
  check_cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, rows, name);
  TORCH_CHECK(page_table.defined(), op, ": page_table must be a tensor, got none");
  TORCH_CHECK(page_table.dim() == 3, op, ": page_table must be [sequences, key heads, pages], got shape ",
              page_table.sym_sizes());
  TORCH_CHECK(page_table.sym_size(0) == cu_seqlens_q.sym_size(0) - 1, op,
              ": page_table must have as many sequences as cu_seqlens_q, ", cu_seqlens_q.sym_size(0) - 1, ", got ",
              page_table.sym_size(0));
  TORCH_CHECK(page_table.sym_size(1) > 0, op, ": page_table must have at least one key head, got shape ",
              page_table.sym_sizes());
  check_list(op, "page_table", page_table, name, rows);
  TORCH_CHECK(lengths.defined(), op, ": lengths must be a tensor, got none");
  TORCH_CHECK(lengths.dim() == 2 && lengths.sym_size(0) == page_table.sym_size(0) &&
                  lengths.sym_size(1) == page_table.sym_size(1),
              op, ": lengths must be [sequences, key heads] as page_table, [", page_table.sym_size(0), ", ",
              page_table.sym_size(1), "], got ", lengths.sym_sizes());
  check_list(op, "lengths", lengths, name, rows);
}

PageLists read_page_lists(const char* op, const PagedTensors& paged, int64_t tokens, int64_t max_seqlen_q,
                          PagesUsed used) {
  const PageLists lists = {paged.page_table.to(at::kCPU).contiguous(), paged.lengths.to(at::kCPU).contiguous(),
                           read_bounds(op, "cu_seqlens_q", paged.cu_seqlens_q, tokens, "max_seqlen_q", max_seqlen_q)};
  const int64_t pool = paged.k_pages.size(0), page = paged.k_pages.size(1), room = lists.table.size(2) * page;
  for (int64_t b = 0; b < lists.sequences(); ++b) {
    const int rows = lists.rows(b);
    if (rows == 0) continue;  // nothing of it is read
    for (int64_t h = 0; h < lists.heads(); ++h) {
      const int64_t length = lists.length(b, h);
      TORCH_CHECK(length <= room, op, ": lengths must be at most the entries that page_table has room for, ", room,
                  ", got ", length, " for sequence ", b, ", key head ", h);
      TORCH_CHECK(length >= rows, op, ": lengths must count the new rows of a sequence, ", rows, ", got ", length,
                  " for sequence ", b, ", key head ", h);
      const int64_t begin = used == PagesUsed::kNewRows ? (length - rows) / page : 0;
      const int32_t* pages = lists.pages(b, h);
      for (int64_t n = begin; n * page < length; ++n) {
        TORCH_CHECK(pages[n] >= 0 && pages[n] < pool, op, ": page_table must name pages in [0, ", pool, "), got ",
                    pages[n], " for sequence ", b, ", key head ", h, ", page ", n);
      }
    }
  }
  return lists;
}

}  // namespace prulong
