// SPDX-License-Identifier: MIT
#include "eval/advice.h"

#include <algorithm>

namespace prulong {

DocumentLengths first_documents(const Source& source, int64_t seq_len, int64_t most) {
  constexpr int64_t kTokens = int64_t{1} << 20, kSequences = 64;
  DocumentLengths lengths;
  const int64_t count = std::min({most, kSequences, std::max<int64_t>(1, kTokens / seq_len)});
  for (; lengths.sequences < count; ++lengths.sequences) {
    const Sequence sequence = source.sequence(lengths.sequences);
    for (size_t d = 0; d + 1 < sequence.cu_seqlens.size(); ++d) {
      lengths.longest = std::max<int64_t>(lengths.longest, sequence.cu_seqlens[d + 1] - sequence.cu_seqlens[d]);
    }
  }
  return lengths;
}

std::string position_advice(const std::string& what, int64_t tokens, const ModelConfig& model) {
  if (tokens <= model.max_positions) return "";
  return what + " of " + std::to_string(tokens) + " tokens go beyond the " + std::to_string(model.max_positions) +
         " positions that the model was made for (max_position_embeddings" +
         (model.rope.kind == RopeConfig::Kind::kLinear ? ", taken to include its linear RoPE scaling" : "") +
         "): what is measured or learned there means little; use shorter sequences";
}

std::vector<std::string> length_advice(const DocumentLengths& lengths, const ModelConfig& model, int64_t sink,
                                       int64_t window) {
  std::vector<std::string> advice;
  if (auto text = position_advice("documents", lengths.longest, model); !text.empty())
    advice.push_back(std::move(text));
  if (lengths.longest <= sink + window) {
    advice.push_back("no document of the first " + std::to_string(lengths.sequences) +
                     " sequences is longer than sink + window = " + std::to_string(sink + window) +
                     " tokens (the longest has " + std::to_string(lengths.longest) +
                     "): local heads see there what global ones see, and masks cannot depend on such data; use longer "
                     "documents, or a smaller window");
  }
  return advice;
}

}  // namespace prulong
