// SPDX-License-Identifier: MIT
// The part of checkpoints that needs no torch, so that it is tested apart, under sanitizers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "common/error.h"

namespace prulong {

/// A checkpoint that another version of this program wrote; the message says what to do with the run.
struct OtherVersion : Error {
  using Error::Error;
};

/// Writes the manifest beside a finished step-N.safetensors: step-N.json, with size and checksum of the data.
/// @param hash  of all bytes that were written, as hash64.
/// @throws Error naming the file and the system's reason.
void write_manifest(const std::filesystem::path& data, int64_t step, uint64_t hash);

/// Holds the data file of a manifest against what the manifest says, size and checksum.
/// @returns the path of the data.
/// @throws OtherVersion; Error naming the file that is damaged, and how.
std::filesystem::path verified_data(const std::filesystem::path& manifest);

/// What a training state says beside its tensors, in the metadata of its file.
struct StateHead {
  int64_t step = 0;
  int64_t sequences = 0;
  std::map<std::string, std::string> identity;
};

/// As metadata, and back. @param file  for messages.
/// @throws Error naming the file when something is missing or of another kind.
std::map<std::string, std::string> to_metadata(const StateHead& head);
StateHead head_of(const std::map<std::string, std::string>& metadata, const std::filesystem::path& file);

}  // namespace prulong
