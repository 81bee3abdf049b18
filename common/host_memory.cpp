// SPDX-License-Identifier: MIT
#include "common/host_memory.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace prulong {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

/// How a version of control groups names things.
struct Version {
  std::vector<fs::path> mounts;
  std::vector<const char*> limits;
  const char* usage;
  const char* reclaimable;  ///< a line of memory.stat
};

const Version kFirst{
    {"sys/fs/cgroup/memory"}, {"memory.limit_in_bytes"}, "memory.usage_in_bytes", "total_inactive_file"};
const Version kSecond{
    {"sys/fs/cgroup", "sys/fs/cgroup/unified"}, {"memory.max", "memory.high"}, "memory.current", "inactive_file"};

/// A number; the largest one for what has more digits ("18446744073709551615"); nothing for "max" and for no file.
std::optional<int64_t> parse(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc::result_out_of_range) return kUnlimited;
  return error == std::errc() ? std::optional(value) : std::nullopt;
}

std::optional<int64_t> read_number(const fs::path& file) {
  std::string text;
  std::ifstream(file) >> text;
  return parse(text);
}

/// The number behind a name at the beginning of a line, as in memory.stat and meminfo.
std::optional<int64_t> read_line(const fs::path& file, std::string_view name) {
  std::ifstream in(file);
  std::string rest;
  for (std::string key, value; in >> key >> value; std::getline(in, rest)) {
    if (key == name) return parse(value);
  }
  return std::nullopt;
}

int64_t free_in_group(const fs::path& group, const Version& version) {
  int64_t limit = kUnlimited;
  for (const char* name : version.limits) limit = std::min(limit, read_number(group / name).value_or(kUnlimited));
  const auto usage = read_number(group / version.usage);
  if (limit == kUnlimited || !usage) return limit;
  const int64_t droppable = read_line(group / "memory.stat", version.reclaimable).value_or(0);
  const int64_t used = std::max<int64_t>(0, *usage - std::max<int64_t>(0, droppable));
  return std::max<int64_t>(0, limit - used);
}

/// The least that a group or one around it leaves. In a container the mount may begin at the container's own group:
/// what of the path is not there sets no limit.
int64_t free_on_path(const fs::path& root, const fs::path& path, const Version& version) {
  int64_t free = kUnlimited;
  for (const fs::path& mount : version.mounts) {
    fs::path group = root / mount;
    free = std::min(free, free_in_group(group, version));
    for (const fs::path& part : path.relative_path()) {
      if (part == "..") break;  // outside of what is mounted here
      group /= part;
      free = std::min(free, free_in_group(group, version));
    }
  }
  return free;
}

int64_t free_in_groups(const fs::path& root) {
  int64_t free = kUnlimited;
  std::ifstream in(root / "proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {  // "4:memory:/a/b"; of version 2 "0::/a/b"
    const size_t first = line.find(':'), second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const fs::path path = line.substr(second + 1);
    if (controllers == ",,") free = std::min(free, free_on_path(root, path, kSecond));
    if (controllers.find(",memory,") != std::string::npos) free = std::min(free, free_on_path(root, path, kFirst));
  }
  return free;
}

}  // namespace

int64_t available_host_bytes(const fs::path& root) {
  constexpr int64_t kKib = 1024;
  const auto kib = read_line(root / "proc/meminfo", "MemAvailable:");
  const int64_t system = kib ? *kib * kKib : ::sysconf(_SC_AVPHYS_PAGES) * ::sysconf(_SC_PAGESIZE);
  return std::min(system, free_in_groups(root));
}

}  // namespace prulong
