// SPDX-License-Identifier: MIT
#include "model/cpu_features.h"

#include <ATen/cpu/Utils.h>

namespace prulong {

bool cpu_has_fast_bf16() {
  static const bool fast = [] {
    const auto capabilities = at::cpu::get_cpu_capabilities();
    for (const char* name : {"avx512_bf16", "amx_bf16"}) {
      const auto found = capabilities.find(name);
      if (found != capabilities.end() && found->second.isBool() && found->second.toBool()) return true;
    }
    return false;
  }();
  return fast;
}

}  // namespace prulong
