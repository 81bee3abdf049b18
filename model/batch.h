// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "common/sequence.h"
#include "model/llama.h"

namespace prulong {

/// A sequence as the model takes it.
struct Batch {
  PackedTokens input;
  at::Tensor labels;  ///< [T] int64: the next token of the same document, -100 where there is none or it is not wanted
  at::Tensor label_rows;  ///< [label_count] int64: where there is a label
  at::Tensor is_answer;   ///< [T] bool: the label is part of an answer; undefined when the source has no answers
  int64_t label_count = 0;
};

/// @param vocab_size    of the model: other ids are refused here, on the host.
/// @param answers_only  labels only where the next token is part of an answer.
/// @throws Error if answers are wanted and the sequence has none, or a token is outside the vocabulary.
Batch make_batch(const Sequence& sequence, int64_t vocab_size, bool answers_only, at::Device device);

}  // namespace prulong
