// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <exception>
#include <string>

#include "common/error.h"
#include "common/quote.h"

namespace prulong {

/// Before anything is opened: closed standard descriptors become /dev/null, so that no file of ours gets their numbers
/// and is written into by whoever prints; a pipe that nobody reads any more and a limit on the size of files become
/// errors of the write, not signals.
void prepare_process();

/// Flushes standard output. That it cannot be written is an error, unless its reader has gone (| head): then it has
/// what it wanted.
/// @returns `status`; 1 after the error.
int finish_output(const char* name, int status);

/// The one place where a program's errors end: one line on standard error, and the exit status.
/// @param UsageError  what the command-line library throws.
/// @returns what `body` returns; 2 for a bad command line or configuration; 1 for any other failure.
template <class UsageError, class Body>
int run_program(const char* name, Body body) {
  prepare_process();
  try {
    return finish_output(name, body());
  } catch (const ConfigError& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return 2;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "%s: %s; see --help\n", name, printable(error.what()).c_str());
    return 2;
  } catch (const std::exception& error) {
    const std::string what = error.what();  // torch adds a backtrace, line by line
    std::fprintf(stderr, "%s: %s\n", name, printable(what.substr(0, what.find('\n'))).c_str());
    return 1;
  }
}

}  // namespace prulong
