// SPDX-License-Identifier: MIT
#include "trainer/open_source.h"

#include "model/error.h"
#include "trainer/data/mixture.h"
#include "trainer/data/recall.h"
#include "trainer/data/token_folder.h"

namespace prulong {
namespace {

std::unique_ptr<Source> open_one(const SourceOptions& options, int64_t seq_len, int64_t seed, bool held_out) {
  if (options.type == SourceType::kTokens) return open_token_folder(options.path, seq_len, static_cast<uint64_t>(seed));
  RecallOptions recall;
  recall.kit = options.path;
  recall.eval_split = held_out;
  recall.tasks.clear();
  for (const RecallTask task : options.tasks) recall.tasks.emplace_back(name_of(task));
  recall.seq_len = seq_len;
  recall.statements = options.statements;
  recall.questions = options.questions;
  recall.seed = static_cast<uint64_t>(options.seed);
  return open_recall(recall);
}

}  // namespace

std::unique_ptr<Source> open_sources(const std::vector<SourceOptions>& sources, int64_t seq_len, int64_t seed,
                                     bool held_out, int64_t vocab_size) {
  std::vector<WeightedSource> opened;
  for (const SourceOptions& options : sources) {
    auto source = open_one(options, seq_len, seed, held_out);
    if (source->vocab_size() > vocab_size) {
      throw Error(options.path + ": made for a vocabulary of " + std::to_string(source->vocab_size()) +
                  " tokens, the model has " + std::to_string(vocab_size) +
                  "; prepare it with the model's own tokenizer");
    }
    opened.push_back({std::move(source), options.weight});
  }
  return mix_sources(std::move(opened));
}

}  // namespace prulong
