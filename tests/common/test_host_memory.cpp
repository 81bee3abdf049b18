// SPDX-License-Identifier: MIT
#include "common/host_memory.h"

#include <map>
#include <string>

#include "tests/support/catch.h"
#include "tests/support/files.h"

using namespace prulong;

namespace {

/// What is available with these files under the root; the system has 1000 KiB.
int64_t available(const std::map<std::string, std::string>& files) {
  const test::TemporaryFolder root;
  test::write_text(root / "proc/meminfo",
                   "MemTotal:  2000 kB\nMemFree: 10 kB\nMemAvailable:   1000 kB\nBuffers: 1 kB\n");
  for (const auto& [name, text] : files) test::write_text(root / name, text);
  return available_host_bytes(root.path());
}

constexpr int64_t kSystem = 1000 * 1024;

}  // namespace

TEST_CASE("Without control groups the system's memory counts") {
  CHECK(available({}) == kSystem);
  CHECK(available({{"proc/self/cgroup", "0::/\n"}}) == kSystem);
  CHECK(available({{"proc/self/cgroup", "nonsense\n:\n"}}) == kSystem);
  CHECK(available_host_bytes() > 0);
}

TEST_CASE("Groups of version 2: the least that any of a path leaves") {
  const std::string base = "sys/fs/cgroup/";
  std::map<std::string, std::string> files = {
      {"proc/self/cgroup", "0::/job/step\n"},    {base + "job/memory.max", "500000\n"},
      {base + "job/memory.current", "100000\n"}, {base + "job/step/memory.max", "max\n"},
      {base + "job/step/memory.high", "max\n"},  {base + "job/step/memory.current", "90000\n"}};
  CHECK(available(files) == 400000);  // of the group around
  files[base + "job/step/memory.max"] = "300000\n";
  CHECK(available(files) == 210000);
  files[base + "job/step/memory.high"] = "200000\n";
  CHECK(available(files) == 110000);
  files[base + "job/step/memory.stat"] = "anon 10000\nfile 80000\ninactive_file 30000\nactive_file 50000\n";
  CHECK(available(files) == 140000);  // pages that can be dropped
  files[base + "job/step/memory.high"] = "50000\n";
  CHECK(available(files) == 0);
  files[base + "other/memory.max"] = "1\n";
  files[base + "job/step/memory.high"] = "9000000\n";
  files[base + "job/step/memory.max"] = "9000000\n";
  files[base + "job/memory.max"] = "9000000\n";
  CHECK(available(files) == kSystem);
}

TEST_CASE("Groups of version 1, and both side by side") {
  std::map<std::string, std::string> files = {
      {"proc/self/cgroup", "5:cpu,cpuacct:/a\n4:hugetlb,memory:/a/b\n0::/c\n"},
      {"sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"},
      {"sys/fs/cgroup/memory/memory.usage_in_bytes", "7000000000\n"},
      {"sys/fs/cgroup/memory/a/memory.limit_in_bytes", "600000\n"},
      {"sys/fs/cgroup/memory/a/memory.usage_in_bytes", "200000\n"},
      {"sys/fs/cgroup/memory/a/memory.stat", "inactive_file 1\ntotal_inactive_file 50000\n"},
      {"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "18446744073709551615\n"},
      {"sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "1\n"}};
  CHECK(available(files) == 450000);
  files["sys/fs/cgroup/unified/c/memory.max"] = "100000";
  files["sys/fs/cgroup/unified/c/memory.current"] = "1000";
  CHECK(available(files) == 99000);
}

TEST_CASE("In a container whose own group is the mount's root") {
  CHECK(available({{"proc/self/cgroup", "0::/host/path/of/the/container\n"},
                   {"sys/fs/cgroup/memory.max", "70000\n"},
                   {"sys/fs/cgroup/memory.current", "20000\n"}}) == 50000);
  CHECK(available({{"proc/self/cgroup", "0::/../../elsewhere\n"},
                   {"sys/fs/cgroup/memory.max", "70000\n"},
                   {"sys/fs/cgroup/memory.current", "20000\n"},
                   {"sys/fs/elsewhere/memory.max", "1\n"}}) == 50000);
  CHECK(available({{"proc/self/cgroup", "3:memory:/docker/1\n"},
                   {"sys/fs/cgroup/memory/memory.limit_in_bytes", "70000\n"},
                   {"sys/fs/cgroup/memory/memory.usage_in_bytes", "20000\n"}}) == 50000);
}
