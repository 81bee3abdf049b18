// SPDX-License-Identifier: MIT
#include "model/row_functions.h"

#include <c10/core/GradMode.h>

#include "csrc/cpu/independent_rows.h"
#include "model/layer_functions.h"

namespace prulong {
namespace {

at::Tensor rotate_independently(const at::Tensor& x, const RopeTable& table) {
  return independent::rope(x, table.cos, table.sin);
}

RopeTable independent_rope_table(const at::Tensor& frequencies, const at::Tensor& positions, at::ScalarType /*dtype*/) {
  auto [cos, sin] = independent::rope_table(frequencies, positions);
  return {cos, sin};
}

constexpr RowFunctions kDifferentiable = {linear, rms_norm, swiglu, rotate, rope_table};
constexpr RowFunctions kIndependent = {independent::linear, independent::rms_norm, independent::swiglu,
                                       rotate_independently, independent_rope_table};

}  // namespace

const RowFunctions& row_functions(const at::Tensor& x, bool independent) {
  const bool possible = x.is_cpu() && x.scalar_type() == at::kFloat && !c10::GradMode::is_enabled();
  return independent && possible ? kIndependent : kDifferentiable;
}

}  // namespace prulong
