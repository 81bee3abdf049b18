// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <functional>
#include <string_view>

namespace prulong {

/// Writes a file so that `path` always holds either its old content or all of the new one: temporary file beside it,
/// fsync, rename, fsync of the folder. The temporary is removed on failure.
/// @param write  called once with a sink that appends bytes.
/// @throws Error naming the path and the system's reason (full disk, read-only folder).
void write_file_atomically(const std::filesystem::path& path,
                           const std::function<void(const std::function<void(std::string_view)>&)>& write);

/// The same for content at hand.
void write_file_atomically(const std::filesystem::path& path, std::string_view content);

}  // namespace prulong
