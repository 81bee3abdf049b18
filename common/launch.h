// SPDX-License-Identifier: MIT
// What torchrun and a process that it starts tell each other.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace prulong {

/// This process's place among those of a run, from torchrun's environment.
struct Launch {
  int64_t rank = 0, size = 1;              ///< RANK, WORLD_SIZE
  int64_t local_rank = 0, local_size = 1;  ///< LOCAL_RANK, LOCAL_WORLD_SIZE: on this machine
  std::string address;                     ///< MASTER_ADDR
  uint16_t port = 0;                       ///< MASTER_PORT
  bool launcher_serves = false;  ///< the store at that address is torchrun's; else the first rank must open it
  std::string run;               ///< TORCHELASTIC_RUN_ID
};

/// @returns nothing for a process that was started by itself: no WORLD_SIZE.
/// @throws ConfigError naming the variable that is missing or no number in its range.
std::optional<Launch> read_launch();

/// Leaves the reason of a failure where torchrun looks for it (TORCHELASTIC_ERROR_FILE), if it does.
void leave_reason(const std::string& message);

}  // namespace prulong
