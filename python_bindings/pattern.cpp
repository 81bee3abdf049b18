// SPDX-License-Identifier: MIT
// Patterns: Python's values become C++ ones here, and everything else is C++'s.
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "common/error.h"
#include "python_bindings/bindings.h"
#include "python_bindings/pattern_caster.h"

namespace py = pybind11;

namespace prulong::python {
namespace {

constexpr size_t kMaxShown = 80;

[[noreturn]] void refuse(const std::string& message) { throw Error("pattern: " + message); }

/// A value in one line for a message; of a long one the beginning.
std::string shown(py::handle value) {
  std::string text = py::repr(value).attr("encode")("utf-8", "backslashreplace").cast<std::string>();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text.size() > kMaxShown ? text.substr(0, kMaxShown) + "..." : text;
}

/// What Python's own conversion gives; nothing, and no error, where it fails.
py::object attempted(PyObject* converted) {
  if (!converted) PyErr_Clear();
  return py::reinterpret_steal<py::object>(converted);
}

int64_t integer_of(py::handle value, const char* name) {
  if (!PyBool_Check(value.ptr())) {
    if (const py::object index = attempted(PyNumber_Index(value.ptr()))) {
      int overflow = 0;
      const long long number = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
      if (!overflow) return number;
    }
  }
  refuse(std::string(name) + " must be an integer below 2**63, found " + shown(value));
}

/// A Python or NumPy number, or a tensor of one.
std::optional<double> number_of(py::handle value) {
  const double number = PyFloat_AsDouble(value.ptr());
  if (!PyErr_Occurred()) return number;
  PyErr_Clear();
  return std::nullopt;
}

double sparsity_of(py::handle value) {
  const auto number = number_of(value);
  if (!number) refuse("sparsity must be a number from 0 to 1, found " + shown(value));
  return *number;
}

/// Bytes that are no UTF-8 are kept as paths keep them.
std::string text_of(py::handle value, const std::string& what, const char* remedy = "") {
  if (!PyUnicode_Check(value.ptr())) refuse(what + " must be a text, found " + shown(value) + remedy);
  return value.attr("encode")("utf-8", "surrogateescape").cast<std::string>();
}

py::object text_to_python(const std::string& text) {
  return py::bytes(text).attr("decode")("utf-8", "surrogateescape");
}

/// Rows (layers) of values (KV heads): nested sequences, an array or a tensor.
/// @param convert  (value, layer, head) -> T, or refuses
template <typename T, typename Convert>
std::vector<T> matrix_of(py::handle rows, const std::string& name, const ModelShape& model, Convert convert) {
  const py::object list =
      py::hasattr(rows, "tolist") ? rows.attr("tolist")() : py::reinterpret_borrow<py::object>(rows);
  const auto iterator_of = [&](py::handle sequence, const char* what) {
    const py::object iterator = attempted(PyObject_GetIter(sequence.ptr()));
    if (!iterator || PyUnicode_Check(sequence.ptr())) {
      refuse("expected " + name + " as " + what + ", found " + shown(sequence));
    }
    return py::reinterpret_borrow<py::iterator>(iterator);
  };
  std::vector<T> values;
  std::set<size_t> widths;
  size_t layer = 0;
  for (py::handle row : iterator_of(list, "rows (layers) of values (KV heads)")) {
    size_t head = 0;
    for (py::handle value : iterator_of(row, "rows (layers) of values (KV heads) with a row for each layer")) {
      values.push_back(convert(value, layer, head++));
    }
    widths.insert(head);
    ++layer;
  }
  if (static_cast<int64_t>(layer) != model.layers || widths != std::set{static_cast<size_t>(model.kv_heads)}) {
    std::string found;
    for (const size_t width : widths) found += (found.empty() ? "" : "/") + std::to_string(width);
    refuse("expected " + name + " of " + std::to_string(model.layers) + " layers x " + std::to_string(model.kv_heads) +
           " KV heads, found " + std::to_string(layer) + " rows of " + (found.empty() ? "0" : found));
  }
  return values;
}

std::vector<double> scores_of(py::handle rows, const ModelShape& model) {
  return matrix_of<double>(rows, "scores", model, [](py::handle value, size_t layer, size_t head) {
    const auto number = number_of(value);
    if (number) return *number;
    refuse("the score of layer " + std::to_string(layer) + ", head " + std::to_string(head) +
           " is not a finite number: " + shown(value));
  });
}

std::vector<uint8_t> mask_of(py::handle rows, const ModelShape& model) {
  return matrix_of<uint8_t>(rows, "mask", model, [](py::handle value, size_t, size_t) {
    const auto number = number_of(value);
    if (number != 0.0 && number != 1.0) refuse("mask values must be 0 or 1, found " + shown(value));
    return static_cast<uint8_t>(*number);
  });
}

std::map<std::string, std::string> provenance_of(py::handle mapping) {
  if (!py::hasattr(mapping, "items")) refuse("provenance must be texts by key, found " + shown(mapping));
  std::map<std::string, std::string> provenance;
  for (py::handle item : py::list(mapping.attr("items")())) {
    const auto [key, value] = item.cast<std::pair<py::object, py::object>>();
    const std::string name = "provenance " + shown(key);
    provenance[text_of(key, name)] = text_of(value, "the value of " + name, "; use str()");
  }
  return provenance;
}

template <typename To, typename From>
py::tuple rows_of(const std::vector<From>& values, int64_t width) {
  const size_t columns = static_cast<size_t>(width), layers = values.size() / columns;
  py::tuple rows(layers);
  for (size_t layer = 0; layer < layers; ++layer) {
    py::tuple row(columns);
    for (size_t head = 0; head < columns; ++head) row[head] = To(values[layer * columns + head]);
    rows[layer] = row;
  }
  return rows;
}

/// The arguments of the Python class.
py::dict fields_of(const Pattern& pattern) {
  const int64_t width = pattern.model.kv_heads;
  py::dict provenance;
  for (const auto& [key, value] : pattern.provenance) provenance[text_to_python(key)] = text_to_python(value);
  py::dict fields;
  fields["model"] = pattern.model;
  fields["sink"] = pattern.sink;
  fields["window"] = pattern.window;
  fields["sparsity"] = pattern.sparsity;
  fields["scores"] = rows_of<py::float_>(pattern.scores, width);
  fields["mask"] = rows_of<py::bool_>(pattern.mask, width);
  fields["provenance"] = provenance;
  return fields;
}

/// What an instance was made of, as its class stores it.
py::dict checked_fields(const Pattern& pattern) {
  pattern.check("pattern");
  return fields_of(pattern);
}

py::object python_class(const char* name) { return py::module_::import("prulong.pattern").attr(name); }

Pattern from_scores(const ModelShape& model, py::handle scores, py::handle sparsity, py::handle sink, py::handle window,
                    py::handle provenance) {
  Pattern pattern = Pattern::from_scores(model, scores_of(scores, model), sparsity_of(sparsity),
                                         integer_of(sink, "sink"), integer_of(window, "window"));
  pattern.provenance = provenance_of(provenance);
  return pattern;
}

/// A table as a mask, or as scores that `sparsity` rounds.
Pattern from_table(const std::filesystem::path& path, const ModelShape& model, py::handle sparsity, py::handle sink,
                   py::handle window) {
  const auto given = [](py::handle value, const char* name) {
    return value.is_none() ? std::nullopt : std::optional(integer_of(value, name));
  };
  const Pattern pattern = import_head_table(path, model, given(sink, "sink"), given(window, "window"));
  if (!sparsity.is_none()) return pattern.rounded(sparsity_of(sparsity), path.string());
  if (pattern.scores_are_a_mask()) return pattern;
  throw Error(path.string() + ": holds a score per head, not a mask: say with sparsity what share to make local");
}

}  // namespace

ModelShape shape_of(py::handle object) {
  return {text_of(object.attr("type"), "the model's type"), integer_of(object.attr("layers"), "layers"),
          integer_of(object.attr("kv_heads"), "kv_heads"), integer_of(object.attr("query_heads"), "query_heads"),
          integer_of(object.attr("head_dim"), "head_dim")};
}

Pattern pattern_of(py::handle object) {
  Pattern pattern;
  pattern.model = shape_of(object.attr("model"));
  pattern.sink = integer_of(object.attr("sink"), "sink");
  pattern.window = integer_of(object.attr("window"), "window");
  pattern.sparsity = sparsity_of(object.attr("sparsity"));
  pattern.scores = scores_of(object.attr("scores"), pattern.model);
  pattern.mask = mask_of(object.attr("mask"), pattern.model);
  pattern.provenance = provenance_of(object.attr("provenance"));
  return pattern;
}

py::object to_python(const Pattern& pattern) { return python_class("Pattern")(**fields_of(pattern)); }

py::object to_python(const ModelShape& shape) {
  return python_class("ModelShape")(text_to_python(shape.type), shape.layers, shape.kv_heads, shape.query_heads,
                                    shape.head_dim);
}

bool is_instance(py::handle object, const char* name) { return py::isinstance(object, python_class(name)); }

void bind_pattern(py::module_& m) {
  m.def("global_heads", &global_heads, py::arg("sparsity"), py::arg("heads"),
        "How many of `heads` stay global: round((1 - sparsity) * heads) in double arithmetic, to nearest, halves away "
        "from zero.");
  m.def("checked_fields", &checked_fields);
  m.def("from_scores", &from_scores);
  m.def("import_head_table", &from_table);
  m.def("load", &Pattern::load);
  m.def("save", &Pattern::save);
  m.def("save_json", &Pattern::save_json);
  m.def("check_fits", [](const Pattern& pattern, const ModelShape& model) { pattern.check_fits(model); });
  m.def("mask_table", &mask_table);
  m.def("mask_map", &mask_map);
}

}  // namespace prulong::python
