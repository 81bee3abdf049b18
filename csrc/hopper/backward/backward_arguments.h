// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/backward/backward.h"
#include "csrc/hopper/backward/backward_rows.h"
#include "csrc/hopper/device/copy.h"

namespace prulong::kernels {

/// What a CTA of the main kernel gets. Boxes of the maps: q and dout {64, backward_tile_rows}, k and v {64, kKeyBlock}.
struct BackwardArguments {
  device::TensorMap q, dout, k, v;
  Schedule schedule;
  float scale;              // of raw scores; positive
  const float* statistics;  // see backward_steps.h
  float* dq_sums;
  int* additions;  // to the halves of tiles of dq_sums so far, if they are to come in a fixed order; else null
  void *dk, *dv;   // [tokens, kv heads, head_dim] of 16 bits, dense
};

inline BackwardRows make_backward_rows(const BackwardParams& p) {
  const BackwardScratch scratch = backward_scratch(p.schedule.batch);
  float* const memory = static_cast<float*>(p.scratch);
  return {p.schedule.batch,
          p.schedule.state,
          p.dout,
          p.out,
          p.delta,
          p.lse_global,
          p.lse_local,
          p.scale,
          memory + scratch.statistics,
          memory + scratch.dq_sums,
          memory + scratch.dgate_parts,
          p.deterministic ? reinterpret_cast<int*>(memory + scratch.additions) : nullptr,
          p.dq,
          p.dgate};
}

/// Returns null, or what is wrong with a tensor.
inline const char* make_backward_arguments(const BackwardParams& p, BackwardArguments* arguments) {
  const BackwardScratch scratch = backward_scratch(p.schedule.batch);
  const int rows = backward_tile_rows(p.schedule.batch.head_dim);
  float* const memory = static_cast<float*>(p.scratch);
  arguments->schedule = p.schedule;
  arguments->scale = p.scale;
  arguments->statistics = memory + scratch.statistics;
  arguments->dq_sums = memory + scratch.dq_sums;
  arguments->additions = p.deterministic ? reinterpret_cast<int*>(memory + scratch.additions) : nullptr;
  arguments->dk = p.dk;
  arguments->dv = p.dv;
  if (const char* fault = make_tensor_map(p.q, rows, &arguments->q)) return fault;
  if (const char* fault = make_tensor_map(p.dout, rows, &arguments->dout)) return fault;
  if (const char* fault = make_tensor_map(p.k, kKeyBlock, &arguments->k)) return fault;
  return make_tensor_map(p.v, kKeyBlock, &arguments->v);
}

}  // namespace prulong::kernels
