// SPDX-License-Identifier: MIT
#include "eval/held_out.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/nonzero.h>

#include "common/stop.h"
#include "model/batch.h"

namespace prulong {
namespace {

/// Counts answers (runs of answer tokens) and how many are right throughout.
void count_answers(const at::Tensor& is_answer, const at::Tensor& right_rows, EvalResult& result, int64_t& right_tokens,
                   int64_t& right_answers) {
  const auto flags = is_answer.cpu(), right = right_rows.cpu();
  const bool* const flag = flags.const_data_ptr<bool>();
  const bool* const row_right = right.const_data_ptr<bool>();
  int64_t row = 0;
  bool inside = false, all_right = false;
  for (int64_t t = 0; t <= flags.numel(); ++t) {
    const bool now = t < flags.numel() && flag[t];
    if (now && !inside) all_right = true;
    if (now) {
      right_tokens += row_right[row];
      all_right = all_right && row_right[row];
      ++row;
    }
    if (!now && inside) {
      ++result.answers;
      right_answers += all_right;
    }
    inside = now;
  }
  result.answer_tokens += row;
}

}  // namespace

EvalResult evaluate(const Llama& model, const Source& source, int64_t first, int64_t count, const HeadMask& mask,
                    bool answers_only, int64_t loss_chunk) {
  const at::NoGradGuard no_grad;
  EvalResult result;
  double loss = 0;
  int64_t right_tokens = 0, right_answers = 0;
  for (int64_t n = first; n < first + count; ++n) {
    check_stop();
    const Batch batch = make_batch(source.sequence(n), model.config().vocab_size, answers_only, model.device());
    const auto hidden = model.forward(batch.input, mask);
    loss += next_token_loss(hidden, model.head_weight(), batch.labels, loss_chunk, batch.label_rows).item<double>();
    result.labels += batch.label_count;
    ++result.sequences;
    if (!batch.is_answer.defined()) continue;
    const auto rows = at::nonzero(batch.is_answer).squeeze(1);
    const auto guesses = greedy_tokens(hidden.index_select(0, rows), model.head_weight(), loss_chunk);
    count_answers(batch.is_answer, guesses.eq(batch.labels.index_select(0, rows)), result, right_tokens, right_answers);
  }
  if (result.labels > 0) result.loss_nats = loss / static_cast<double>(result.labels);
  if (result.answer_tokens > 0) {
    result.answer_accuracy = static_cast<double>(right_tokens) / static_cast<double>(result.answer_tokens);
    result.answer_exact = static_cast<double>(right_answers) / static_cast<double>(result.answers);
  }
  return result;
}

}  // namespace prulong
