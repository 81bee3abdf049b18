// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "engine/kv_cache.h"
#include "model/llama.h"

namespace prulong {

/// Computes one new token of each of some sequences. On GPUs where attention waits for nothing on the device, a step
/// over as many sequences as the one before is captured as a CUDA graph and replayed from then on: otherwise the host,
/// which has to launch some hundred kernels, would be slower than the device.
class Decoder {
 public:
  /// @param model, cache  outlive this object.
  Decoder(const Llama& model, KvCache& cache);
  ~Decoder();

  /// Books tokens[i] as the next token of sequences[i] and runs the model over them.
  /// @returns [B, vocab_size] logits on the model's device; the next call may overwrite them.
  /// @throws Error as KvCache::append, and whatever computing throws; then drop these sequences.
  at::Tensor step(const std::vector<int64_t>& tokens, const std::vector<KvCache::Sequence>& sequences);

  /// Graphs captured and replays so far.
  int64_t captures() const { return captures_; }
  int64_t replays() const { return replays_; }

 private:
  /// What a pass reads, at fixed addresses.
  struct Inputs {
    at::Tensor tokens, positions;
    CacheStep step;
  };
  struct Graph;

  at::Tensor run(const Inputs& inputs) const;
  std::unique_ptr<Graph> capture(const Inputs& inputs) const;

  const Llama& model_;
  KvCache& cache_;
  std::map<int64_t, std::unique_ptr<Graph>> graphs_;  // by batch size
  bool can_capture_;
  int64_t last_batch_ = 0, captures_ = 0, replays_ = 0;
};

}  // namespace prulong
