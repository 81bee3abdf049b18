// SPDX-License-Identifier: MIT
// prulong.Pattern and prulong.ModelShape of Python as arguments and results of C++ functions, by value.
#pragma once

#include <pybind11/pybind11.h>

#include "model/pattern.h"

namespace prulong::python {

/// The C++ value of a prulong.Pattern or prulong.ModelShape.
/// @throws Error where a field has a type or a size that the C++ one could not hold.
Pattern pattern_of(pybind11::handle object);
ModelShape shape_of(pybind11::handle object);

/// The Python object of a C++ value.
pybind11::object to_python(const Pattern& pattern);
pybind11::object to_python(const ModelShape& shape);

/// Whether an object is an instance of a class of prulong.pattern.
bool is_instance(pybind11::handle object, const char* name);

}  // namespace prulong::python

namespace pybind11::detail {

template <>
struct type_caster<prulong::Pattern> {
  PYBIND11_TYPE_CASTER(prulong::Pattern, const_name("prulong.Pattern"));
  bool load(handle source, bool) {
    if (!prulong::python::is_instance(source, "Pattern")) return false;
    value = prulong::python::pattern_of(source);
    return true;
  }
  static handle cast(const prulong::Pattern& pattern, return_value_policy, handle) {
    return prulong::python::to_python(pattern).release();
  }
};

template <>
struct type_caster<prulong::ModelShape> {
  PYBIND11_TYPE_CASTER(prulong::ModelShape, const_name("prulong.ModelShape"));
  bool load(handle source, bool) {
    if (!prulong::python::is_instance(source, "ModelShape")) return false;
    value = prulong::python::shape_of(source);
    return true;
  }
  static handle cast(const prulong::ModelShape& shape, return_value_policy, handle) {
    return prulong::python::to_python(shape).release();
  }
};

}  // namespace pybind11::detail
