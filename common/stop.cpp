// SPDX-License-Identifier: MIT
#include "common/stop.h"

#include <signal.h>
#include <time.h>

#include <atomic>
#include <cerrno>
#include <cstdint>

namespace prulong {
namespace {

constexpr int64_t kSameInterrupt = 1'000'000'000;  // ns

std::atomic<bool> requested{false};
std::atomic<int64_t> first_interrupt{0};  // ns of the monotonic clock; 0: none yet
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);

int64_t now() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

/// Only what a signal handler may do.
void on_signal(int number) {
  const int error = errno;
  requested = true;
  if (number == SIGINT) {
    const int64_t first = first_interrupt;
    if (first == 0) first_interrupt = now();
    if (first != 0 && now() - first > kSameInterrupt) {
      ::signal(SIGINT, SIG_DFL);
      ::raise(SIGINT);  // delivered when this handler returns
    }
  }
  errno = error;
}

}  // namespace

void request_stop_on_signals() {
  struct sigaction action = {}, before = {};
  action.sa_handler =
      on_signal;  // without SA_RESTART: a write to a terminal that nobody reads must not hold up the end
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGHUP, nullptr, &before);
  if (before.sa_handler != SIG_IGN) ::sigaction(SIGHUP, &action, nullptr);
}

bool stop_requested() { return requested; }

void check_stop() {
  if (requested) throw Stopped();
}

}  // namespace prulong
