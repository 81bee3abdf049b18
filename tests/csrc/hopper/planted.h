// SPDX-License-Identifier: MIT
#pragma once

#include <initializer_list>
#include <string>

#include "tests/emulation/emulator.h"
#include "tests/support/catch.h"

/// Mistakes planted in toy kernels: each must be reported, with its line, under every schedule tried.
namespace prulong::kernels::planted {

constexpr int kSeeds = 8;

/// The line of the latest mistake.
inline int planted_line = 0;
#define PLANT(call) (::prulong::kernels::planted::planted_line = __LINE__, call)

/// Runs a kernel, which must fail with all of `parts` in its report, and with the planted line if there is one.
template <class Kernel>
void check_reported(device::emulation::LaunchOptions options, const device::emulation::GlobalMemory& memory,
                    Kernel kernel, std::initializer_list<std::string> parts) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    options.seed = static_cast<uint64_t>(seed);
    planted_line = 0;
    std::string report = "nothing";
    try {
      device::emulation::emulate(options, memory, kernel);
    } catch (const device::emulation::EmulationError& error) {
      report = error.what();
    }
    CAPTURE(seed, report);
    for (const std::string& part : parts) CHECK(report.find(part) != std::string::npos);
    if (planted_line != 0) {
      CHECK(report.find("cpp:" + std::to_string(planted_line)) != std::string::npos);
    }
    CHECK(report.find("seed " + std::to_string(seed)) != std::string::npos);
  }
}

}  // namespace prulong::kernels::planted
