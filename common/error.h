// SPDX-License-Identifier: MIT
#pragma once

#include <stdexcept>
#include <string>

namespace prulong {

/// What a user can mend: a bad file, a full disk, a run that diverged. One line: the file or argument, what was
/// expected, what was found, what to do. Programs print it and exit with 1.
struct Error : std::runtime_error {
  /// @param message  made printable (quote.h): what files hold, and their names, may hold anything.
  explicit Error(const std::string& message);
};

/// A file that the system does not let read or write.
struct FileError : Error {
  FileError(int reason, const std::string& what) : Error(what), code(reason) {}
  int code;  ///< the system's reason, an errno
};

/// A bad command line or configuration. Programs print it and exit with 2.
struct ConfigError : Error {
  using Error::Error;
};

}  // namespace prulong
