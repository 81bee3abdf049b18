// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "model/llama.h"
#include "parallel/mesh.h"
#include "trainer/data/source.h"

namespace prulong {

/// What a model does on held-out sequences under given head mask, every token predicted from the true ones before it.
struct EvalResult {
  int64_t sequences = 0;
  int64_t labels = 0;
  double loss_nats = 0;        ///< mean cross entropy per label
  int64_t answer_tokens = 0;   ///< 0 when the source has no answers
  double answer_accuracy = 0;  ///< share of answer tokens that are the most likely ones
  int64_t answers = 0;
  double answer_exact = 0;  ///< share of answers all of whose tokens are: greedy decoding would write them
};

/// @param first, count  which sequences of the source.
/// @param answers_only  measure the loss on answer tokens alone: the cheap way when only recall is asked for.
/// @param loss_chunk    rows of logits that exist at one time.
/// @param mesh          whose ranks share the sequences; all of them get the result, the same to the bit for any number
///                      of ranks whose passes are.
/// @throws Stopped when a stop is requested of any rank.
EvalResult evaluate(const Llama& model, const Source& source, int64_t first, int64_t count, const HeadMask& mask,
                    bool answers_only, int64_t loss_chunk, const Mesh& mesh = Mesh());

}  // namespace prulong
