// SPDX-License-Identifier: MIT
#include "model/safetensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <vector>

#include "model/atomic_file.h"
#include "model/error.h"
#include "model/mapped_file.h"

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

namespace prulong {
namespace {

using nlohmann::json;
using std::filesystem::path;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr int kMaxJsonDepth = 8;                   // a header needs 3
constexpr size_t kMaxDimensions = 16;
constexpr const char* kMetadataKey = "__metadata__";
constexpr const char* kAdvice = "; the file is damaged or incomplete: download or convert it again";

struct Dtype {
  std::string_view name;
  at::ScalarType type;
};
constexpr std::array<Dtype, 8> kDtypes{{{"F64", at::kDouble},
                                        {"F32", at::kFloat},
                                        {"F16", at::kHalf},
                                        {"BF16", at::kBFloat16},
                                        {"I64", at::kLong},
                                        {"I32", at::kInt},
                                        {"U8", at::kByte},
                                        {"BOOL", at::kBool}}};

struct Entry {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin;  // bytes from the start of the data section
  uint64_t end;
};

[[noreturn]] void fail(const path& file, const std::string& what) { throw Error(file.string() + ": " + what); }

/// A name out of a file as one printable line.
std::string quote(const std::string& name) {
  constexpr size_t kLongest = 120;
  const std::string text = name.size() > kLongest ? name.substr(0, kLongest) + "..." : name;
  return json(text).dump(-1, ' ', true, json::error_handler_t::replace);
}

/// Parses a JSON object, refusing what the library lets pass: a name twice in one object, and nesting that only an
/// attack has.
json parse_object(std::string_view text, const path& file, const char* what) {
  std::vector<std::set<std::string>> names;
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMaxJsonDepth) fail(file, std::string(what) + " nests too deeply" + kAdvice);
    if (event == json::parse_event_t::object_start) names.emplace_back();
    if (event == json::parse_event_t::object_end) names.pop_back();
    if (event == json::parse_event_t::key && !names.back().insert(parsed.get<std::string>()).second) {
      fail(file, std::string(what) + " has the name " + quote(parsed.get<std::string>()) + " twice" + kAdvice);
    }
    return true;
  };
  json root;
  try {
    root = json::parse(text.begin(), text.end(), check);
  } catch (const json::parse_error& error) {
    fail(file, std::string(what) + " is not valid JSON at byte " + std::to_string(error.byte) + kAdvice);
  } catch (const json::exception&) {
    fail(file, std::string(what) + " has a number out of range" + kAdvice);
  }
  if (!root.is_object()) fail(file, std::string(what) + " is not a JSON object" + kAdvice);
  return root;
}

std::optional<uint64_t> as_size(const json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const auto number = value.get<uint64_t>();
  if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return number;
}

at::ScalarType read_dtype(const path& file, const std::string& name, const json& value) {
  const std::string found = value.is_string() ? value.get<std::string>() : value.dump();
  for (const Dtype& dtype : kDtypes) {
    if (value.is_string() && dtype.name == found) return dtype.type;
  }
  fail(file, "tensor " + quote(name) + " has dtype " + quote(found) +
                 "; supported are F64, F32, F16, BF16, I64, I32, U8, BOOL: convert the model to one of them");
}

Entry read_entry(const path& file, const std::string& name, const json& value) {
  const std::string who = "tensor " + quote(name);
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!value.is_object() || !value.contains(key)) fail(file, who + " has no \"" + key + "\"" + kAdvice);
  }
  Entry entry{name, read_dtype(file, name, value["dtype"]), {}, 0, 0};

  const json& shape = value["shape"];
  if (!shape.is_array() || shape.size() > kMaxDimensions) {
    fail(file,
         who + " has a \"shape\" that is not a list of at most " + std::to_string(kMaxDimensions) + " sizes" + kAdvice);
  }
  // Zero sizes count as one here: strides of an empty tensor must not overflow either.
  uint64_t bytes = c10::elementSize(entry.dtype);
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
void check_layout(const path& file, std::vector<Entry>& entries, uint64_t data_size) {
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  uint64_t position = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != position) {
      fail(file, "tensor " + quote(entry.name) + " starts at byte " + std::to_string(entry.begin) +
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

at::Tensor make_tensor(const Entry& entry, const std::shared_ptr<MappedFile>& mapping, size_t data_start) {
  const auto options = at::TensorOptions().dtype(entry.dtype);
  // const_cast: the mapping is writable, copy-on-write.
  std::byte* data = const_cast<std::byte*>(mapping->bytes().data()) + data_start + entry.begin;
  const bool aligned = reinterpret_cast<uintptr_t>(data) % c10::elementSize(entry.dtype) == 0;
  if (aligned && entry.begin != entry.end && entry.dtype != at::kBool) {
    return at::from_blob(
        data, entry.shape, [mapping](void*) {}, options);
  }
  at::Tensor copy = at::empty(entry.shape, options);
  if (entry.dtype == at::kBool) {  // a bool with any other bit pattern is undefined behaviour
    std::transform(data, data + (entry.end - entry.begin), copy.mutable_data_ptr<bool>(),
                   [](std::byte value) { return value != std::byte{0}; });
  } else if (entry.begin != entry.end) {
    std::memcpy(copy.mutable_data_ptr(), data, entry.end - entry.begin);
  }
  return copy;
}

void append(TensorMap& into, TensorMap tensors, const path& file) {
  for (auto& [name, tensor] : tensors) {
    if (!into.emplace(name, std::move(tensor)).second) {
      fail(file, "tensor " + quote(name) + " is in another shard of the same folder too; keep one set of files");
    }
  }
}

}  // namespace

TensorMap load_safetensors(const path& file, std::map<std::string, std::string>* metadata) {
  const auto mapping = std::make_shared<MappedFile>(file);
  const std::span<const std::byte> bytes = mapping->bytes();
  uint64_t header_size = 0;
  if (bytes.size() < sizeof(header_size)) {
    fail(file, "a safetensors file has at least 8 bytes, this one " + std::to_string(bytes.size()) + kAdvice);
  }
  std::memcpy(&header_size, bytes.data(), sizeof(header_size));
  const size_t rest = bytes.size() - sizeof(header_size);
  if (header_size > kMaxHeaderBytes || header_size > rest) {
    fail(file, "its first 8 bytes ask for a header of " + std::to_string(header_size) + " bytes; at most " +
                   std::to_string(std::min<uint64_t>(rest, kMaxHeaderBytes)) +
                   " are possible: not a safetensors file, or truncated");
  }
  const size_t data_start = sizeof(header_size) + header_size;
  const json header = parse_object({reinterpret_cast<const char*>(bytes.data()) + sizeof(header_size), header_size},
                                   file, "its safetensors header");
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name != kMetadataKey) {
      entries.push_back(read_entry(file, name, value));
      continue;
    }
    if (!value.is_object()) fail(file, std::string("\"") + kMetadataKey + "\" is not an object" + kAdvice);
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string())
        fail(file, std::string("\"") + kMetadataKey + "\" holds something other than text" + kAdvice);
      if (metadata != nullptr) (*metadata)[key] = text.get<std::string>();
    }
  }
  check_layout(file, entries, bytes.size() - data_start);
  TensorMap tensors;
  for (const Entry& entry : entries) tensors.emplace(entry.name, make_tensor(entry, mapping, data_start));
  return tensors;
}

