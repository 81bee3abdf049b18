// SPDX-License-Identifier: MIT
#include "csrc/hopper/tensor_map.h"

#include <cuda_runtime_api.h>

namespace prulong::kernels {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, by way of the runtime: nothing links to the driver, which is absent where there is no GPU.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  constexpr unsigned kSinceCuda = 12000;
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSinceCuda, cudaEnableDefault, &found);
  if (status != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<Encode>(function);
}

}  // namespace

const char* make_tensor_map(const PackedTensor& tensor, int box_rows, device::TensorMap* map) {
  if (!fits_tensor_map(tensor)) return "tensor map: start or strides are no multiples of 16 bytes";
  static const Encode encode = find_encode();
  if (encode == nullptr) return "tensor map: the driver has no cuTensorMapEncodeTiled; CUDA 12 or later is needed";
  constexpr cuuint64_t kElementBytes = 2;
  const cuuint64_t extent[3] = {static_cast<cuuint64_t>(tensor.head_dim), static_cast<cuuint64_t>(tensor.tokens),
                                static_cast<cuuint64_t>(tensor.heads)};
  // The stride of a dimension of 1 is never used; torch may give it any value.
  const cuuint64_t row_bytes = extent[0] * kElementBytes;
  const cuuint64_t strides[2] = {
      tensor.tokens == 1 ? row_bytes : static_cast<cuuint64_t>(tensor.token_stride) * kElementBytes,
      tensor.heads == 1 ? row_bytes : static_cast<cuuint64_t>(tensor.head_stride) * kElementBytes};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(box_rows), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUtensorMapDataType type =
      tensor.type == ElementType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult status =
      encode(map, type, 3, const_cast<void*>(tensor.data), extent, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? nullptr : "tensor map: cuTensorMapEncodeTiled refused the tensor";
}

}  // namespace prulong::kernels
