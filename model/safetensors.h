// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>

namespace prulong {

/// Tensors by name.
using TensorMap = std::map<std::string, at::Tensor>;

/// Maps a safetensors file into memory; the tensors alias the mapping (copy-on-write, never written back), which lives
/// as long as any of them. Dtypes F64, F32, F16, BF16, I64, I32, U8, BOOL.
/// @throws Error naming the file and what is wrong: too short, header not JSON, unknown dtype, offsets that overlap,
///         leave holes, do not match shape and dtype or do not end at the file's end, a name twice.
TensorMap load_safetensors(const std::filesystem::path& file, std::map<std::string, std::string>* metadata = nullptr);

/// Loads a Hugging Face folder: model.safetensors, or the shards of model.safetensors.index.json.
/// @throws Error naming the folder or shard: nothing there, a shard missing, a tensor in two of them.
TensorMap load_sharded_safetensors(const std::filesystem::path& folder);

/// Writes contiguous copies of CPU or CUDA tensors, atomically (temporary, fsync, rename), in the layout that Hugging
/// Face's writer uses (sorted by alignment then name, header padded to 8 bytes).
/// @param written  sees every byte of the file once, in order: for a checksum.
/// @throws Error naming the file and the system's reason.
void save_safetensors(const std::filesystem::path& file, const TensorMap& tensors,
                      const std::map<std::string, std::string>& metadata = {},
                      const std::function<void(std::string_view)>& written = {});

}  // namespace prulong
