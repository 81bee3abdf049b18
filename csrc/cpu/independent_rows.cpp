// SPDX-License-Identifier: MIT
#include "csrc/cpu/independent_rows.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "csrc/cpu/row_functions.h"
#include "csrc/cpu/row_products.h"

namespace prulong::independent {
namespace {

constexpr int64_t kGrain = 32768;  // multiplications or values that are worth waking a thread for

/// Calls body(begin, end) for ranges of rows of so many values each, in threads.
template <typename Body>
void for_rows(int64_t rows, int64_t values, const Body& body) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(values, 1)), body);
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const auto from = x.expect_contiguous(), w = weight.expect_contiguous();
  const at::Tensor offset = bias.defined() ? bias.contiguous() : bias;
  at::Tensor out = at::empty({x.size(0), weight.size(0)}, x.options());
  const RowProducts product = {from->const_data_ptr<float>(),
                               w->const_data_ptr<float>(),
                               offset.defined() ? offset.const_data_ptr<float>() : nullptr,
                               out.mutable_data_ptr<float>(),
                               x.size(0),
                               weight.size(0),
                               x.size(1)};
  // One line of units: the panels of the first rows, then those of the next.
  constexpr int64_t kRows = 256;
  const int64_t panels = (product.outputs + kOutputPanel - 1) / kOutputPanel;
  const int64_t units = (product.rows + kRows - 1) / kRows * panels;
  for_rows(units, std::min(kRows, product.rows) * kOutputPanel * product.depth, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin / panels * kRows, first = begin % panels;
      const int64_t count = std::min(end - begin, panels - first);
      row_products(widest_isa(), product, row, std::min(row + kRows, product.rows), first * kOutputPanel,
                   std::min((first + count) * kOutputPanel, product.outputs));
      begin += count;
    }
  });
  return out;
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const auto from = x.expect_contiguous(), scale = weight.expect_contiguous();
  at::Tensor out = at::empty(x.sizes(), x.options());
  const int64_t columns = x.size(1);
  const float *const in = from->const_data_ptr<float>(), *const by = scale->const_data_ptr<float>();
  float* const to = out.mutable_data_ptr<float>();
  for_rows(x.size(0), columns, [&](int64_t begin, int64_t end) {
    rms_norm_rows(widest_isa(), in + begin * columns, by, static_cast<float>(eps), to + begin * columns, end - begin,
                  columns);
  });
  return out;
}

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  const auto from = gate.expect_contiguous(), by = up.expect_contiguous();
  at::Tensor out = at::empty(gate.sizes(), gate.options());
  const float *const g = from->const_data_ptr<float>(), *const u = by->const_data_ptr<float>();
  float* const to = out.mutable_data_ptr<float>();
  at::parallel_for(0, gate.numel(), kGrain / 4, [&](int64_t begin, int64_t end) {
    swiglu_values(widest_isa(), g + begin, u + begin, to + begin, end - begin);
  });
  return out;
}

at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto from = x.expect_contiguous(), c = cos.expect_contiguous(), s = sin.expect_contiguous();
  at::Tensor out = at::empty(x.sizes(), x.options());
  const int64_t heads = x.size(1), half = x.size(2) / 2, values = heads * x.size(2);
  const float* const in = from->const_data_ptr<float>();
  const float *const cosines = c->const_data_ptr<float>(), *const sines = s->const_data_ptr<float>();
  float* const to = out.mutable_data_ptr<float>();
  for_rows(x.size(0), values, [&](int64_t begin, int64_t end) {
    rotate_rows(widest_isa(), in + begin * values, cosines + begin * half, sines + begin * half, to + begin * values,
                end - begin, heads, half);
  });
  return out;
}

std::pair<at::Tensor, at::Tensor> rope_table(const at::Tensor& frequencies, const at::Tensor& positions) {
  const auto from = positions.expect_contiguous(), by = frequencies.expect_contiguous();
  const int64_t half = frequencies.size(0);
  std::pair<at::Tensor, at::Tensor> table;
  table.first = at::empty({positions.size(0), 1, half}, positions.options());
  table.second = at::empty(table.first.sizes(), positions.options());
  const float *const position = from->const_data_ptr<float>(), *const frequency = by->const_data_ptr<float>();
  float *const cos = table.first.mutable_data_ptr<float>(), *const sin = table.second.mutable_data_ptr<float>();
  constexpr int64_t kSteps = 32;  // as long as so many multiplications: a sine or cosine
  for_rows(positions.size(0), half * kSteps, [&](int64_t begin, int64_t end) {
    rope_rows(position + begin, frequency, cos + begin * half, sin + begin * half, end - begin, half);
  });
  return table;
}

}  // namespace prulong::independent
