// SPDX-License-Identifier: MIT
#pragma once

#include <exception>
#include <string>

#include "common/error.h"

namespace prulong {

/// Before anything is opened: closed standard descriptors become /dev/null, so that no file of ours gets their numbers
/// and is written into by whoever prints; a pipe that nobody reads any more and a limit on the size of files become
/// errors of the write, not signals.
void prepare_process();

/// Flushes standard output. That it cannot be written is an error, unless its reader has gone (| head): then it has
/// what it wanted.
/// @returns `status`; 1 after the error.
int finish_output(const char* name, int status);

/// One line on standard error, and for torchrun (leave_reason). Processes that torchrun started together on a machine
/// mostly fail alike: the first of them speaks.
void say_error(const char* name, const std::string& message);

/// The one place where a program's errors end: one line on standard error, and the exit status.
/// @param UsageError  what the command-line library throws.
/// @returns what `body` returns; 2 for a bad command line or configuration; 1 for any other failure.
template <class UsageError, class Body>
int run_program(const char* name, Body body) {
  prepare_process();
  try {
    return finish_output(name, body());
  } catch (const ConfigError& error) {
    say_error(name, error.what());
    return 2;
  } catch (const UsageError& error) {
    say_error(name, error.what() + std::string("; see --help"));
    return 2;
  } catch (const std::exception& error) {
    const std::string what = error.what();  // torch adds a backtrace, line by line
    say_error(name, what.substr(0, what.find('\n')));
    return 1;
  }
}

}  // namespace prulong
