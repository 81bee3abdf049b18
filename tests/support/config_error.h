// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "common/error.h"

namespace prulong::test {

/// All that the ConfigError says with which `body` ends, so that every word of it is looked at.
template <class Body>
std::string config_error_of(const Body& body) {
  try {
    body();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace prulong::test
