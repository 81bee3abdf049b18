// SPDX-License-Identifier: MIT
// Signals end or mark a whole process, so each case runs in a child of its own.
#include "common/stop.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "tests/support/catch.h"

using namespace prulong;

namespace {

/// The wait status of a child that runs `body` and exits with what it returns.
int status_of(const std::function<int()>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

int exit_code(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : -1; }

}  // namespace

TEST_CASE("SIGTERM, SIGINT and SIGHUP ask for a stop") {
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) {
    CAPTURE(number);
    CHECK(exit_code(status_of([&] {
            ::signal(SIGHUP, SIG_DFL);
            request_stop_on_signals();
            if (stop_requested()) return 1;
            check_stop();
            ::raise(number);
            ::raise(number);  // the same Ctrl-C, handed on by a launcher
            if (!stop_requested()) return 2;
            try {
              check_stop();
            } catch (const Stopped&) {
              return 0;
            }
            return 3;
          })) == 0);
  }
}

TEST_CASE("A SIGHUP that was ignored stays ignored") {
  CHECK(exit_code(status_of([] {
          ::signal(SIGHUP, SIG_IGN);
          request_stop_on_signals();
          ::raise(SIGHUP);
          return stop_requested() ? 1 : 0;
        })) == 0);
}

TEST_CASE("A second SIGINT, later, ends the program at once") {
  const int status = status_of([] {
    request_stop_on_signals();
    ::raise(SIGINT);
    ::usleep(1'100'000);
    ::raise(SIGTERM);  // never does
    ::raise(SIGINT);
    return 0;
  });
  REQUIRE(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGINT);
}
