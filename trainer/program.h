// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <exception>

#include "model/error.h"

namespace prulong {

/// The one place where a program's errors end: one line on standard error, and the exit status.
/// @param UsageError  what the command-line library throws.
/// @returns what `body` returns; 2 for a bad command line or configuration; 1 for any other failure.
template <class UsageError, class Body>
int run_program(const char* name, Body body) {
  try {
    return body();
  } catch (const ConfigError& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return 2;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "%s: %s; see --help\n", name, error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return 1;
  }
}

}  // namespace prulong
