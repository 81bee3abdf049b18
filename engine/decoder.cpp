// SPDX-License-Identifier: MIT
#include "engine/decoder.h"

#include <ATen/cuda/CUDAGraph.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "csrc/ops/paged_attention.h"
#include "engine/cached_attention.h"

namespace prulong {
namespace {

/// A row of host numbers on a device.
template <class T>
at::Tensor on_device(const std::vector<T>& values, at::ScalarType dtype, at::Device device) {
  const auto count = static_cast<int64_t>(values.size());
  const at::Tensor host = at::empty({count}, at::TensorOptions(dtype).pinned_memory(device.is_cuda()));
  std::copy(values.begin(), values.end(), host.mutable_data_ptr<T>());
  return host.to(device, /*non_blocking=*/true);
}

/// Whether attention over the cache can be captured, of a step like any other.
bool never_waits(const KvCache& cache, int64_t query_heads) {
  const KvCacheOptions& options = cache.options();
  if (!options.device.is_cuda()) return false;
  const at::Tensor& pages = cache.k_pages();
  const auto ints = pages.options().dtype(at::kInt);
  return attends_without_waiting({at::empty({1, query_heads, options.head_dim}, pages.options()), pages,
                                  cache.v_pages(), at::empty({1, options.kv_heads, 1}, ints),
                                  at::empty({1, options.kv_heads}, ints), cache.is_global(0), at::empty({2}, ints), 1,
                                  options.sink, options.window, 1 / std::sqrt(static_cast<double>(options.head_dim))});
}

}  // namespace

/// A captured pass, for one batch size and page tables up to one width.
struct Decoder::Graph {
  Inputs inputs;
  at::Tensor table;  // the step's that inputs hold
  at::Tensor logits;
  at::cuda::CUDAGraph graph;

  int64_t batch() const { return inputs.tokens.size(0); }
  int64_t width() const { return inputs.step.page_table.size(3); }
};

Decoder::Decoder(const Llama& model, KvCache& cache)
    : model_(model), cache_(cache), can_capture_(never_waits(cache, model.config().query_heads)) {}
Decoder::~Decoder() = default;

at::Tensor Decoder::run(const Inputs& inputs) const {
  const auto attention = std::make_shared<CachedAttention>(cache_, inputs.step);
  return model_.logits(model_.forward(inputs.tokens, inputs.positions, attention), /*independent_rows=*/true);
}

std::unique_ptr<Decoder::Graph> Decoder::capture(const Inputs& inputs) const {
  auto graph = std::make_unique<Graph>();
  graph->inputs = inputs;
  graph->inputs.tokens = inputs.tokens.clone();
  graph->inputs.positions = inputs.positions.clone();
  graph->inputs.step.lengths = inputs.step.lengths.clone();
  graph->inputs.step.cu_seqlens_q = inputs.step.cu_seqlens_q.clone();
  // Room for lists to grow, since a wider table needs another graph.
  constexpr int64_t kRoom = 64;
  auto sizes = inputs.step.page_table.sizes().vec();
  sizes[3] = (sizes[3] + kRoom) / kRoom * kRoom;
  graph->inputs.step.page_table = at::zeros(sizes, inputs.step.page_table.options());
  c10::cuda::getCurrentCUDAStream().synchronize();
  const c10::cuda::CUDAStreamGuard on_stream(c10::cuda::getStreamFromPool());
  graph->graph.capture_begin();
  graph->logits = run(graph->inputs);
  graph->graph.capture_end();
  return graph;
}

at::Tensor Decoder::step(const std::vector<int64_t>& tokens, const std::vector<KvCache::Sequence>& sequences) {
  const at::Device device = model_.device();
  std::vector<float> places;
  for (const KvCache::Sequence sequence : sequences) places.push_back(static_cast<float>(cache_.tokens(sequence)));
  Inputs inputs = {on_device(tokens, at::kLong, device), on_device(places, at::kFloat, device),
                   cache_.append(sequences, std::vector<int64_t>(sequences.size(), 1))};
  const auto batch = static_cast<int64_t>(sequences.size());
  const int64_t width = inputs.step.page_table.size(3);
  const bool shared = std::any_of(inputs.step.copies.begin(), inputs.step.copies.end(),
                                  [](const auto& copies) { return !copies.empty(); });
  // The first step of its kind runs as it is: it also readies what a capture may not (handles, workspaces).
  const bool again = std::exchange(last_batch_, batch) == batch;
  std::unique_ptr<Graph>& graph = graphs_[batch];
  const bool ready = graph != nullptr && graph->width() >= width;
  if (shared || !can_capture_ || !(ready || again)) return run(inputs);

  const c10::cuda::CUDAGuard guard(device);
  if (!ready) {
    graph = capture(inputs);
    ++captures_;
  }
  graph->inputs.tokens.copy_(inputs.tokens);
  graph->inputs.positions.copy_(inputs.positions);
  graph->inputs.step.lengths.copy_(inputs.step.lengths);
  if (!graph->table.is_same(inputs.step.page_table)) {
    graph->table = inputs.step.page_table;
    graph->inputs.step.page_table.narrow(3, 0, width).copy_(inputs.step.page_table);
  }
  graph->graph.replay();
  ++replays_;
  return graph->logits;
}

}  // namespace prulong
