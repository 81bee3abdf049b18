// SPDX-License-Identifier: MIT
#include "trainer/data/json_file.h"

#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>

#include "model/error.h"

namespace prulong {
namespace {

using nlohmann::json;

constexpr size_t kShownBytes = 40;  // of a value in a message

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kShownBytes) text = text.substr(0, kShownBytes) + "...";
  return text;
}

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& what) {
  throw Error(path.string() + ": " + what);
}

const json& find(const json& root, const std::string& pointer, const std::filesystem::path& path) {
  const json::json_pointer parsed(pointer);
  if (!root.contains(parsed)) fail(path, pointer + " is missing");
  return root.at(parsed);
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

}  // namespace

struct JsonFile::Document {
  json root;
};

JsonFile::JsonFile(const std::filesystem::path& path) : path_(path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) fail(path, "no such file");
  std::ifstream file(path, std::ios::binary);
  content_.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  if (!file) fail(path, "cannot read");
  try {
    document_ = std::make_unique<Document>(Document{json::parse(content_)});
  } catch (const json::parse_error& error) {
    fail(path, "not valid JSON at byte " + std::to_string(error.byte));
  }
  if (!document_->root.is_object()) fail(path, "JSON object expected, " + shown(document_->root) + " found");
}

JsonFile::JsonFile(JsonFile&&) noexcept = default;
JsonFile::~JsonFile() = default;

void JsonFile::require_format(const std::string& format, int64_t version) const {
  const json& found = find(document_->root, "/format", path_);
  if (found != format) fail(path_, "format \"" + format + "\" expected, " + shown(found) + " found");
  const json& found_version = find(document_->root, "/version", path_);
  if (found_version != version) {
    fail(path_, "version " + std::to_string(version) + " of " + format + " expected, " + shown(found_version) +
                    " found; prepare the data again");
  }
}

int64_t JsonFile::integer(const std::string& pointer, int64_t least, int64_t most) const {
  return checked_integer(find(document_->root, pointer, path_), pointer, least, most, path_);
}

std::vector<int64_t> JsonFile::integers(const std::string& pointer, int64_t least, int64_t most) const {
  const json& list = find(document_->root, pointer, path_);
  if (!list.is_array()) fail(path_, pointer + ": list of integers expected, " + shown(list) + " found");
  std::vector<int64_t> values;
  values.reserve(list.size());
  for (const json& value : list) values.push_back(checked_integer(value, pointer, least, most, path_));
  return values;
}

}  // namespace prulong
