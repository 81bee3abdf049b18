// SPDX-License-Identifier: MIT
#include "eval/held_out.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "common/stop.h"
#include "model/batch.h"
#include "parallel/agreement.h"

namespace prulong {
namespace {

/// Sums over sequences, exact but for the loss.
enum Sum { kLoss, kLabels, kAnswerTokens, kRightTokens, kAnswers, kRightAnswers, kSums };
using Sums = std::array<double, kSums>;

/// Counts answers (runs of answer tokens) and how many are right throughout.
void count_answers(const at::Tensor& is_answer, const at::Tensor& right_rows, Sums& sums) {
  const auto flags = is_answer.cpu(), right = right_rows.cpu();
  const bool* const flag = flags.const_data_ptr<bool>();
  const bool* const row_right = right.const_data_ptr<bool>();
  int64_t row = 0;
  bool inside = false, all_right = false;
  for (int64_t t = 0; t <= flags.numel(); ++t) {
    const bool now = t < flags.numel() && flag[t];
    if (now && !inside) all_right = true;
    if (now) {
      sums[kRightTokens] += row_right[row];
      all_right = all_right && row_right[row];
      ++row;
    }
    if (!now && inside) {
      sums[kAnswers] += 1;
      sums[kRightAnswers] += all_right;
    }
    inside = now;
  }
  sums[kAnswerTokens] += static_cast<double>(row);
}

Sums measure(const Llama& model, const Sequence& sequence, const HeadMask& mask, bool answers_only,
             int64_t loss_chunk) {
  Sums sums{};
  const Batch batch = make_batch(sequence, model.config().vocab_size, answers_only, model.device());
  const auto hidden = model.forward(batch.input, mask);
  sums[kLoss] = next_token_loss(hidden, model.head_weight(), batch.labels, loss_chunk, batch.label_rows).item<double>();
  sums[kLabels] = static_cast<double>(batch.label_count);
  if (!batch.is_answer.defined()) return sums;
  const auto rows = at::nonzero(batch.is_answer).squeeze(1);
  const auto guesses = greedy_tokens(hidden.index_select(0, rows), model.head_weight(), loss_chunk);
  count_answers(batch.is_answer, guesses.eq(batch.labels.index_select(0, rows)), sums);
  return sums;
}

}  // namespace

EvalResult evaluate(const Llama& model, const Source& source, int64_t first, int64_t count, const HeadMask& mask,
                    bool answers_only, int64_t loss_chunk, const Mesh& mesh) {
  const at::NoGradGuard no_grad;
  const RankGroup& ranks = mesh.world();
  const int64_t rounds = (count + ranks.size() - 1) / ranks.size();
  const at::Tensor own = at::zeros({rounds, kSums}, at::kDouble);
  for (int64_t round = 0; round < rounds; ++round) {
    if (any(ranks, stop_requested())) throw Stopped();
    const int64_t n = first + round * ranks.size() + ranks.rank();
    if (n >= first + count) continue;
    mesh.enter("held-out sequence " + std::to_string(n));
    const Sums sums = measure(model, source.sequence(n), mask, answers_only, loss_chunk);
    std::ranges::copy(sums, own.mutable_data_ptr<double>() + round * kSums);
  }
  mesh.enter("sums over held-out sequences");
  const at::Tensor all = ranks.all_gather(own);
  Sums sum{};
  for (int64_t i = 0; i < count; ++i) {  // in the order of sequences, for any number of ranks
    const double* const row = all.const_data_ptr<double>() + (i % ranks.size() * rounds + i / ranks.size()) * kSums;
    for (size_t value = 0; value < kSums; ++value) sum[value] += row[value];
  }
  EvalResult result;
  result.sequences = count;
  result.labels = std::llround(sum[kLabels]);
  result.answer_tokens = std::llround(sum[kAnswerTokens]);
  result.answers = std::llround(sum[kAnswers]);
  if (sum[kLabels] > 0) result.loss_nats = sum[kLoss] / sum[kLabels];
  if (sum[kAnswerTokens] > 0) {
    result.answer_accuracy = sum[kRightTokens] / sum[kAnswerTokens];
    result.answer_exact = sum[kRightAnswers] / sum[kAnswers];
  }
  return result;
}

}  // namespace prulong
