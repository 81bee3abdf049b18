// SPDX-License-Identifier: MIT
#include "csrc/hopper/backward/backward_launch.h"

namespace prulong::kernels::backward {

template cudaError_t launch<Float16Dim128>(const BackwardRows&, const BackwardArguments&, cudaStream_t);

}  // namespace prulong::kernels::backward
