// SPDX-License-Identifier: MIT
#include "common/config/program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "common/launch.h"
#include "common/quote.h"

namespace prulong {
namespace {

/// Whether the other end of a pipe, socket or terminal is closed.
bool reader_is_gone(int descriptor) {
  pollfd query{.fd = descriptor, .events = POLLOUT, .revents = 0};
  return ::poll(&query, 1, 0) == 1 && (query.revents & (POLLERR | POLLHUP)) != 0;
}

}  // namespace

void prepare_process() {
  for (int descriptor = STDIN_FILENO; descriptor <= STDERR_FILENO; ++descriptor) {
    // The lowest free number is taken: this one, since those below it are open by now.
    if (::fcntl(descriptor, F_GETFD) == -1 && errno == EBADF) ::open("/dev/null", O_RDWR);
  }
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);
}

void say_error(const char* name, const std::string& message) {
  const std::string line = printable(message);
  leave_reason(line);
  const char* const local_rank = std::getenv("LOCAL_RANK");
  if (local_rank && std::getenv("WORLD_SIZE") && std::strcmp(local_rank, "0") != 0) return;
  std::fprintf(stderr, "%s: %s\n", name, line.c_str());
}

int finish_output(const char* name, int status) {
  errno = 0;
  const bool flushed = std::fflush(stdout) == 0;
  const int reason = errno;
  if ((flushed && std::ferror(stdout) == 0) || reader_is_gone(STDOUT_FILENO)) return status;
  std::fprintf(stderr, "%s: standard output: cannot be written%s%s; free space, or write to another place\n", name,
               reason == 0 ? "" : ": ", reason == 0 ? "" : std::strerror(reason));
  return 1;
}

}  // namespace prulong
