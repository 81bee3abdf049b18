// SPDX-License-Identifier: MIT
#include "model/batch.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include "common/error.h"

namespace prulong {
namespace {

constexpr int64_t kIgnored = -100;

}  // namespace

Batch make_batch(const Sequence& sequence, int64_t vocab_size, bool answers_only, at::Device device) {
  const auto length = static_cast<int64_t>(sequence.tokens.size());
  const bool has_answers = !sequence.is_answer.empty();
  if (answers_only && !has_answers) {
    throw Error(
        "train.loss_tokens: answers needs a source with answers, found one without; use type: recall, or loss_tokens: "
        "all");
  }
  auto tokens = at::empty({length}, at::kLong), labels = at::empty({length}, at::kLong);
  auto answers = at::empty({has_answers ? length : 0}, at::kBool);
  auto* const token = tokens.mutable_data_ptr<int64_t>();
  auto* const label = labels.mutable_data_ptr<int64_t>();
  auto* const answer = has_answers ? answers.mutable_data_ptr<bool>() : nullptr;
  Batch batch;
  for (size_t d = 0; d + 1 < sequence.cu_seqlens.size(); ++d) {
    const int64_t begin = sequence.cu_seqlens[d], end = sequence.cu_seqlens[d + 1];
    for (int64_t t = begin; t < end; ++t) {
      const auto next = static_cast<size_t>(t) + 1;
      token[t] = sequence.tokens[static_cast<size_t>(t)];
      const bool in_answer = t + 1 < end && has_answers && sequence.is_answer[next] != 0;
      if (answer) answer[t] = in_answer;
      const bool wanted = t + 1 < end && (in_answer || !answers_only);
      label[t] = wanted ? sequence.tokens[next] : kIgnored;
      batch.label_count += wanted;
    }
  }
  check_tokens(tokens, vocab_size);
  batch.label_rows = labels.ne(kIgnored).nonzero().flatten().to(device);
  batch.input = PackedTokens::documents(tokens.to(device), sequence.cu_seqlens);
  batch.labels = labels.to(device);
  if (has_answers) batch.is_answer = answers.to(device);
  return batch;
}

}  // namespace prulong
