// SPDX-License-Identifier: MIT
// Torch's wheel holds Gloo, but none of its headers, which ProcessGroupGloo.hpp names. The files of this folder declare
// what that header mentions, and no more: only pointers cross, and all code behind them is inside libtorch_cpu.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
  std::chrono::milliseconds getTimeout() const;
};

}  // namespace gloo
