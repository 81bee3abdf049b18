// SPDX-License-Identifier: MIT
#include "csrc/hopper/schedule_plan.h"

namespace prulong::kernels {
namespace {

constexpr int kThreads = 1024;

// The threads of one CTA.
class Cta {
 public:
  __device__ explicit Cta(int64_t* sums) : sums_(sums) {}
  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return kThreads; }
  __device__ void sync() const { __syncthreads(); }
  __device__ int add(int* at, int value) const { return atomicAdd(at, value); }
  __device__ int64_t sum_before(int64_t value, int64_t* total) const {
    sums_[rank()] = value;
    for (int step = 1; step < kThreads; step *= 2) {
      __syncthreads();
      const int64_t other = rank() >= step ? sums_[rank() - step] : 0;
      __syncthreads();
      sums_[rank()] += other;
    }
    __syncthreads();
    *total = sums_[kThreads - 1];
    const int64_t upto = sums_[rank()];
    __syncthreads();
    return upto - value;
  }

 private:
  int64_t* sums_;
};

__global__ void __launch_bounds__(kThreads, 1) plan_kernel(const __grid_constant__ Schedule schedule) {
  __shared__ int64_t sums[kThreads];
  Cta crew(sums);
  detail::make_plan(schedule, crew);
}

}  // namespace

cudaError_t launch_plan(const Schedule& schedule, cudaStream_t stream) {
  plan_kernel<<<1, kThreads, 0, stream>>>(schedule);
  return cudaGetLastError();
}

}  // namespace prulong::kernels
