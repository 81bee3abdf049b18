// SPDX-License-Identifier: MIT
#include "csrc/hopper/forward/forward_launch.h"

namespace prulong::kernels::forward {

template cudaError_t launch<PagedFloat16Dim64>(const ForwardArguments&, cudaStream_t);

}  // namespace prulong::kernels::forward
