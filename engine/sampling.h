// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace prulong {

/// How a request's tokens are chosen, and when it ends.
struct Sampling {
  int64_t max_new_tokens = 128;   ///< >= 1
  double temperature = 0;         ///< >= 0; 0: always the likeliest token
  int64_t top_k = 0;              ///< among so many likeliest tokens; 0: all
  double top_p = 1;               ///< in (0, 1]: among the fewest likeliest ones that together have this probability
  double repetition_penalty = 1;  ///< > 0; logits of tokens seen before are divided by it (multiplied, if negative)
  int64_t seed = 0;               ///< >= 0
  std::vector<int64_t> stop_tokens = {};                  ///< each ends the request, as its last token
  std::vector<std::vector<int64_t>> stop_sequences = {};  ///< none empty; each ends it, as its last tokens
};

/// @throws Error naming the member that is out of range, or a stop token outside the vocabulary.
void check_sampling(const Sampling& sampling, int64_t vocab_size);

/// Chooses a token. Penalty, temperature, top_k and top_p act in this order, as in transformers. The random number is
/// a function of (seed, index), so a request's tokens depend on nothing but its own logits.
/// @param logits  [vocab_size], changed.
/// @param seen    the request's tokens so far, prompt included; all in the vocabulary.
/// @param index   how many tokens were chosen before, in [0, 2^32).
/// @throws Error if no logit is finite or one is NaN.
int64_t sample_token(std::span<float> logits, const Sampling& sampling, std::span<const int64_t> seen, int64_t index);

/// @throws Error unless a row's largest logit is finite.
void check_maximum(float largest);

/// Whether a request whose chosen tokens are these has met one of its stop tokens or sequences.
bool meets_stop(const Sampling& sampling, std::span<const int64_t> chosen);

}  // namespace prulong
