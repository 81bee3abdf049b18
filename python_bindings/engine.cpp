// SPDX-License-Identifier: MIT
// The engine, by token ids: text is Python's (prulong/engine.py).
#include "engine/engine.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <memory>
#include <utility>

#include "common/error.h"
#include "engine/sampling.h"
#include "model/open_model.h"
#include "model/options.h"
#include "python_bindings/bindings.h"
#include "python_bindings/pattern_caster.h"

namespace py = pybind11;

namespace prulong::python {
namespace {

template <class Choice>
Choice choice_of(const std::string& name, const std::string& value,
                 std::initializer_list<std::pair<const char*, Choice>> known) {
  std::string allowed;
  for (const auto& [word, choice] : known) {
    if (value == word) return choice;
    allowed += (allowed.empty() ? "" : ", ") + std::string(word);
  }
  throw Error(name + ": expected one of " + allowed + ", found " + value);
}

std::unique_ptr<Engine> make_engine(const std::filesystem::path& model, const std::optional<Pattern>& pattern,
                                    const std::string& dtype, const std::string& device, int64_t tokens_per_step,
                                    int64_t max_sequences, double kv_gib, bool allow_beyond_positions) {
  ModelOptions options;
  options.path = model.string();
  options.dtype = choice_of<ModelDtype>(
      "dtype", dtype,
      {{"auto", ModelDtype::kAuto}, {"float32", ModelDtype::kFloat32}, {"bfloat16", ModelDtype::kBfloat16}});
  options.device = choice_of<ModelDevice>(
      "device", device, {{"auto", ModelDevice::kAuto}, {"cpu", ModelDevice::kCpu}, {"cuda", ModelDevice::kCuda}});
  const py::gil_scoped_release unlocked;
  return std::make_unique<Engine>(open_model(options), pattern,
                                  EngineOptions{.tokens_per_step = tokens_per_step,
                                                .max_sequences = max_sequences,
                                                .kv_gib = kv_gib,
                                                .allow_beyond_positions = allow_beyond_positions});
}

Sampling sampling_of(int64_t max_new_tokens, double temperature, int64_t top_k, double top_p, double repetition_penalty,
                     int64_t seed, std::vector<int64_t> stop_tokens, std::vector<std::vector<int64_t>> stop_sequences) {
  return {.max_new_tokens = max_new_tokens,
          .temperature = temperature,
          .top_k = top_k,
          .top_p = top_p,
          .repetition_penalty = repetition_penalty,
          .seed = seed,
          .stop_tokens = std::move(stop_tokens),
          .stop_sequences = std::move(stop_sequences)};
}

const char* reason_name(const Generation& generation) {
  switch (generation.reason) {
    case FinishReason::kLength:
      return "length";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kCancelled:
      break;
  }
  return "cancelled";
}

/// (tokens [(id, token)], finished), for Python to unpack.
std::pair<std::vector<std::pair<int64_t, int64_t>>, std::vector<Generation>> step(Engine& engine) {
  const py::gil_scoped_release unlocked;
  StepResult result = engine.step();
  std::vector<std::pair<int64_t, int64_t>> tokens;
  for (const auto& [id, token] : result.tokens) tokens.emplace_back(id, token);
  return {std::move(tokens), std::move(result.finished)};
}

py::dict stats_of(const Engine& engine) {
  const EngineStats& stats = engine.stats();
  py::dict result;
  result["prompt_tokens"] = stats.prompt_tokens;
  result["decoded_tokens"] = stats.decoded_tokens;
  result["new_tokens"] = stats.new_tokens;
  result["prompt_seconds"] = stats.prompt_seconds;
  result["decode_seconds"] = stats.decode_seconds;
  result["peak_kv_bytes"] = stats.peak_kv_bytes;
  result["peak_full_kv_bytes"] = stats.peak_full_kv_bytes;
  result["allocated_kv_bytes"] = engine.cache().bytes().allocated;
  return result;
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<Sampling>(m, "Sampling")
      .def(py::init(&sampling_of), py::kw_only(), py::arg("max_new_tokens"), py::arg("temperature"), py::arg("top_k"),
           py::arg("top_p"), py::arg("repetition_penalty"), py::arg("seed"), py::arg("stop_tokens"),
           py::arg("stop_sequences"));
  py::class_<Generation>(m, "Generation")
      .def_readonly("id", &Generation::id)
      .def_readonly("prompt_tokens", &Generation::prompt_tokens)
      .def_readonly("tokens", &Generation::tokens)
      .def_property_readonly("reason", &reason_name);
  py::class_<Engine>(m, "Engine")
      .def(py::init(&make_engine), py::arg("model"), py::arg("pattern"), py::kw_only(), py::arg("dtype"),
           py::arg("device"), py::arg("tokens_per_step"), py::arg("max_sequences"), py::arg("kv_gib"),
           py::arg("allow_beyond_positions"))
      .def("submit", &Engine::submit, py::arg("prompt"), py::arg("sampling"))
      .def("step", &step)
      .def("cancel", &Engine::cancel, py::arg("id"))
      .def_property_readonly("busy", &Engine::busy)
      .def_property_readonly("running", &Engine::running)
      .def_property_readonly("waiting", &Engine::waiting)
      .def("stats", &stats_of)
      .def("reset_stats", &Engine::reset_stats);
  m.def("stop_tokens_of", &stop_tokens_of, py::arg("model_folder"));
}

}  // namespace prulong::python
