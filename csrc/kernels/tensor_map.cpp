// SPDX-License-Identifier: MIT
// Maps for the emulation.
#include "csrc/kernels/tensor_map.h"

namespace prulong::kernels {

const char* make_tensor_map(const PackedTensor& tensor, int box_rows, device::TensorMap* map) {
  if (!fits_tensor_map(tensor)) return "tensor map: start or strides are no multiples of 16 bytes";
  map->base = const_cast<void*>(tensor.data);
  map->element_bytes = 2;
  map->swizzle = true;
  const int64_t extent[3] = {tensor.head_dim, tensor.tokens, tensor.heads};
  const int64_t stride[3] = {1, tensor.tokens == 1 ? tensor.head_dim : tensor.token_stride,
                             tensor.heads == 1 ? tensor.head_dim : tensor.head_stride};
  const int32_t box[3] = {64, box_rows, 1};
  for (int i = 0; i < 3; ++i) {
    map->extent[i] = extent[i];
    map->stride[i] = stride[i] * map->element_bytes;
    map->box[i] = box[i];
  }
  return nullptr;
}

}  // namespace prulong::kernels
