// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <initializer_list>
#include <set>
#include <string>
#include <utility>

#include "tests/emulation/emulator.h"
#include "tests/support/catch.h"

namespace prulong::kernels::planted {

/// Mistakes planted in toy kernels: each must be reported, with its line, under every schedule tried. In the real ones:
/// each must be reported, or show in the results, under some schedule.
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

/// For LaunchOptions::omits.
using Omits = std::function<bool(const char* name, device::Site site)>;

/// Leaves out every barrier, fence, store and load of a kernel in turn. passes(seed, omits): runs it; are its results
/// right? Returns how many calls there are.
template <class Passes>
int check_every_call_is_missed(Passes passes) {
  using Call = std::pair<std::string, int>;  // name and file, line
  const auto call_of = [](const char* name, device::Site site) {
    return Call(name + (" in " + std::string(site.file)), site.line);
  };
  std::set<Call> calls;
  REQUIRE(passes(uint64_t{0}, [&](const char* name, device::Site site) {
    calls.insert(call_of(name, site));
    return false;
  }));
  for (const Call& call : calls) {
    bool missed = false;
    for (uint64_t seed = 0; seed < kSeeds && !missed; ++seed) {
      try {
        missed = !passes(seed, [&](const char* name, device::Site site) { return call_of(name, site) == call; });
      } catch (const device::emulation::EmulationError&) {
        missed = true;
      }
    }
    CAPTURE(call.first, call.second);
    CHECK(missed);
  }
  return static_cast<int>(calls.size());
}

}  // namespace prulong::kernels::planted
