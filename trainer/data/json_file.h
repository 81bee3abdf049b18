// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
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

  /// A list of integers, each in [least, most] or null, which becomes `null_value`.
  std::vector<int64_t> integers_or_null(const std::string& pointer, int64_t least, int64_t most,
                                        int64_t null_value) const;

  /// Text without control characters.
  std::string text(const std::string& pointer) const;

  /// A list of such texts.
  std::vector<std::string> texts(const std::string& pointer) const;

  /// An object whose values are such texts, sorted by key.
  std::map<std::string, std::string> text_map(const std::string& pointer) const;

  /// The length of a list.
  int64_t list_size(const std::string& pointer) const;

  /// Whether there is a value other than null.
  bool has(const std::string& pointer) const;

 private:
  struct Document;  // keeps nlohmann's header out of this one

  std::filesystem::path path_;
  std::string content_;
  std::unique_ptr<Document> document_;
};

/// The JSON file that describes a folder which `scripts/prepare_data.py COMMAND` writes.
/// @throws Error naming the folder where it is missing or holds no such file, and the command that writes it.
std::filesystem::path prepared_file(const std::filesystem::path& folder, const std::string& name,
                                    const std::string& command);

}  // namespace prulong
