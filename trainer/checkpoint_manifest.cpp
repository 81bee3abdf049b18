// SPDX-License-Identifier: MIT
#include "trainer/checkpoint_manifest.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/atomic_file.h"
#include "common/error.h"
#include "common/hash.h"
#include "common/json_text.h"
#include "common/json_value.h"
#include "common/mapped_file.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kFormat = "prulong-checkpoint";
constexpr int kVersion = 2;  // 1 had another checksum, and other fingerprints of model and data
constexpr const char* kStateKey = "state";

constexpr const char* kChecksum = "xxh3_64";

std::string checksum_of_file(const fs::path& path) {
  const MappedFile file(path);
  return hexadecimal(hash64({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}));
}

struct Manifest {
  uint64_t bytes = 0;
  std::string checksum;
};

Manifest read_manifest(const fs::path& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  constexpr const char* kRemedy = "; the manifest is damaged or another program's: remove it to use older checkpoints";
  const json root = parse_json_object(text.str(), path.string(), kRemedy);
  const auto has = [&](const char* key, auto is_right) { return root.contains(key) && is_right(root[key]); };
  const auto is_size = [](const json& value) { return value.is_number_unsigned(); };
  const auto is_text = [](const json& value) { return value.is_string(); };
  const bool ours = has("format", [](const json& value) { return value == kFormat; });
  if (ours && has("version", is_size) && root["version"] != kVersion) {
    throw OtherVersion(path.string() + ": a checkpoint of version " + shown(root["version"]) +
                       ", this program reads version " + std::to_string(kVersion) +
                       "; let the prulong that began the run finish it, or choose another run.dir");
  }
  if (!ours || !has("version", is_size) || !has("bytes", is_size) || !has(kChecksum, is_text)) {
    throw Error(path.string() + ": expected the manifest of a checkpoint, version " + std::to_string(kVersion) +
                ", found something else" + kRemedy);
  }
  return {root["bytes"].get<uint64_t>(), root[kChecksum].get<std::string>()};
}

}  // namespace

void write_manifest(const fs::path& data, int64_t step, uint64_t hash) {
  const json manifest = {{"format", kFormat},
                         {"version", kVersion},
                         {"step", step},
                         {"bytes", fs::file_size(data)},
                         {kChecksum, hexadecimal(hash)}};
  auto path = data;
  write_file_atomically(path.replace_extension(".json"), manifest.dump(2) + "\n");
}

fs::path verified_data(const fs::path& manifest_path) {
  constexpr const char* kRemedy = "; the checkpoint is damaged: remove both of its files";
  const Manifest manifest = read_manifest(manifest_path);
  auto data = manifest_path;
  data.replace_extension(".safetensors");
  std::error_code error;
  const auto bytes = fs::file_size(data, error);
  if (error) throw Error(data.string() + ": missing, though its manifest is there" + kRemedy);
  if (manifest.bytes != bytes) {
    throw Error(data.string() + ": has " + std::to_string(bytes) + " bytes, its manifest says " +
                std::to_string(manifest.bytes) + kRemedy);
  }
  const auto checksum = checksum_of_file(data);
  if (manifest.checksum != checksum) {
    throw Error(data.string() + ": checksum " + checksum + " differs from its manifest's" + kRemedy);
  }
  return data;
}

std::map<std::string, std::string> to_metadata(const StateHead& head) {
  const json object = {{"step", head.step}, {"sequences", head.sequences}, {"identity", head.identity}};
  return {{kStateKey, object.dump()}};
}

StateHead head_of(const std::map<std::string, std::string>& metadata, const fs::path& file) {
  try {
    const JsonValue head = JsonValue::parse(metadata.at(kStateKey), file.string(), "");
    StateHead result{head.at("step").integer(0), head.at("sequences").integer(0), {}};
    for (const auto& [key, value] : head.at("identity").members()) {
      result.identity[key] = value.raw().get<std::string>();  // paths of models may hold anything
    }
    return result;
  } catch (const std::exception&) {
    throw Error(file.string() + ": expected a training state in its metadata, found " +
                (metadata.contains(kStateKey) ? "something else" : "none") +
                "; it is damaged or no checkpoint: remove it with its manifest");
  }
}

}  // namespace prulong
