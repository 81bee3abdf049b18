// SPDX-License-Identifier: MIT
#include "model/safetensors_header.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "common/error.h"
#include "common/json_text.h"
#include "common/mapped_file.h"

namespace prulong {
namespace {

using nlohmann::json;
using std::filesystem::path;

constexpr size_t kMaxDimensions = 16;
constexpr const char* kAdvice = "; the file is damaged or incomplete: download or convert it again";

[[noreturn]] void fail(const path& file, const std::string& what) { throw Error(file.string() + ": " + what); }

std::optional<uint64_t> as_size(const json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const auto number = value.get<uint64_t>();
  if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return number;
}

size_t read_dtype(const path& file, const std::string& name, const json& value) {
  const std::string found = value.is_string() ? value.get<std::string>() : value.dump();
  for (size_t type = 0; type < kStoredTypes.size(); ++type) {
    if (value.is_string() && kStoredTypes[type].name == found) return type;
  }
  fail(file, "tensor " + quote_name(name) + " has dtype " + quote_name(found) +
                 "; supported are F64, F32, F16, BF16, I64, I32, U8, BOOL: convert the model to one of them");
}

StoredTensor read_entry(const path& file, const std::string& name, const json& value) {
  const std::string who = "tensor " + quote_name(name);
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!value.is_object() || !value.contains(key)) fail(file, who + " has no \"" + key + "\"" + kAdvice);
  }
  StoredTensor entry{name, read_dtype(file, name, value["dtype"]), {}, 0, 0};

  const json& shape = value["shape"];
  if (!shape.is_array() || shape.size() > kMaxDimensions) {
    fail(file,
         who + " has a \"shape\" that is not a list of at most " + std::to_string(kMaxDimensions) + " sizes" + kAdvice);
  }
  // Zero sizes count as one here: strides of an empty tensor must not overflow either.
  uint64_t bytes = kStoredTypes[entry.type].bytes;
  bool empty = false;
  for (const json& item : shape) {
    const auto size = as_size(item);
    if (!size || __builtin_mul_overflow(bytes, std::max<uint64_t>(*size, 1), &bytes) ||
        bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      fail(file, who + " has a \"shape\" with sizes that are negative, not whole or too large" + kAdvice);
    }
    empty = empty || *size == 0;
    entry.shape.push_back(static_cast<int64_t>(*size));
  }
  if (empty) bytes = 0;

  const json& offsets = value["data_offsets"];
  const bool pair = offsets.is_array() && offsets.size() == 2;
  const auto begin = pair ? as_size(offsets[0]) : std::nullopt;
  const auto end = pair ? as_size(offsets[1]) : std::nullopt;
  if (!begin || !end || *begin > *end) {
    fail(file, who + " has \"data_offsets\" that are not [begin, end] with 0 <= begin <= end" + kAdvice);
  }
  entry.begin = *begin;
  entry.end = *end;
  if (entry.end - entry.begin != bytes) {
    fail(file, who + " takes " + std::to_string(entry.end - entry.begin) + " bytes, but its shape and dtype need " +
                   std::to_string(bytes) + kAdvice);
  }
  return entry;
}

/// Checks that the tensors fill the data section from end to end, each byte once.
void check_layout(const path& file, std::vector<StoredTensor>& entries, uint64_t data_size) {
  std::sort(entries.begin(), entries.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  uint64_t position = 0;
  for (const StoredTensor& entry : entries) {
    if (entry.begin != position) {
      fail(file, "tensor " + quote_name(entry.name) + " starts at byte " + std::to_string(entry.begin) +
                     " of the data, where " + std::to_string(position) + " was expected (" +
                     (entry.begin < position ? "tensors overlap" : "a hole between tensors") + ")" + kAdvice);
    }
    position = entry.end;
  }
  if (position != data_size) {
    fail(file, "the header describes " + std::to_string(position) + " bytes of data, the file has " +
                   std::to_string(data_size) + kAdvice);
  }
}

}  // namespace

std::string quote_name(const std::string& name) { return shown(json(name)); }

SafetensorsHeader read_safetensors_header(std::span<const std::byte> bytes, const path& file) {
  uint64_t header_size = 0;
  if (bytes.size() < sizeof(header_size)) {
    fail(file, "a safetensors file has at least 8 bytes, this one " + std::to_string(bytes.size()) + kAdvice);
  }
  std::memcpy(&header_size, bytes.data(), sizeof(header_size));
  const size_t rest = bytes.size() - sizeof(header_size);
  if (header_size > kMaxSafetensorsHeader || header_size > rest) {
    fail(file, "its first 8 bytes ask for a header of " + std::to_string(header_size) + " bytes; at most " +
                   std::to_string(std::min<uint64_t>(rest, kMaxSafetensorsHeader)) +
                   " are possible: not a safetensors file, or truncated; download or convert it again");
  }
  const json header =
      parse_json_object({reinterpret_cast<const char*>(bytes.data()) + sizeof(header_size), header_size},
                        file.string() + ", header", kAdvice);
  SafetensorsHeader result;
  result.data_start = sizeof(header_size) + header_size;
  for (const auto& [name, value] : header.items()) {
    if (name != kSafetensorsMetadata) {
      result.tensors.push_back(read_entry(file, name, value));
      continue;
    }
    if (!value.is_object()) fail(file, std::string("\"") + kSafetensorsMetadata + "\" is not an object" + kAdvice);
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) {
        fail(file, std::string("\"") + kSafetensorsMetadata + "\" holds something other than text" + kAdvice);
      }
      result.metadata[key] = text.get<std::string>();
    }
  }
  check_layout(file, result.tensors, bytes.size() - result.data_start);
  return result;
}

std::map<std::string, std::string> read_weight_map(const path& index) {
  const MappedFile mapping(index);
  const json root = parse_json_object({reinterpret_cast<const char*>(mapping.bytes().data()), mapping.bytes().size()},
                                      index.string(), kAdvice);
  if (!root.contains("weight_map") || !root["weight_map"].is_object()) {
    fail(index, "has no object \"weight_map\"" + std::string(kAdvice));
  }
  std::map<std::string, std::string> shards;
  for (const auto& [name, shard] : root["weight_map"].items()) {
    // An index must not reach out of its folder.
    const path file = shard.is_string() ? path(shard.get<std::string>()) : path();
    if (!file.has_filename() || file.is_absolute() || std::ranges::find(file, path("..")) != file.end()) {
      fail(index, "\"weight_map\" gives tensor " + quote_name(name) + " the shard " + shown(shard) +
                      ", which is not a file below this folder" + kAdvice);
    }
    shards[name] = file.string();
  }
  return shards;
}

}  // namespace prulong
