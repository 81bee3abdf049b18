// SPDX-License-Identifier: MIT
#include "trainer/memory.h"

#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <unistd.h>

#include <fstream>
#include <string>

namespace prulong {

int64_t activation_bytes(const ModelConfig& config, int64_t tokens, int64_t element_size, bool train_weights) {
  const int64_t query = config.query_heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  int64_t per_token = 4 * config.hidden_size + 4 * query + 2 * kv + 3 * config.intermediate_size;
  if (train_weights) per_token += 2 * config.hidden_size + query + config.intermediate_size;
  return config.layers * tokens * per_token * element_size;
}

int64_t available_bytes(c10::Device device) {
  if (device.is_cuda()) return static_cast<int64_t>(c10::getDeviceAllocator(device.type())->getMemoryInfo(0).first);
  std::ifstream in("/proc/meminfo");
  for (std::string key, unit; in >> key;) {
    int64_t kib = 0;
    in >> kib;
    std::getline(in, unit);
    if (key == "MemAvailable:") return kib * 1024;
  }
  return ::sysconf(_SC_AVPHYS_PAGES) * ::sysconf(_SC_PAGESIZE);
}

}  // namespace prulong
