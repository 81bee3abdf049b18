// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "csrc/elementwise/element_type.h"
#include "csrc/hopper/device/copy.h"
#include "csrc/tile.h"

namespace prulong::kernels {

/// A tensor [tokens, heads, head_dim] of 16-bit elements, dense in its last dimension.
struct PackedTensor {
  ElementType type;
  const void* data;
  int64_t tokens, heads, head_dim;
  int64_t token_stride, head_stride;  // elements
};

/// A pool of pages [pages, kKeyBlock, head_dim] as a tensor whose tokens are all rows of all pages.
inline PackedTensor rows_of_pages(ElementType type, const void* data, int64_t pages, int64_t head_dim) {
  return {type, data, pages * kKeyBlock, 1, head_dim, head_dim, head_dim};
}

/// Can bulk copies address the tensor? Its start and its strides must be multiples of 16 bytes, the strides below 2^40
/// bytes, and head_dim a multiple of 64.
inline bool fits_tensor_map(const PackedTensor& t) {
  const auto fits = [](int64_t stride) { return stride > 0 && stride % 8 == 0 && stride < int64_t{1} << 39; };
  constexpr int64_t kMaxExtent = int64_t{1} << 31;
  return t.type != ElementType::kFloat32 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.head_dim > 0 &&
         t.head_dim % 64 == 0 && t.tokens > 0 && t.tokens < kMaxExtent && t.heads > 0 && t.heads < kMaxExtent &&
         (t.tokens == 1 || fits(t.token_stride)) && (t.heads == 1 || fits(t.head_stride));
}

/// The map of a tensor with boxes of 64 columns and `box_rows` <= 256 rows, for device/copy.h. Returns null, or what is
/// wrong. Defined for CUDA sources; tests of the emulation define their own.
const char* make_tensor_map(const PackedTensor& tensor, int box_rows, device::TensorMap* map);

}  // namespace prulong::kernels
