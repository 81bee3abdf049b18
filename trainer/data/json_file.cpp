// SPDX-License-Identifier: MIT
#include "trainer/data/json_file.h"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "common/error.h"

namespace prulong {
namespace {

constexpr const char* kRemedy = "; write the data again";

std::string read(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) throw Error(path.string() + ": no such file" + kRemedy);
  std::ifstream file(path, std::ios::binary);
  const std::string content(std::istreambuf_iterator<char>(file), {});
  if (!file) throw Error(path.string() + ": cannot be read; check its permissions");
  return content;
}

}  // namespace

JsonFile::JsonFile(const std::filesystem::path& file)
    : path(file), content(read(file)), root(JsonValue::parse(content, file.string(), kRemedy)) {}

void JsonFile::require_format(const std::string& format, int64_t version) const {
  if (root.at("format").raw() != format) root.at("format").refuse("expected \"" + format + "\"");
  if (root.at("version").raw() != version) {
    root.at("version").refuse("expected version " + std::to_string(version) + " of " + format);
  }
}

std::filesystem::path prepared_file(const std::filesystem::path& folder, const std::string& name,
                                    const std::string& command) {
  std::error_code ignored;
  const std::string writer = "; write it with scripts/prepare_data.py " + command;
  if (!std::filesystem::is_directory(folder, ignored)) throw Error(folder.string() + ": no such folder" + writer);
  if (!std::filesystem::is_regular_file(folder / name, ignored))
    throw Error(folder.string() + ": this folder has no " + name + writer);
  return folder / name;
}

}  // namespace prulong
