// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <functional>
#include <string_view>

namespace prulong {

/// Writes a file so that `path` always holds either its old content or all of the new one: a temporary file beside it,
/// fsync, rename, fsync of the folder. Any number of threads and processes may write one path; the last content stays.
/// The temporary (NAME.PID-NUMBER.tmp) is removed on failure, and one that a killed process left by the next writer.
/// @param write  called once with a sink that appends bytes.
/// @throws FileError naming the path and the system's reason (full disk, read-only folder).
void write_file_atomically(const std::filesystem::path& path,
                           const std::function<void(const std::function<void(std::string_view)>&)>& write);

/// The same for content at hand.
void write_file_atomically(const std::filesystem::path& path, std::string_view content);

/// Makes a folder so that `path` appears whole or not at all, in the same way; its parent must exist.
/// @param fill  called once with the folder to put files into; no folders.
/// @return false if something that is no empty folder stands at `path`; it is left as it is.
/// @throws FileError as write_file_atomically.
bool make_folder_atomically(const std::filesystem::path& path,
                            const std::function<void(const std::filesystem::path&)>& fill);

/// Holds a folder against other holders, in this process or another, while several of its files change; waits for them.
/// Does nothing where the file system has no locks.
class FolderLock {
 public:
  explicit FolderLock(const std::filesystem::path& folder);
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  ~FolderLock();

 private:
  int fd_;
};

}  // namespace prulong
