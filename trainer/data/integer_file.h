// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/mapped_file.h"

namespace prulong {

/// What token files hold, little-endian.
enum class IntegerType { kUint16, kUint32, kInt32, kInt64 };

/// The numpy name of a type, such as "uint16".
const char* type_name(IntegerType type);

/// Bytes of one integer: 2, 4 or 8.
int64_t bytes_of(IntegerType type);

/// The integer at an address of any alignment. All types fit, uint32 included.
int64_t load_integer(IntegerType type, const std::byte* address);

/// Appends `count` integers that lie at `data` (of any alignment) as token ids.
/// @param vocab_size  1 to 2^31 - 1.
/// @return the index of the first one outside [0, vocab_size), or -1. `tokens` is of no use after an index.
int64_t append_tokens(IntegerType type, const std::byte* data, int64_t count, int64_t vocab_size,
                      std::vector<int32_t>& tokens);

/// Refuses data of which the largest token has no row in the model.
/// @param name        what messages call the data: a folder.
/// @param made_for    the vocabulary of the tokenizer that made them.
/// @param vocab_size  the model's.
/// @throws Error.
void check_largest_token(const std::string& name, int64_t largest, int64_t made_for, int64_t vocab_size);

/// A read-only, memory-mapped file of integers. Safe to read from several threads; the file must not be shortened while
/// it is open.
class IntegerFile {
 public:
  /// A numpy file: .npy versions 1 to 3, 1-D or 2-D in C order, little-endian uint16, uint32, int32 or int64. The
  /// header is checked strictly against the file's size.
  /// @throws Error naming the file and what is wrong with it.
  static IntegerFile open_npy(const std::filesystem::path& path);

  /// A file of nothing but integers; 1-D.
  /// @throws Error naming the file: missing, empty, not a whole number of integers.
  static IntegerFile open_raw(const std::filesystem::path& path, IntegerType type);

  const std::filesystem::path& path() const { return path_; }
  IntegerType type() const { return type_; }
  /// One or two lengths, each >= 0.
  const std::vector<int64_t>& shape() const { return shape_; }
  /// The number of integers.
  int64_t size() const { return size_; }
  /// The whole file.
  std::span<const std::byte> bytes() const { return file_->bytes(); }
  /// A hash of the file's size and of up to 16 segments of 4 KiB, evenly spread from its start to its end.
  uint64_t sample_hash() const;

  /// The largest integer; reads the whole file. -1 where there is none.
  int64_t largest() const;

  /// Element `index` in C order, 0 <= index < size() (not checked).
  int64_t operator[](int64_t index) const { return load_integer(type_, data_ + index * bytes_of(type_)); }

  /// Appends elements [first, first + count) (not checked) as token ids.
  /// @param owner  what says how large the vocabulary is, for the message.
  /// @throws Error naming the file and position of a token outside the vocabulary.
  void append(int64_t first, int64_t count, int64_t vocab_size, const std::string& owner,
              std::vector<int32_t>& tokens) const;

 private:
  IntegerFile(const std::filesystem::path& path, IntegerType type);

  std::filesystem::path path_;
  std::unique_ptr<const MappedFile> file_;
  const std::byte* data_ = nullptr;
  IntegerType type_ = IntegerType::kUint16;
  std::vector<int64_t> shape_;
  int64_t size_ = 0;
};

}  // namespace prulong
