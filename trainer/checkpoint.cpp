// SPDX-License-Identifier: MIT
#include "trainer/checkpoint.h"

#include <cinttypes>
#include <cstdio>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include "common/error.h"
#include "common/hash.h"
#include "trainer/checkpoint_manifest.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;

std::string stem(int64_t step) {
  char text[32];
  std::snprintf(text, sizeof text, "step-%08lld", static_cast<long long>(step));
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

/// The state whose tensors lie in the file.
TrainingState map_verified(const fs::path& manifest) {
  const fs::path data = verified_data(manifest);
  std::map<std::string, std::string> metadata;
  TensorMap tensors = load_safetensors(data, &metadata);
  StateHead head = head_of(metadata, data);
  return {head.step, head.sequences, std::move(tensors), std::move(head.identity)};
}

/// Removes what saves left that were killed: temporary files, and data without a manifest.
void remove_unfinished(const fs::path& folder) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const fs::path& path = entry.path();
    if (!path.filename().string().starts_with("step-")) continue;
    auto manifest = path;
    manifest.replace_extension(".json");
    const bool orphan = path.extension() == ".safetensors" && !fs::exists(manifest, error);
    if (orphan || path.extension() == ".tmp") fs::remove(path, error);
  }
}

}  // namespace

void save_checkpoint(const fs::path& folder, const TrainingState& state, int64_t keep) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    throw Error(folder.string() + ": cannot be created: " + error.message() +
                "; make its folder writable, or free space");
  }
  const auto data = folder / (stem(state.step) + ".safetensors");
  Hash64 hash;
  save_safetensors(data, state.tensors, to_metadata({state.step, state.sequences, state.identity}),
                   [&](std::string_view bytes) { hash.add(bytes); });
  write_manifest(data, state.step, hash.value());

  // Those ahead of this step are damaged ones that were passed over: they must not push good ones out.
  const auto all = manifests(folder, state.step);
  for (size_t i = static_cast<size_t>(keep); i < all.size(); ++i) {
    auto old_data = all[i];
    old_data.replace_extension(".safetensors");
    fs::remove(all[i], error);  // the manifest first: what is left of a half removal is no checkpoint
    fs::remove(old_data, error);
  }
  remove_unfinished(folder);
}

std::optional<TrainingState> load_newest_checkpoint(const fs::path& folder,
                                                    const std::function<void(const std::string&)>& warn) {
  const auto found = manifests(folder);
  std::optional<OtherVersion> other;
  for (const auto& manifest : found) {
    try {
      TrainingState state = map_verified(manifest);
      for (auto& [name, tensor] : state.tensors) tensor = tensor.clone();  // the file may be removed while we run
      return state;
    } catch (const OtherVersion& error) {
      if (!other) other = error;
    } catch (const Error& damaged) {
      warn(std::string("damaged checkpoint passed over: ") + damaged.what());
    }
  }
  if (found.empty()) return std::nullopt;
  if (other) throw *other;
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
