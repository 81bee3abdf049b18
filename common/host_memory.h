// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>

namespace prulong {

/// Bytes of memory that this process can still take: what the system has available, or less where a control group (v1
/// or v2, its own or one around it) sets a limit: limit minus usage, file pages that can be dropped not counted. Of a
/// group with memory.max and memory.high the smaller one counts.
/// @param root  where /proc and /sys lie; for tests.
int64_t available_host_bytes(const std::filesystem::path& root = "/");

}  // namespace prulong
