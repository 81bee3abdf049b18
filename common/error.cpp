// SPDX-License-Identifier: MIT
#include "common/error.h"

#include "common/quote.h"

namespace prulong {

Error::Error(const std::string& message) : std::runtime_error(printable(message)) {}

}  // namespace prulong
