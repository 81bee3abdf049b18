// SPDX-License-Identifier: MIT
#include "common/config/program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <stdexcept>

#include "tests/support/catch.h"
#include "tests/support/files.h"

using namespace prulong;

namespace {

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The exit code of a child that runs `body` as a program; -1 if it did not exit by itself.
int exit_code(const std::function<int()>& body) {
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    for (const int descriptor : {STDOUT_FILENO, STDERR_FILENO}) ::dup2(::open("/dev/null", O_WRONLY), descriptor);
    ::_exit(body());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/// Makes standard output a pipe without a reader.
void close_reader() {
  int ends[2] = {};
  if (::pipe(ends) != 0) ::_exit(99);
  ::dup2(ends[1], STDOUT_FILENO);
  ::close(ends[0]);
}

}  // namespace

TEST_CASE("A file that is opened never gets the number of a closed standard descriptor") {
  const test::TemporaryFolder folder;
  const auto file = test::write_text(folder / "data.bin", "untouched");
  for (const int closed : {0, 1, 2}) {
    CAPTURE(closed);
    CHECK(exit_code([&] {
            ::close(closed);
            return run_program<UsageError>("test", [&] {
              const int fd = ::open(file.c_str(), O_RDWR);
              std::fputs("a line", stdout);
              std::fflush(stdout);
              std::fputs("a line", stderr);
              return fd > 2 ? 0 : 50;
            });
          }) == 0);
  }
  CHECK(exit_code([&] {
          for (const int closed : {0, 1, 2}) ::close(closed);
          return run_program<UsageError>("test", [&] { return ::open(file.c_str(), O_RDWR) > 2 ? 7 : 50; });
        }) == 7);
  CHECK(test::read_text(file) == "untouched");
}

TEST_CASE("A reader that has gone ends nothing") {
  CHECK(exit_code([] {
          close_reader();
          ::signal(SIGPIPE, SIG_DFL);
          return run_program<UsageError>("test", [] {
            for (int i = 0; i < 3; ++i) {
              std::puts("a line");
              std::fflush(stdout);
            }
            return 5;
          });
        }) == 5);
}

TEST_CASE("Output that is lost is an error") {
  CHECK(exit_code([] {
          ::dup2(::open("/dev/full", O_WRONLY), STDOUT_FILENO);
          return run_program<UsageError>("test", [] {
            std::puts("a line");
            return 0;
          });
        }) == 1);
}

TEST_CASE("Errors end with the status of their kind") {
  const auto status = [](const auto& error) {
    return exit_code([&] { return run_program<UsageError>("test", [&]() -> int { throw error; }); });
  };
  CHECK(status(ConfigError("x")) == 2);
  CHECK(status(UsageError("x")) == 2);
  CHECK(status(Error("x")) == 1);
  CHECK(status(std::logic_error("x")) == 1);
}
