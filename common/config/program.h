// SPDX-License-Identifier: MIT
#pragma once

#include <csignal>
#include <cstdio>
#include <exception>
#include <string>

#include "common/error.h"

namespace prulong {

/// The one place where a program's errors end: one line on standard error, and the exit status. A limit on the size of
/// files is an error as a full disk is, not a signal.
/// @param UsageError  what the command-line library throws.
/// @returns what `body` returns; 2 for a bad command line or configuration; 1 for any other failure.
template <class UsageError, class Body>
int run_program(const char* name, Body body) {
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    return body();
  } catch (const ConfigError& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return 2;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "%s: %s; see --help\n", name, error.what());
    return 2;
  } catch (const std::exception& error) {
    const std::string what = error.what();  // torch adds a backtrace, line by line
    std::fprintf(stderr, "%s: %s\n", name, what.substr(0, what.find('\n')).c_str());
    return 1;
  }
}

}  // namespace prulong
