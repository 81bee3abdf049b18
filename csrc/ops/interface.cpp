// SPDX-License-Identifier: MIT
// What the library was built for, so that a package that finds it can tell whether they belong together.
#include "csrc/ops/export.h"
#include "prulong_interface.h"

extern "C" PRULONG_API const char* prulong_interface() { return PRULONG_INTERFACE; }
