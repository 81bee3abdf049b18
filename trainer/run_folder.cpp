// SPDX-License-Identifier: MIT
#include "trainer/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <thread>
#include <utility>

#include "common/atomic_file.h"
#include "common/error.h"
#include "common/provenance.h"
#include "model/open_model.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;
constexpr const char* kLockName = "lock";

// Data, model and pattern are in the provenance, by what they hold.
constexpr std::array kDecidesNoResult = {"run.",       "checkpoint.",  "eval.",           "data.",
                                         "model.path", "model.device", "train.recompute", "parallel."};
constexpr std::array kOwnOnEachRank = {"run.", "data.", "model.path", "model.device"};

/// The keys that begin with none of these, and the provenance, which wins.
std::map<std::string, std::string> values_without(std::span<const char* const> left_out, const TrainConfig& config,
                                                  std::map<std::string, std::string> provenance) {
  TrainConfig copy = config;
  for (const KeyRow& row : list_keys([&](ConfigVisitor& v) { visit_config(v, copy); })) {
    const auto begins = [&](const char* prefix) { return row.path.starts_with(prefix); };
    if (!row.section && std::ranges::none_of(left_out, begins)) provenance.emplace(row.path, row.value);
  }
  return provenance;
}

/// Empty but for the lock, which stays behind a run that found no model or no data.
bool is_unused(const fs::path& path, std::error_code& error) {
  fs::directory_iterator entry(path, error);
  while (!error && entry != fs::end(entry) && entry->path().filename() == kLockName) entry.increment(error);
  return entry == fs::end(entry);
}

}  // namespace

RunFolder::RunFolder(const fs::path& path, Resume resume, std::chrono::milliseconds patience) : path_(path) {
  const auto refuse = [&](const std::string& what) {
    throw Error(path.string() + ": " + what + "; choose another run.dir");
  };
  std::error_code error;
  fs::create_directories(path, error);
  if (error) refuse("cannot be created: " + error.message());
  const bool unused = is_unused(path, error);
  if (error) refuse("cannot be read: " + error.message());
  if (resume == Resume::kNever && !unused) refuse("is not empty, and run.resume is never");
  for (const char* const name : {"checkpoints", "model"}) {
    if (fs::exists(path / name, error) && !fs::is_directory(path / name, error)) {
      refuse(std::string("holds a file ") + name + ", where a folder will be written");
    }
  }
  lock_ = ::open((path / kLockName).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0) refuse(std::string("cannot be written: ") + std::strerror(errno) + "; make it writable");
  const auto end = std::chrono::steady_clock::now() + patience;
  while (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    if (reason == EWOULDBLOCK && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      continue;
    }
    ::close(lock_);
    if (reason == EWOULDBLOCK) refuse("another run is using this folder; wait for it");
    refuse(std::string("cannot be locked: ") + std::strerror(reason));
  }
}

RunFolder::~RunFolder() { ::close(lock_); }

void RunFolder::describe(const TrainConfig& config, const std::map<std::string, std::string>& provenance,
                         at::Device device) const {
  write_file_atomically(path_ / "config.yaml", to_yaml(config));
  nlohmann::json description = provenance;
  description["versions"] = versions();
  description["machine"] = machine(device);
  write_file_atomically(path_ / "run.json",
                        description.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

std::vector<fs::path> run_outputs(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const char* const name : {"config.yaml", "run.json", "metrics.jsonl", "log.txt", "pattern.json", "masks.tsv"}) {
    files.push_back(folder / name);
  }
  for (const char* const name : {"checkpoints", "model"}) {
    std::error_code error;
    for (auto entry = fs::directory_iterator(folder / name, error); !error && entry != fs::end(entry);
         entry.increment(error)) {
      if (!entry->is_directory(error)) files.push_back(entry->path());
    }
  }
  return files;
}

std::map<std::string, std::string> run_identity(const TrainConfig& config,
                                                std::map<std::string, std::string> provenance) {
  return values_without(kDecidesNoResult, config, std::move(provenance));
}

std::map<std::string, std::string> shared_values(const TrainConfig& config,
                                                 std::map<std::string, std::string> provenance) {
  return values_without(kOwnOnEachRank, config, std::move(provenance));
}

}  // namespace prulong
