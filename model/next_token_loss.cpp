// SPDX-License-Identifier: MIT
#include <ATen/ops/_softmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <string>

#include "common/error.h"
#include "model/layer_functions.h"
#include "model/llama.h"

namespace prulong {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kIgnored = -100;

std::string shape_of(const at::Tensor& tensor) {
  std::string text = "[";
  for (const int64_t size : tensor.sizes()) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "] " + c10::toString(tensor.scalar_type());
}

void check_head(const char* who, const at::Tensor& hidden, const at::Tensor& head, int64_t chunk) {
  if (hidden.dim() != 2 || head.dim() != 2 || hidden.size(1) != head.size(1) ||
      !at::isFloatingType(hidden.scalar_type()) || hidden.scalar_type() != head.scalar_type()) {
    throw Error(std::string(who) +
                ": expected hidden [T, hidden_size] and head [vocab_size, hidden_size] of one floating " +
                "dtype, found " + shape_of(hidden) + " and " + shape_of(head));
  }
  if (chunk < 1) throw Error(std::string(who) + ": chunk must be at least 1, found " + std::to_string(chunk));
}

/// Rows that have a label, [n] int64.
at::Tensor labelled_rows(const at::Tensor& hidden, const at::Tensor& labels, int64_t vocab_size) {
  if (labels.dim() != 1 || labels.scalar_type() != at::kLong || labels.size(0) != hidden.size(0)) {
    throw Error("next_token_loss: expected labels [" + std::to_string(hidden.size(0)) + "] Long, found " +
                shape_of(labels));
  }
  const at::Tensor wrong = (labels.ne(kIgnored)).logical_and_(labels.lt(0).logical_or_(labels.ge(vocab_size)));
  if (wrong.any().item<bool>()) {
    const int64_t row = wrong.nonzero()[0].item<int64_t>();
    throw Error("next_token_loss: label " + std::to_string(labels[row].item<int64_t>()) + " at position " +
                std::to_string(row) + " is neither -100 (ignored) nor in the vocabulary of " +
                std::to_string(vocab_size));
  }
  return labels.ne(kIgnored).nonzero().flatten();
}

struct NextTokenLoss : torch::autograd::Function<NextTokenLoss> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& hidden, const at::Tensor& head,
                            const at::Tensor& labels, const at::Tensor& rows, int64_t chunk, bool want_hidden,
                            bool want_head) {
    const at::ScalarType product = matmul_dtype(hidden);
    const at::ScalarType statistic = product == at::kDouble ? at::kDouble : at::kFloat;
    const int64_t count = rows.size(0), vocab_size = head.size(0);
    const bool all_rows = count == hidden.size(0);
    const at::Tensor wide_head = head.to(product);

    at::Tensor loss = at::zeros({}, hidden.options().dtype(statistic));
    at::Tensor dhidden, dhead;
    if (want_hidden) dhidden = at::zeros(hidden.sizes(), hidden.options());
    if (want_head) dhead = at::zeros(head.sizes(), head.options().dtype(statistic));
    // Two buffers for all chunks: fresh pages for tens of megabytes cost as much as the softmax.
    const at::Tensor logits_buffer = at::empty({std::min(chunk, count), vocab_size}, hidden.options().dtype(product));
    const at::Tensor share_buffer = at::empty(logits_buffer.sizes(), hidden.options().dtype(statistic));

    for (int64_t begin = 0; begin < count; begin += chunk) {
      const int64_t size = std::min(chunk, count - begin);
      const at::Tensor index = rows.narrow(0, begin, size);
      const at::Tensor label = labels.index_select(0, index).unsqueeze_(1);
      const at::Tensor h = (all_rows ? hidden.narrow(0, begin, size) : hidden.index_select(0, index)).to(product);
      at::Tensor logits = logits_buffer.narrow(0, 0, size);
      at::mm_out(logits, h, wide_head.t());
      const at::Tensor scores = logits.to(statistic);
      at::Tensor share = share_buffer.narrow(0, 0, size);
      at::_softmax_out(share, scores, 1, /*half_to_float=*/false);
      // log sum exp from the largest entry: its share is at least 1 / vocab_size, so the logarithm loses nothing.
      loss.add_(scores.amax(1).sub_(share.amax(1).log_()).sub_(scores.gather(1, label).squeeze_(1)).sum());
      if (!want_hidden && !want_head) continue;
      share.scatter_add_(1, label, at::ones_like(label, share.options()).neg_());
      const at::Tensor dlogits = share.to(product);
      if (want_hidden) {
        const at::Tensor dh = at::mm(dlogits, wide_head).to(hidden.scalar_type());
        if (all_rows) {
          dhidden.narrow(0, begin, size).copy_(dh);
        } else {
          dhidden.index_copy_(0, index, dh);
        }
      }
      if (want_head) dhead.add_(at::mm(dlogits.t(), h));
    }
    ctx->save_for_backward({dhidden, want_head ? dhead.to(head.scalar_type()) : dhead});
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto times = [&](const at::Tensor& gradient) {
      return gradient.defined() ? gradient.mul(grads[0]).to(gradient.scalar_type()) : gradient;
    };
    variable_list result(7);
    result[0] = times(saved[0]);
    result[1] = times(saved[1]);
    return result;
  }
};

}  // namespace

at::Tensor next_token_loss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& labels, int64_t chunk,
                           const at::Tensor& known_rows) {
  check_head("next_token_loss", hidden, head, chunk);
  const at::Tensor rows = known_rows.defined() ? known_rows : labelled_rows(hidden, labels, head.size(0));
  const bool recording = c10::GradMode::is_enabled();
  return NextTokenLoss::apply(hidden, head, labels, rows, chunk, recording && hidden.requires_grad(),
                              recording && head.requires_grad());
}

at::Tensor greedy_tokens(const at::Tensor& hidden, const at::Tensor& head, int64_t chunk) {
  check_head("greedy_tokens", hidden, head, chunk);
  const c10::NoGradGuard no_grad;
  const at::Tensor wide_head = head.to(matmul_dtype(hidden));
  at::Tensor tokens = at::empty({hidden.size(0)}, hidden.options().dtype(at::kLong));
  for (int64_t begin = 0; begin < hidden.size(0); begin += chunk) {
    const int64_t size = std::min(chunk, hidden.size(0) - begin);
    const at::Tensor h = hidden.narrow(0, begin, size).to(wide_head.scalar_type());
    tokens.narrow(0, begin, size).copy_(at::mm(h, wide_head.t()).argmax(1));
  }
  return tokens;
}

}  // namespace prulong
