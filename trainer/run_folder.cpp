// SPDX-License-Identifier: MIT
#include "trainer/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <torch/version.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "model/atomic_file.h"
#include "model/error.h"
#include "trainer/data/random.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;
constexpr const char* kLockName = "lock";

bool decides_results(const std::string& key) {
  for (const char* free : {"run.", "checkpoint.", "eval.", "data.", "model.path", "model.device", "train.recompute"}) {
    if (key.starts_with(free)) return false;  // data and model are in the facts, by what they hold
  }
  return true;
}

}  // namespace

RunFolder::RunFolder(const fs::path& path, Resume resume) : path_(path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) throw Error(path.string() + ": cannot be created: " + error.message() + "; choose another run.dir");
  if (resume == Resume::kNever && !fs::is_empty(path)) {
    throw Error(path.string() + ": is not empty, and run.resume is never; choose another run.dir");
  }
  lock_ = ::open((path / kLockName).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0) throw Error(path.string() + ": cannot be written: " + std::strerror(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    throw Error(path.string() + ": another run is using this folder; wait for it, or choose another run.dir");
  }
}

RunFolder::~RunFolder() { ::close(lock_); }

void RunFolder::describe(const TrainConfig& config, const std::map<std::string, std::string>& facts) const {
  write_file_atomically(path_ / "config.yaml", to_yaml(config));
  nlohmann::json description = facts;
  description["versions"] = versions();
  write_file_atomically(path_ / "run.json", description.dump(2) + "\n");
}

std::map<std::string, std::string> run_identity(const TrainConfig& config, std::map<std::string, std::string> facts) {
  TrainConfig copy = config;
  for (const KeyRow& row : list_keys([&](ConfigVisitor& v) { visit_config(v, copy); })) {
    if (!row.section && decides_results(row.path)) facts.emplace(row.path, row.value);  // facts win
  }
  return facts;
}

std::string model_fingerprint(const fs::path& model) {
  std::ifstream in(model / "config.json");
  std::stringstream text;
  text << in.rdbuf();
  std::set<std::string> files;
  for (const auto& entry : fs::directory_iterator(model)) {
    if (entry.path().extension() == ".safetensors") {
      files.insert(entry.path().filename().string() + ":" + std::to_string(fs::file_size(entry.path())));
    }
  }
  for (const auto& file : files) text << '\n' << file;
  char hex[17];
  std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(hash64(text.str())));
  return hex;
}

std::map<std::string, std::string> versions() {
  return {{"prulong", PRULONG_VERSION}, {"torch", TORCH_VERSION}, {"compiler", __VERSION__}};
}

}  // namespace prulong
