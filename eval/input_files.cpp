// SPDX-License-Identifier: MIT
#include "eval/input_files.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "common/error.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;

/// What all names of a file have in common; none where there is no file.
std::optional<std::pair<dev_t, ino_t>> identity(const fs::path& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return std::nullopt;
  return std::pair(info.st_dev, info.st_ino);
}

/// The file itself, or the folder's files whose names fit.
template <typename Fits>
std::vector<fs::path> select_files(const fs::path& path, const Fits& fits) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return {path};
  std::vector<fs::path> files;
  for (auto entry = fs::directory_iterator(path, error); !error && entry != fs::end(entry); entry.increment(error)) {
    if (fits(entry->path().filename().string())) files.push_back(entry->path());
  }
  return files;
}

/// Whether the name is of a file that a source of this type reads.
bool belongs_to(SourceType type, std::string_view name) {
  const auto one_of = [&](std::initializer_list<std::string_view> names) {
    return std::ranges::count(names, name) > 0;
  };
  switch (type) {
    case SourceType::kTokens:
      return one_of({"data.json", "tokens.npy", "documents.npy"});
    case SourceType::kMds:
      return name == "index.json" || name.find(".mds") != std::string_view::npos;
    case SourceType::kNpy:
      return name.ends_with(".npy");
    case SourceType::kRaw:
      return name.ends_with(".bin");
    case SourceType::kRecall:
      break;
  }
  return one_of({"kit.json", "tokens.npy", "offsets.npy"});
}

}  // namespace

std::vector<fs::path> files_of(const ModelOptions& model) {
  constexpr std::array<std::string_view, 3> kNames = {"config.json", "generation_config.json",
                                                      "special_tokens_map.json"};
  return select_files(model.path, [&](const std::string& name) {
    return std::ranges::count(kNames, name) > 0 || name.starts_with("tokenizer") || name.ends_with(".safetensors") ||
           name.ends_with(".safetensors.index.json");
  });
}

std::vector<fs::path> files_of(const SourceOptions& source) {
  return select_files(source.path, [&](const std::string& name) { return belongs_to(source.type, name); });
}

fs::path file_of_pattern(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored) ? path / "pattern.json" : path;
}

void refuse_inputs(const std::string& key, const std::vector<fs::path>& written, const std::vector<fs::path>& inputs) {
  std::error_code ignored;
  for (const fs::path& output : written) {
    if (const auto status = fs::status(output, ignored); fs::exists(status) && !fs::is_regular_file(status)) {
      throw ConfigError(key + ": a file is to be written to " + output.string() +
                        ", where there is a folder, a pipe or a device; name another place");
    }
    const auto there = identity(output);
    if (!there) continue;
    for (const fs::path& input : inputs) {
      if (identity(input) != there) continue;
      throw ConfigError(key + ": would write onto " + output.string() + ", which is the input " + input.string() +
                        "; name another one");
    }
  }
}

}  // namespace prulong
