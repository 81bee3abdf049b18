// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace prulong {

/// A regular file mapped into memory, copy-on-write: its pages may be written to, the file never changes. Hold it by
/// shared_ptr as long as anything points into it. A file that another process truncates meanwhile raises SIGBUS on
/// access.
class MappedFile {
 public:
  /// @throws Error naming the path and the system's reason: missing, not a regular file, not readable.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  /// The whole file; empty for an empty file.
  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace prulong
