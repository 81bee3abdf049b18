// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

namespace prulong {

/// A read-only, memory-mapped numpy file of integers: .npy versions 1 to 3, 1-D or 2-D in C order, little-endian
/// uint16, uint32, int32 or int64. The header is checked strictly against the file's size. Safe to read from several
/// threads; the file must not be shortened while it is open.
class NpyArray {
 public:
  enum class Type { kUint16, kUint32, kInt32, kInt64 };

  /// @throws Error naming the file and what is wrong with it.
  explicit NpyArray(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  Type type() const { return type_; }
  /// One or two lengths, each >= 0.
  const std::vector<int64_t>& shape() const { return shape_; }
  /// The number of elements.
  int64_t size() const { return size_; }

  /// Element `index` in C order, 0 <= index < size() (not checked). All types fit, uint32 included.
  int64_t operator[](int64_t index) const;

 private:
  struct Unmap {
    size_t length;
    void operator()(const std::byte* address) const;
  };

  std::filesystem::path path_;
  std::unique_ptr<const std::byte, Unmap> mapping_;
  const std::byte* data_ = nullptr;
  Type type_ = Type::kUint16;
  std::vector<int64_t> shape_;
  int64_t size_ = 0;
};

/// The numpy name of an element type, such as "uint16".
const char* type_name(NpyArray::Type type);

}  // namespace prulong
