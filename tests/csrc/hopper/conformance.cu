// SPDX-License-Identifier: MIT
// The device layer on a GPU against the plain mathematics: a line per check. Without a Hopper GPU the exit status
// is 77.
#include "tests/csrc/hopper/conformance.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

#include "tests/support/catch.h"

namespace prulong::kernels::conformance {
namespace {

/// Ends the test case if something failed. After most errors of a kernel, all that follows in this process fails too.
void require(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("conformance: %s: %s\n", what, cudaGetErrorString(status));
  std::fflush(stdout);
  FAIL(what << ": " << cudaGetErrorString(status));
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1) run_kernel(const __grid_constant__ Arguments arguments) {
  Kernel::run(arguments);
}

/// A GPU, as conformance.h wants it.
class Gpu {
 public:
  ~Gpu() {
    for (void* buffer : buffers_) cudaFree(buffer);
  }
  template <class T>
  const T* input(const std::vector<T>& values) {
    return output(values);
  }
  template <class T>
  T* output(const std::vector<T>& values) {
    void* data = nullptr;
    require(cudaMalloc(&data, values.size() * sizeof(T)), "allocating");
    buffers_.push_back(data);
    require(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "copying in");
    return static_cast<T*>(data);
  }
  template <class T>
  T* output(size_t count) {
    std::vector<T> values(count);
    std::memset(values.data(), 0xff, count * sizeof(T));
    return output(values);
  }
  template <class T>
  std::vector<T> contents(const T* data, size_t count) const {
    std::vector<T> values(count);
    require(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "copying out");
    return values;
  }
  TensorMap map(const void* base, int element_bytes, const std::array<int64_t, 3>& extent,
                const std::array<int64_t, 2>& stride, const std::array<int32_t, 3>& box, bool swizzle) const {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    require(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
            "finding cuTensorMapEncodeTiled");
    const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
    const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(extent[0]), static_cast<cuuint64_t>(extent[1]),
                                 static_cast<cuuint64_t>(extent[2])};
    const cuuint64_t strides[2] = {static_cast<cuuint64_t>(stride[0]), static_cast<cuuint64_t>(stride[1])};
    const cuuint32_t boxes[3] = {static_cast<cuuint32_t>(box[0]), static_cast<cuuint32_t>(box[1]),
                                 static_cast<cuuint32_t>(box[2])};
    const cuuint32_t steps[3] = {1, 1, 1};
    TensorMap map;
    const CUresult status =
        encode(&map, element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 3,
               const_cast<void*>(base), sizes, strides, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    require(status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue, "making a tensor map");
    return map;
  }
  template <class Kernel>
  void launch(const Arguments& arguments) {
    require(cudaFuncSetAttribute(run_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, Kernel::kSharedBytes),
            "setting shared memory");
    run_kernel<Kernel><<<Kernel::kBlocks, Kernel::kThreads, Kernel::kSharedBytes>>>(arguments);
    require(cudaGetLastError(), "launching");
    require(cudaDeviceSynchronize(), "running");
  }
  void report(const std::string& name, double error, double tolerance) {
    std::printf("conformance: %s: %s (error %.3g, tolerance %.3g)\n", name.c_str(), error <= tolerance ? "ok" : "WRONG",
                error, tolerance);
    std::fflush(stdout);
    CAPTURE(name);
    CHECK(error <= tolerance);
  }

 private:
  std::vector<void*> buffers_;
};

}  // namespace

template <class Check>
void on_machines(Check check) {
  cudaDeviceProp properties;
  const cudaError_t status = cudaGetDeviceProperties(&properties, 0);
  if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver ||
      (status == cudaSuccess && properties.major != 9)) {
    constexpr int kSkipped = 77;
    std::printf("conformance: skipped, no Hopper GPU\n");
    std::exit(kSkipped);
  }
  require(cudaDeviceSynchronize(), "after what an earlier test case did");
  Random random(1);
  Gpu gpu;
  check(gpu, random);
}

}  // namespace prulong::kernels::conformance

#include "tests/csrc/hopper/conformance_cases.h"
