// SPDX-License-Identifier: MIT
// The Python module prulong._C; prulong/_C.pyi says what it holds.
#include <pybind11/pybind11.h>

#include "common/error.h"
#include "prulong_interface.h"
#include "python_bindings/bindings.h"

namespace py = pybind11;

namespace {

/// Refusals are ValueErrors; of files the system's own OSError, by reason (FileNotFoundError and others).
void translate(std::exception_ptr thrown) {
  const auto text_of = [](const std::exception& error) {  // a path in it may not be UTF-8
    return py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefault(error.what()));
  };
  try {
    std::rethrow_exception(thrown);
  } catch (const prulong::FileError& error) {
    PyErr_SetObject(PyExc_OSError, py::make_tuple(error.code, text_of(error)).ptr());
  } catch (const prulong::Error& error) {
    PyErr_SetObject(PyExc_ValueError, text_of(error).ptr());
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  py::register_local_exception_translator(translate);
  m.attr("interface") = PRULONG_INTERFACE;
  prulong::python::bind_pattern(m);
  prulong::python::bind_kv_cache(m);
  prulong::python::bind_engine(m);
}
