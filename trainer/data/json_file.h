// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace prulong {

/// A JSON file read as a whole, whose values are fetched by JSON pointer ("/lists/train/prose") and checked on the way.
/// Every method throws Error naming the file, the pointer, what was expected and what was found.
class JsonFile {
 public:
  explicit JsonFile(const std::filesystem::path& path);
  JsonFile(JsonFile&&) noexcept;
  ~JsonFile();

  const std::filesystem::path& path() const { return path_; }
  /// The file's bytes.
  const std::string& content() const { return content_; }

  /// Refuses a file that is not of this format and version (its keys "format" and "version").
  void require_format(const std::string& format, int64_t version) const;

  /// An integer in [least, most].
  int64_t integer(const std::string& pointer, int64_t least, int64_t most) const;

  /// A list of integers, each in [least, most].
  std::vector<int64_t> integers(const std::string& pointer, int64_t least, int64_t most) const;

 private:
  struct Document;  // keeps nlohmann's header out of this one

  std::filesystem::path path_;
  std::string content_;
  std::unique_ptr<Document> document_;
};

}  // namespace prulong
