// SPDX-License-Identifier: MIT
#include "csrc/hopper/tensor_map.h"
#include "tests/emulation/emulator.h"

namespace prulong::kernels {

// In the place of the one that asks CUDA's driver: the kernels' arguments are made as on the device, with the
// emulation's maps.
const char* make_tensor_map(const PackedTensor& tensor, int box_rows, device::TensorMap* map) {
  if (!fits_tensor_map(tensor)) return "tensor map: start or strides are no multiples of 16 bytes";
  *map = device::emulation::make_tensor_map(tensor.data, 2, {tensor.head_dim, tensor.tokens, tensor.heads},
                                            {tensor.token_stride * 2, tensor.head_stride * 2}, {64, box_rows, 1}, true);
  return nullptr;
}

}  // namespace prulong::kernels
