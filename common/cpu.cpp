// SPDX-License-Identifier: MIT
#include "common/cpu.h"

#include <fstream>
#include <sstream>

namespace prulong {
namespace {

/// The first value of a key of /proc/cpuinfo; empty where there is none.
std::string cpu_info(const std::string& key) {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with(key) && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "";
}

}  // namespace

bool cpu_has_fast_bf16() {
  static const bool fast = [] {
    std::istringstream flags(cpu_info("flags"));
    for (std::string flag; flags >> flag;) {
      if (flag == "avx512_bf16" || flag == "amx_bf16") return true;
    }
    return false;
  }();
  return fast;
}

std::string cpu_name() {
  const std::string name = cpu_info("model name");
  return name.empty() ? "unknown" : name;
}

}  // namespace prulong
