// SPDX-License-Identifier: MIT
#include "common/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "common/error.h"
#include "tests/support/catch.h"
#include "tests/support/files.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;
using test::read_text;
using test::TemporaryFolder;
using test::write_text;

constexpr size_t kPiece = 4096;

/// Writes 64 KiB of one letter, piece by piece; a torn file would hold two letters or be short.
void write_letter(const fs::path& file, char letter) {
  write_file_atomically(file, [&](const auto& sink) {
    for (int piece = 0; piece < 16; ++piece) sink(std::string(kPiece, letter));
  });
}

bool is_whole(const std::string& content) {
  return content.size() == 16 * kPiece && content.find_first_not_of(content[0]) == std::string::npos;
}

std::set<std::string> names(const fs::path& folder) {
  std::set<std::string> found;
  for (const auto& entry : fs::directory_iterator(folder)) found.insert(entry.path().filename().string());
  return found;
}

}  // namespace

TEST_CASE("threads and processes may write one path at once") {
  const TemporaryFolder scratch;
  const fs::path file = scratch / "f.bin";
  write_letter(file, '.');
  constexpr int kProcesses = 4, kThreads = 4, kTimes = 20;
  std::vector<pid_t> children;
  for (int process = 0; process < kProcesses; ++process) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      std::atomic<int> failures{0};
      std::vector<std::thread> threads;
      for (int thread = 0; thread < kThreads; ++thread) {
        threads.emplace_back([&, letter = static_cast<char>('a' + process * kThreads + thread)] {
          for (int time = 0; time < kTimes; ++time) {
            try {
              write_letter(file, letter);
            } catch (const std::exception&) {
              ++failures;
            }
          }
        });
      }
      for (std::thread& thread : threads) thread.join();
      ::_exit(failures == 0 ? 0 : 1);
    }
    children.push_back(child);
  }
  int torn = 0;
  for (size_t ended = 0; ended < children.size();) {
    torn += !is_whole(read_text(file));
    int status = 0;
    if (::waitpid(children[ended], &status, WNOHANG) == 0) continue;
    CHECK(status == 0);
    ++ended;
  }
  CHECK(torn == 0);
  CHECK(is_whole(read_text(file)));
  CHECK(names(scratch.path()) == std::set<std::string>{"f.bin"});
}

TEST_CASE("what a killed writer left is removed by the next, what a living one writes is not") {
  const TemporaryFolder scratch;
  const fs::path file = scratch / "f.json";
  const pid_t killed = ::fork();
  REQUIRE(killed >= 0);
  if (killed == 0) write_file_atomically(file, [](const auto& sink) { sink("half"), ::_exit(0); });
  ::waitpid(killed, nullptr, 0);
  REQUIRE(names(scratch.path()).size() == 1);
  CHECK(names(scratch.path()).begin()->starts_with("f.json." + std::to_string(killed) + "-"));
  const std::set<std::string> others = {"f.json.notes.tmp", "f.jsonl.1-0.tmp", "f.json.tmp", "g.json.1-0.tmp"};
  for (const std::string& name : others) write_text(scratch / name, "mine");
  fs::create_directories(scratch / "f.json.7-7.tmp");  // of a folder that was to have this name
  write_text(scratch / "f.json.7-7.tmp/masks.tsv", "half");

  write_file_atomically(file, [&](const auto& sink) {
    sink("outer");
    write_file_atomically(file, "inner");
    CHECK(read_text(file) == "inner");
  });
  CHECK(read_text(file) == "outer");
  std::set<std::string> expected = others;
  expected.insert("f.json");
  CHECK(names(scratch.path()) == expected);
}

TEST_CASE("a file that cannot be written is refused with the system's reason and what was there stays") {
  const TemporaryFolder scratch;
  fs::create_directories(scratch / "taken/inner");
  CHECK_THROWS_WITH(write_file_atomically(scratch / "taken", "x"), ContainsSubstring("Is a directory"));
  CHECK_THROWS_WITH(write_file_atomically(scratch / "none/f", "x"), ContainsSubstring("create its folder"));
  try {
    write_file_atomically(scratch / "none/f", "x");
    FAIL("written");
  } catch (const FileError& error) {
    CHECK(error.code == ENOENT);
  }
  write_text(scratch / "f", "old");
  CHECK_THROWS_AS(write_file_atomically(scratch / "f", [](const auto& sink) { sink("ne"), throw Error("stop"); }),
                  Error);
  CHECK(read_text(scratch / "f") == "old");
  CHECK(names(scratch.path()) == std::set<std::string>{"f", "taken"});
}

TEST_CASE("a folder appears whole or not at all") {
  const TemporaryFolder scratch;
  const fs::path folder = scratch / "out";
  const auto fill = [](const fs::path& unfinished) { write_text(unfinished / "a", "1"); };
  CHECK(make_folder_atomically(folder, fill));
  CHECK(names(folder) == std::set<std::string>{"a"});
  CHECK_FALSE(make_folder_atomically(folder, [](const fs::path& unfinished) { write_text(unfinished / "b", "2"); }));
  CHECK(names(folder) == std::set<std::string>{"a"});
  write_text(scratch / "file", "x");
  CHECK_FALSE(make_folder_atomically(scratch / "file", fill));
  CHECK_THROWS_AS(make_folder_atomically(scratch / "half",
                                         [&](const fs::path& unfinished) {
                                           fill(unfinished);
                                           throw Error("stop");
                                         }),
                  Error);
  CHECK(names(scratch.path()) == std::set<std::string>{"file", "out"});

  std::atomic<int> made{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) threads.emplace_back([&] { made += make_folder_atomically(scratch / "once", fill); });
  for (std::thread& thread : threads) thread.join();
  CHECK(made == 1);
}

}  // namespace prulong
