// SPDX-License-Identifier: MIT
#include "model/open_model.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "common/cpu.h"
#include "common/error.h"

namespace prulong {
namespace {

at::Device choose_device(ModelDevice device, const Launch& launch = {}) {
  const bool cuda = at::globalContext().hasCUDA();
  if (device == ModelDevice::kCuda && !cuda) throw Error("model.device: cuda, but no GPU can be used here; use cpu");
  if (device == ModelDevice::kCpu || !cuda) return at::kCPU;
  const c10::impl::VirtualGuardImpl gpus(at::kCUDA);
  if (launch.size > 1) gpus.setDevice({at::kCUDA, static_cast<at::DeviceIndex>(gpu_of(launch, gpus.deviceCount()))});
  return gpus.getDevice();
}

at::ScalarType choose_dtype(ModelDtype dtype, at::Device device) {
  if (dtype == ModelDtype::kFloat32) return at::kFloat;
  if (dtype == ModelDtype::kBfloat16) return at::kBFloat16;
  return device.is_cuda() || cpu_has_fast_bf16() ? at::kBFloat16 : at::kFloat;
}

}  // namespace

int64_t gpu_of(const Launch& launch, int64_t gpus) {
  if (launch.local_rank < gpus) return launch.local_rank;
  throw Error("LOCAL_RANK " + std::to_string(launch.local_rank) + ": no GPU of that number, this machine has " +
              std::to_string(gpus) + "; start one process for each (torchrun --nproc-per-node), or model.device=cpu");
}

Llama open_model(const ModelOptions& options, const Launch& launch) {
  const auto device = choose_device(options.device, launch);
  return Llama::load(options.path, choose_dtype(options.dtype, device), device);
}

at::ScalarType planned_dtype(const ModelOptions& options) {
  const bool on_cuda = options.device == ModelDevice::kCuda;
  return choose_dtype(options.dtype, on_cuda ? at::Device(at::kCUDA) : choose_device(options.device));
}

std::string dtype_name(at::ScalarType dtype) { return dtype == at::kFloat ? "float32" : "bfloat16"; }

std::map<std::string, std::string> machine(at::Device device) {
  std::map<std::string, std::string> found = {{"cpu", cpu_name()}, {"threads", std::to_string(at::get_num_threads())}};
  if (device.is_cuda()) found["gpu"] = at::cuda::getDeviceProperties(device.index())->name;
  return found;
}

std::optional<std::string> dtype_note(const ModelOptions& options, const Llama& model) {
  if (options.dtype != ModelDtype::kAuto || !model.device().is_cpu() || model.dtype() != at::kFloat)
    return std::nullopt;
  return "this CPU has no fast bfloat16, so the model runs in float32";
}

}  // namespace prulong
