// SPDX-License-Identifier: MIT
// The cache and attention over it, for hosts that run the model themselves.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <utility>

#include "engine/cached_attention.h"
#include "engine/kv_cache.h"
#include "model/recompute.h"
#include "python_bindings/bindings.h"

namespace py = pybind11;

namespace prulong::python {
namespace {

std::shared_ptr<KvCache> make_cache(int64_t layers, int64_t kv_heads, int64_t head_dim, std::vector<uint8_t> is_global,
                                    int64_t sink, int64_t window, int64_t slack, int64_t page, int64_t bytes,
                                    at::ScalarType dtype, at::Device device) {
  KvCacheOptions options;
  options.layers = layers;
  options.kv_heads = kv_heads;
  options.head_dim = head_dim;
  options.is_global = std::move(is_global);
  options.sink = sink;
  options.window = window;
  options.slack = slack;
  options.page = page;
  options.bytes = bytes;
  options.dtype = dtype;
  options.device = device;
  return std::make_shared<KvCache>(options);
}

at::Tensor attend(CachedAttention& attention, int64_t layer, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v) {
  const py::gil_scoped_release unlocked;
  RecomputeState once;
  return attention.attend(layer, q, k, v, once);
}

py::dict bytes_of(const KvCache& cache) {
  const KvCache::Bytes bytes = cache.bytes();
  py::dict result;
  result["allocated"] = bytes.allocated;
  result["in_use"] = bytes.in_use;
  result["peak"] = bytes.peak;
  return result;
}

}  // namespace

void bind_kv_cache(py::module_& m) {
  py::class_<CachedAttention>(m, "CachedAttention")
      .def("attend", &attend, py::arg("layer"), py::arg("q"), py::arg("k"), py::arg("v"));
  py::class_<KvCache, std::shared_ptr<KvCache>>(m, "KvCache")
      .def(py::init(&make_cache), py::kw_only(), py::arg("layers"), py::arg("kv_heads"), py::arg("head_dim"),
           py::arg("is_global"), py::arg("sink"), py::arg("window"), py::arg("slack"), py::arg("page"),
           py::arg("bytes"), py::arg("dtype"), py::arg("device"))
      .def("add", &KvCache::add)
      .def("fork", &KvCache::fork, py::arg("sequence"))
      .def("drop", &KvCache::drop, py::arg("sequence"))
      .def(
          "append",
          [](KvCache& cache, const std::vector<KvCache::Sequence>& sequences, const std::vector<int64_t>& counts,
             double scale) { return std::make_unique<CachedAttention>(cache, cache.append(sequences, counts), scale); },
          py::arg("sequences"), py::arg("counts"), py::arg("scale") = 0.0, py::keep_alive<0, 1>())
      .def("truncate", &KvCache::truncate, py::arg("sequence"), py::arg("tokens"))
      .def("keep", &KvCache::keep, py::arg("layer"), py::arg("sequence"), py::arg("head"), py::arg("places"))
      .def("tokens", &KvCache::tokens, py::arg("sequence"))
      .def(
          "entries", [](const KvCache& cache, KvCache::Sequence sequence) { return cache.entries(sequence); },
          py::arg("sequence"))
      .def("bytes", &bytes_of)
      .def("trim", &KvCache::trim);
}

}  // namespace prulong::python
