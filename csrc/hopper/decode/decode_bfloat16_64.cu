// SPDX-License-Identifier: MIT
#include "csrc/hopper/decode/decode_launch.h"

namespace prulong::kernels::decode {

template cudaError_t launch<BFloat16Dim64>(const DecodeArguments&, int, cudaStream_t);

}  // namespace prulong::kernels::decode
