// SPDX-License-Identifier: MIT
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <string>
#include <vector>

#include "common/error.h"
#include "engine/page_memory.h"

namespace prulong {
namespace {

/// A function of the driver, by way of the runtime: nothing links to the driver, which is absent where there is no GPU.
template <class Function>
Function* driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  constexpr unsigned kSinceCuda = 12000;
  const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &function, kSinceCuda, cudaEnableDefault, &found);
  if (status != cudaSuccess || found != cudaDriverEntryPointSuccess) {
    throw Error(std::string("kv cache: the GPU's driver has no ") + name + "; CUDA 12 or later is needed");
  }
  return reinterpret_cast<Function*>(function);
}

/// The driver's functions for memory apart from its addresses.
struct Driver {
  decltype(cuGetErrorString)* error_string = driver_function<decltype(cuGetErrorString)>("cuGetErrorString");
  decltype(cuMemGetAllocationGranularity)* granularity =
      driver_function<decltype(cuMemGetAllocationGranularity)>("cuMemGetAllocationGranularity");
  decltype(cuMemAddressReserve)* reserve = driver_function<decltype(cuMemAddressReserve)>("cuMemAddressReserve");
  decltype(cuMemAddressFree)* free = driver_function<decltype(cuMemAddressFree)>("cuMemAddressFree");
  decltype(cuMemCreate)* create = driver_function<decltype(cuMemCreate)>("cuMemCreate");
  decltype(cuMemRelease)* release = driver_function<decltype(cuMemRelease)>("cuMemRelease");
  decltype(cuMemMap)* map = driver_function<decltype(cuMemMap)>("cuMemMap");
  decltype(cuMemUnmap)* unmap = driver_function<decltype(cuMemUnmap)>("cuMemUnmap");
  decltype(cuMemSetAccess)* set_access = driver_function<decltype(cuMemSetAccess)>("cuMemSetAccess");

  std::string reason(CUresult status) const {
    const char* text = nullptr;
    error_string(status, &text);
    return text != nullptr ? text : "error " + std::to_string(static_cast<int>(status));
  }
  void check(CUresult status, const char* what) const {
    if (status != CUDA_SUCCESS) throw Error(std::string("kv cache: the GPU's driver: ") + what + ": " + reason(status));
  }
};

const Driver& driver() {
  static const Driver functions;
  return functions;
}

class CudaMemory : public PageMemory {
 public:
  CudaMemory(int64_t bytes, c10::Device device) : device_(device.index()) {
    const c10::cuda::CUDAGuard guard(device_);
    C10_CUDA_CHECK(cudaFree(nullptr));  // makes the device's context if there is none yet
    size_t unit = 0;
    const CUmemAllocationProp kind = allocation();
    driver().check(driver().granularity(&unit, &kind, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED), "granularity");
    // Larger pieces for a large cache: each costs some calls of the driver while a prompt is read.
    constexpr int64_t kLargePiece = int64_t{16} << 20, kLargeRange = int64_t{1} << 30;
    const auto at_least = bytes >= kLargeRange ? kLargePiece : 1;
    const int64_t granularity = static_cast<int64_t>(unit);
    const int64_t piece = (at_least + granularity - 1) / granularity * granularity;
    const int64_t pieces = (bytes + piece - 1) / piece;
    range_bytes_ = static_cast<size_t>(piece * pieces);
    driver().check(driver().reserve(&start_, range_bytes_, 0, 0, 0), "addresses for the cache");
    handles_.resize(static_cast<size_t>(pieces));
    set_range(reinterpret_cast<std::byte*>(start_), piece, pieces);
  }

  ~CudaMemory() override {
    const c10::cuda::CUDAGuard guard(device_);
    cudaDeviceSynchronize();
    for (int64_t piece = 0; piece < pieces(); ++piece) {
      if (taken(piece)) detach(piece);
    }
    driver().free(start_, range_bytes_);
  }

 private:
  CUmemAllocationProp allocation() const {
    CUmemAllocationProp kind = {};
    kind.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    kind.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    kind.location.id = device_;
    return kind;
  }
  CUdeviceptr address(int64_t piece) const { return start_ + static_cast<CUdeviceptr>(piece * piece_bytes()); }

  void map(int64_t piece) override {
    const c10::cuda::CUDAGuard guard(device_);
    const auto bytes = static_cast<size_t>(piece_bytes());
    const CUmemAllocationProp kind = allocation();
    CUmemGenericAllocationHandle handle = 0;
    CUresult status = driver().create(&handle, bytes, &kind, 0);
    if (status == CUDA_ERROR_OUT_OF_MEMORY) {  // what tensors no longer use
      c10::cuda::CUDACachingAllocator::emptyCache();
      status = driver().create(&handle, bytes, &kind, 0);
    }
    if (status == CUDA_ERROR_OUT_OF_MEMORY) {
      size_t room = 0, total = 0;
      C10_CUDA_CHECK(cudaMemGetInfo(&room, &total));
      throw Error("kv cache: " + std::to_string(bytes) + " more bytes of GPU memory are needed, " +
                  std::to_string(room) + " of " + std::to_string(total) + " are left; ask for a smaller cache");
    }
    driver().check(status, "memory for the cache");
    status = driver().map(address(piece), bytes, 0, handle, 0);
    if (status != CUDA_SUCCESS) {
      driver().release(handle);
      driver().check(status, "mapping memory for the cache");
    }
    CUmemAccessDesc access = {};
    access.location = kind.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    status = driver().set_access(address(piece), bytes, &access, 1);
    handles_[static_cast<size_t>(piece)] = handle;
    if (status != CUDA_SUCCESS) {
      detach(piece);
      driver().check(status, "access to memory for the cache");
    }
  }

  void unmap(int64_t piece) override {
    const c10::cuda::CUDAGuard guard(device_);
    C10_CUDA_CHECK(cudaDeviceSynchronize());
    detach(piece);
  }

  void detach(int64_t piece) {
    driver().unmap(address(piece), static_cast<size_t>(piece_bytes()));
    driver().release(handles_[static_cast<size_t>(piece)]);
  }

  c10::DeviceIndex device_;
  CUdeviceptr start_ = 0;
  size_t range_bytes_ = 0;
  std::vector<CUmemGenericAllocationHandle> handles_;  ///< by piece; of those taken
};

}  // namespace

std::shared_ptr<PageMemory> reserve_cuda_memory(int64_t bytes, c10::Device device) {
  return std::make_shared<CudaMemory>(bytes, device);
}

}  // namespace prulong
