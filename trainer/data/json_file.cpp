// SPDX-License-Identifier: MIT
#include "trainer/data/json_file.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>

#include "common/error.h"
#include "common/json_text.h"

namespace prulong {
namespace {

using nlohmann::json;

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& what) {
  throw Error(path.string() + ": " + what + "; write the data again");
}

/// The value that a pointer ("/shards/0/format") names; nullptr for none.
const json* look_up(const json& root, const std::string& pointer) {
  const json::json_pointer parsed(pointer);
  return root.contains(parsed) ? &root.at(parsed) : nullptr;
}

const json& find(const json& root, const std::string& pointer, const std::filesystem::path& path) {
  const json* const found = look_up(root, pointer);
  if (found == nullptr) fail(path, pointer + " is missing");
  return *found;
}

int64_t checked_integer(const json& value, const std::string& pointer, int64_t least, int64_t most,
                        const std::filesystem::path& path) {
  const bool too_large =
      value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (!value.is_number_integer() || too_large || value.get<int64_t>() < least || value.get<int64_t>() > most) {
    fail(path, pointer + ": integer from " + std::to_string(least) + " to " + std::to_string(most) + " expected, " +
                   shown(value) + " found");
  }
  return value.get<int64_t>();
}

std::string checked_text(const json& value, const std::string& pointer, const std::filesystem::path& path) {
  const bool good = value.is_string() && std::ranges::all_of(value.get_ref<const std::string&>(), [](char c) {
                      return static_cast<unsigned char>(c) >= ' ' && c != '\x7f';
                    });
  if (!good) fail(path, pointer + ": text expected, " + shown(value) + " found");
  return value.get<std::string>();
}

const json& find_list(const json& root, const std::string& pointer, const char* what,
                      const std::filesystem::path& path) {
  const json& list = find(root, pointer, path);
  if (!list.is_array()) fail(path, pointer + ": list of " + what + " expected, " + shown(list) + " found");
  return list;
}

}  // namespace

struct JsonFile::Document {
  json root;
};

JsonFile::JsonFile(const std::filesystem::path& path) : path_(path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) fail(path, "no such file");
  std::ifstream file(path, std::ios::binary);
  content_.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  if (!file) throw Error(path.string() + ": cannot be read; check its permissions");
  document_ =
      std::make_unique<Document>(Document{parse_json_object(content_, path.string(), "; write the data again")});
}

JsonFile::JsonFile(JsonFile&&) noexcept = default;
JsonFile::~JsonFile() = default;

void JsonFile::require_format(const std::string& format, int64_t version) const {
  const json found = find(document_->root, "/format", path_);
  if (found != format) fail(path_, "format \"" + format + "\" expected, " + shown(found) + " found");
  const json found_version = find(document_->root, "/version", path_);
  if (found_version != version) {
    fail(path_,
         "version " + std::to_string(version) + " of " + format + " expected, " + shown(found_version) + " found");
  }
}

int64_t JsonFile::integer(const std::string& pointer, int64_t least, int64_t most) const {
  return checked_integer(find(document_->root, pointer, path_), pointer, least, most, path_);
}

std::vector<int64_t> JsonFile::integers(const std::string& pointer, int64_t least, int64_t most) const {
  const json& list = find_list(document_->root, pointer, "integers", path_);
  std::vector<int64_t> values;
  values.reserve(list.size());
  for (const json& value : list) values.push_back(checked_integer(value, pointer, least, most, path_));
  return values;
}

std::vector<int64_t> JsonFile::integers_or_null(const std::string& pointer, int64_t least, int64_t most,
                                                int64_t null_value) const {
  std::vector<int64_t> values;
  for (const json& value : find_list(document_->root, pointer, "integers and nulls", path_)) {
    values.push_back(value.is_null() ? null_value : checked_integer(value, pointer, least, most, path_));
  }
  return values;
}

std::string JsonFile::text(const std::string& pointer) const {
  return checked_text(find(document_->root, pointer, path_), pointer, path_);
}

std::vector<std::string> JsonFile::texts(const std::string& pointer) const {
  std::vector<std::string> values;
  for (const json& value : find_list(document_->root, pointer, "texts", path_)) {
    values.push_back(checked_text(value, pointer, path_));
  }
  return values;
}

std::map<std::string, std::string> JsonFile::text_map(const std::string& pointer) const {
  const json& object = find(document_->root, pointer, path_);
  if (!object.is_object()) fail(path_, pointer + ": object expected, " + shown(object) + " found");
  std::map<std::string, std::string> values;
  for (const auto& [key, value] : object.items()) values[key] = checked_text(value, pointer, path_);
  return values;
}

int64_t JsonFile::list_size(const std::string& pointer) const {
  return static_cast<int64_t>(find_list(document_->root, pointer, "values", path_).size());
}

bool JsonFile::has(const std::string& pointer) const {
  const json* const found = look_up(document_->root, pointer);
  return found != nullptr && !found->is_null();
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
