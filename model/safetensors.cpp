// SPDX-License-Identifier: MIT
#include "model/safetensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string_view>
#include <vector>

#include "common/atomic_file.h"
#include "common/error.h"
#include "common/mapped_file.h"
#include "model/safetensors_header.h"

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

namespace prulong {
namespace {

using std::filesystem::path;

/// torch's names of kStoredTypes.
constexpr std::array kTorchTypes{at::kDouble, at::kFloat, at::kHalf, at::kBFloat16,
                                 at::kLong,   at::kInt,   at::kByte, at::kBool};
static_assert(kTorchTypes.size() == kStoredTypes.size());

[[noreturn]] void fail(const path& file, const std::string& what) { throw Error(file.string() + ": " + what); }

at::Tensor make_tensor(const StoredTensor& entry, const std::shared_ptr<MappedFile>& mapping, size_t data_start) {
  const at::ScalarType dtype = kTorchTypes[entry.type];
  const auto options = at::TensorOptions().dtype(dtype);
  // const_cast: the mapping is writable, copy-on-write.
  std::byte* data = const_cast<std::byte*>(mapping->bytes().data()) + data_start + entry.begin;
  const bool aligned = reinterpret_cast<uintptr_t>(data) % c10::elementSize(dtype) == 0;
  if (aligned && entry.begin != entry.end && dtype != at::kBool) {
    return at::from_blob(
        data, entry.shape, [mapping](void*) {}, options);
  }
  at::Tensor copy = at::empty(entry.shape, options);
  if (dtype == at::kBool) {  // a bool with any other bit pattern is undefined behaviour
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
      fail(file, "tensor " + quote_name(name) + " is in another shard of the same folder too; keep one set of files");
    }
  }
}

}  // namespace

TensorMap load_safetensors(const path& file, std::map<std::string, std::string>* metadata) {
  const auto mapping = std::make_shared<MappedFile>(file);
  SafetensorsHeader header = read_safetensors_header(mapping->bytes(), file);
  if (metadata != nullptr) *metadata = std::move(header.metadata);
  TensorMap tensors;
  for (const StoredTensor& entry : header.tensors) {
    tensors.emplace(entry.name, make_tensor(entry, mapping, header.data_start));
  }
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
  // Only what the shards hold counts: whether anything is missing is the model's to say.
  std::set<std::string> shards;
  for (const auto& [name, shard] : read_weight_map(index)) shards.insert(shard);
  TensorMap tensors;
  for (const std::string& shard : shards) {
    if (!std::filesystem::exists(folder / shard)) {
      fail(index, "names the shard " + quote_name(shard) + ", which is not there; download it");
    }
    append(tensors, load_safetensors(folder / shard), folder / shard);
  }
  return tensors;
}

void save_safetensors(const path& file, const TensorMap& tensors, const std::map<std::string, std::string>& metadata,
                      const std::function<void(std::string_view)>& written) {
  struct Item {
    std::string name;
    std::string_view dtype;
    at::Tensor tensor;
  };
  std::vector<Item> items;
  for (const auto& [name, tensor] : tensors) {
    const auto* type = std::find(kTorchTypes.begin(), kTorchTypes.end(), tensor.scalar_type());
    if (type == kTorchTypes.end()) {
      fail(file, "cannot store tensor " + quote_name(name) + " of dtype " + c10::toString(tensor.scalar_type()) +
                     "; convert it to one of the format's");
    }
    items.push_back({name, kStoredTypes[static_cast<size_t>(type - kTorchTypes.begin())].name, tensor});
  }
  // Larger elements first, so that every tensor is aligned; the map has sorted by name.
  std::stable_sort(items.begin(), items.end(),
                   [](const Item& a, const Item& b) { return a.tensor.element_size() > b.tensor.element_size(); });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kSafetensorsMetadata] = metadata;
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
  if (header_size > kMaxSafetensorsHeader) fail(file, "cannot store so many tensors: the header would exceed 100 MB");

  write_file_atomically(file, [&](const auto& put) {
    const auto sink = [&](std::string_view bytes) {
      put(bytes);
      if (written) written(bytes);
    };
    sink({reinterpret_cast<const char*>(&header_size), sizeof(header_size)});
    sink(text);
    for (const Item& item : items) {
      const at::Tensor plain = item.tensor.detach().cpu().contiguous();
      sink({static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()});
    }
  });
}

}  // namespace prulong