TensorMap load_sharded_safetensors(const path& folder) {
  const path single = folder / "model.safetensors";
  const path index = folder / "model.safetensors.index.json";
  if (std::filesystem::exists(single)) return load_safetensors(single);
  if (!std::filesystem::exists(index)) {
    fail(folder,
         "has neither model.safetensors nor model.safetensors.index.json; expected a Hugging Face model folder "
         "with safetensors weights (save_pretrained writes one)");
  }
  const MappedFile mapping(index);
  const json root =
      parse_object({reinterpret_cast<const char*>(mapping.bytes().data()), mapping.bytes().size()}, index, "the index");
  if (!root.contains("weight_map") || !root["weight_map"].is_object()) fail(index, "has no object \"weight_map\"");
  std::set<std::string> shards;
  for (const auto& [name, shard] : root["weight_map"].items()) {
    // A plain file name: an index must not reach out of its folder.
    if (!shard.is_string() || shard.get<std::string>().empty() || path(shard.get<std::string>()).has_parent_path()) {
      fail(index, "\"weight_map\" gives tensor " + quote(name) + " a shard that is not a file name in this folder");
    }
    shards.insert(shard.get<std::string>());
  }
  TensorMap tensors;
  std::map<std::string, std::string> found_in;
  for (const std::string& shard : shards) {
    if (!std::filesystem::exists(folder / shard)) {
      fail(index, "names the shard " + quote(shard) + ", which is not there; download it");
    }
    TensorMap part = load_safetensors(folder / shard);
    for (const auto& [name, tensor] : part) found_in[name] = shard;
    append(tensors, std::move(part), folder / shard);
  }
  for (const auto& [name, shard] : root["weight_map"].items()) {
    const auto found = found_in.find(name);
    if (found == found_in.end() || found->second != shard.get<std::string>()) {
      fail(folder / shard.get<std::string>(),
           "does not hold tensor " + quote(name) +
               ", which model.safetensors.index.json lists there; download both again");
    }
  }
  return tensors;
}

void save_safetensors(const path& file, const TensorMap& tensors, const std::map<std::string, std::string>& metadata) {
  struct Item {
    std::string name;
    std::string_view dtype;
    at::Tensor tensor;
  };
  std::vector<Item> items;
  for (const auto& [name, tensor] : tensors) {
    const auto* dtype = std::find_if(kDtypes.begin(), kDtypes.end(),
                                     [&](const Dtype& known) { return known.type == tensor.scalar_type(); });
    if (dtype == kDtypes.end()) {
      fail(file, "cannot store tensor " + quote(name) + " of dtype " + c10::toString(tensor.scalar_type()));
    }
    items.push_back({name, dtype->name, tensor});
  }
  // Larger elements first, so that every tensor is aligned; the map has sorted by name.
  std::stable_sort(items.begin(), items.end(),
                   [](const Item& a, const Item& b) { return a.tensor.element_size() > b.tensor.element_size(); });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  uint64_t position = 0;
  for (const Item& item : items) {
    const uint64_t end = position + item.tensor.nbytes();
    header[item.name] = {
        {"dtype", item.dtype}, {"shape", item.tensor.sizes().vec()}, {"data_offsets", {position, end}}};
    position = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t header_size = text.size();
  if (header_size > kMaxHeaderBytes) fail(file, "cannot store so many tensors: the header would exceed 100 MB");

  write_file_atomically(file, [&](const auto& sink) {
    sink({reinterpret_cast<const char*>(&header_size), sizeof(header_size)});
    sink(text);
    for (const Item& item : items) {
      const at::Tensor plain = item.tensor.detach().cpu().contiguous();
      sink({static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()});
    }
  });
}

}  // namespace prulong
