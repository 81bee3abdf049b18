// SPDX-License-Identifier: MIT
// What each file adds to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace prulong::python {

void bind_pattern(pybind11::module_& m);
void bind_kv_cache(pybind11::module_& m);
void bind_engine(pybind11::module_& m);

}  // namespace prulong::python
