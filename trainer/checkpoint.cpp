// SPDX-License-Identifier: MIT
#include "trainer/checkpoint.h"

#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "model/atomic_file.h"
#include "model/error.h"
#include "model/mapped_file.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;
constexpr int kVersion = 1;

std::string stem(int64_t step) {
  char text[32];
  std::snprintf(text, sizeof text, "step-%08lld", static_cast<long long>(step));
  return text;
}

/// FNV-1a, 64 bits, in hexadecimal: it guards against damage, not against forgery.
std::string checksum_of_file(const fs::path& path) {
  const MappedFile file(path);
  uint64_t hash = 0xcbf29ce484222325;
  for (const std::byte byte : file.bytes()) hash = (hash ^ static_cast<uint64_t>(byte)) * 0x100000001b3;
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

/// Complete checkpoints (those with a manifest) up to a step, newest first.
std::vector<fs::path> manifests(const fs::path& folder, int64_t last_step = std::numeric_limits<int64_t>::max()) {
  std::map<int64_t, fs::path> found;  // by number: names sort otherwise once a step has more digits than the padding
  if (!fs::is_directory(folder)) return {};
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".json") continue;
    const auto name = entry.path().stem().string();
    int64_t step = 0;
    std::sscanf(name.c_str(), "step-%" SCNd64, &step);
    if (step <= last_step && name == stem(step)) found[step] = entry.path();
  }
  std::vector<fs::path> newest_first;
  for (auto entry = found.rbegin(); entry != found.rend(); ++entry) newest_first.push_back(entry->second);
  return newest_first;
}

TrainingState load_verified(const fs::path& manifest_path) {
  std::ifstream in(manifest_path);
  std::stringstream text;
  text << in.rdbuf();
  const auto manifest = nlohmann::json::parse(text.str(), nullptr, false);
  if (!manifest.is_object() || manifest.value("format", nlohmann::json()) != "prulong-checkpoint" ||
      manifest.value("version", nlohmann::json()) != kVersion || !manifest.contains("bytes") ||
      !manifest.contains("fnv1a64")) {
    throw Error(manifest_path.string() + ": not a version " + std::to_string(kVersion) + " checkpoint manifest");
  }
  auto data_path = manifest_path;
  data_path.replace_extension(".safetensors");
  std::error_code error;
  const auto bytes = fs::file_size(data_path, error);
  if (error) throw Error(data_path.string() + ": missing");
  if (manifest["bytes"] != bytes) {
    throw Error(data_path.string() + ": has " + std::to_string(bytes) + " bytes, its manifest says " +
                manifest["bytes"].dump());
  }
  const auto checksum = checksum_of_file(data_path);
  if (manifest["fnv1a64"] != checksum) {
    throw Error(data_path.string() + ": checksum " + checksum + " differs from its manifest's " +
                manifest["fnv1a64"].dump());
  }
  std::map<std::string, std::string> metadata;
  TrainingState state;
  state.tensors = load_safetensors(data_path, &metadata);
  for (auto& [name, tensor] : state.tensors) tensor = tensor.clone();  // the file may be removed while we run
  try {
    const auto head = nlohmann::json::parse(metadata.at("state"));
    state.step = head.at("step").get<int64_t>();
    state.sequences = head.at("sequences").get<int64_t>();
    state.identity = head.at("identity").get<std::map<std::string, std::string>>();
  } catch (const std::exception& bad) {
    throw Error(data_path.string() + ": its metadata is no training state: " + bad.what());
  }
  return state;
}

}  // namespace

void save_checkpoint(const fs::path& folder, const TrainingState& state, int64_t keep) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw Error(folder.string() + ": cannot be created: " + error.message());
  const auto data_path = folder / (stem(state.step) + ".safetensors");
  const nlohmann::json head = {{"step", state.step}, {"sequences", state.sequences}, {"identity", state.identity}};
  save_safetensors(data_path, state.tensors, {{"state", head.dump()}});
  const nlohmann::json manifest = {{"format", "prulong-checkpoint"},
                                   {"version", kVersion},
                                   {"step", state.step},
                                   {"bytes", fs::file_size(data_path)},
                                   {"fnv1a64", checksum_of_file(data_path)}};
  const auto manifest_path = folder / (stem(state.step) + ".json");
  write_file_atomically(manifest_path, manifest.dump(2) + "\n");
  load_verified(manifest_path);

  // Those ahead of this step are damaged ones that were passed over: they must not push good ones out.
  const auto all = manifests(folder, state.step);
  for (size_t i = static_cast<size_t>(keep); i < all.size(); ++i) {
    auto old_data = all[i];
    old_data.replace_extension(".safetensors");
    fs::remove(all[i], error);  // the manifest first: what is left of a half removal is no checkpoint
    fs::remove(old_data, error);
  }
}

std::optional<TrainingState> load_newest_checkpoint(const fs::path& folder,
                                                    const std::function<void(const std::string&)>& warn) {
  const auto found = manifests(folder);
  for (const auto& manifest : found) {
    try {
      return load_verified(manifest);
    } catch (const Error& damaged) {
      warn(std::string("damaged checkpoint passed over: ") + damaged.what());
    }
  }
  if (found.empty()) return std::nullopt;
  throw Error(folder.string() + ": all " + std::to_string(found.size()) +
              " checkpoints are damaged; move the folder away to start anew");
}

void check_same_run(const std::map<std::string, std::string>& saved, const std::map<std::string, std::string>& now,
                    const fs::path& run) {
  auto value = [](const std::map<std::string, std::string>& map, const std::string& key) {
    const auto found = map.find(key);
    return found == map.end() ? std::string("nothing") : "'" + found->second + "'";
  };
  auto keys = saved;
  keys.insert(now.begin(), now.end());
  for (const auto& entry : keys) {
    const auto before = value(saved, entry.first), after = value(now, entry.first);
    if (before != after) {
      throw Error(run.string() + ": holds a run with " + entry.first + " = " + before + ", this one has " + after +
                  "; use another run.dir, or put the old value back");
    }
  }
}

}  // namespace prulong
