// SPDX-License-Identifier: MIT
#include "trainer/data/open_source.h"

#include <optional>

#include "trainer/data/flat_files.h"
#include "trainer/data/mds.h"
#include "trainer/data/mixture.h"
#include "trainer/data/recall.h"
#include "trainer/data/token_folder.h"

namespace prulong {
namespace {

/// As the readers know it; none for "unknown".
std::optional<IntegerType> integer_type(TokenType type) {
  switch (type) {
    case TokenType::kUint16:
      return IntegerType::kUint16;
    case TokenType::kUint32:
      return IntegerType::kUint32;
    case TokenType::kInt32:
      return IntegerType::kInt32;
    case TokenType::kInt64:
      return IntegerType::kInt64;
    case TokenType::kUnknown:
      break;
  }
  return std::nullopt;
}

std::unique_ptr<Source> open_one(const SourceOptions& options, int64_t seq_len, int64_t seed, bool held_out,
                                 int64_t vocab_size) {
  const auto order_seed = static_cast<uint64_t>(seed);
  switch (options.type) {
    case SourceType::kTokens:
      return open_token_folder(options.path, seq_len, order_seed, vocab_size);
    case SourceType::kMds:
      return open_mds({options.path, integer_type(options.dtype), vocab_size}, seq_len, order_seed);
    case SourceType::kNpy:
      return open_flat_files({options.path, std::nullopt, options.end_token, vocab_size}, seq_len, order_seed);
    case SourceType::kRaw:
      return open_flat_files({options.path, integer_type(options.dtype), options.end_token, vocab_size}, seq_len,
                             order_seed);
    case SourceType::kRecall:
      break;
  }
  RecallOptions recall;
  recall.kit = options.path;
  recall.held_out = held_out;
  recall.tasks.clear();
  for (const RecallTask task : options.tasks) recall.tasks.emplace_back(name_of(task));
  recall.seq_len = seq_len;
  recall.statements = options.statements;
  recall.questions = options.questions;
  recall.seed = static_cast<uint64_t>(options.seed);
  recall.vocab_size = vocab_size;
  return open_recall(recall);
}

}  // namespace

std::unique_ptr<Source> open_sources(const std::vector<SourceOptions>& sources, int64_t seq_len, int64_t seed,
                                     bool held_out, int64_t vocab_size) {
  std::vector<WeightedSource> opened;
  for (const SourceOptions& options : sources) {
    opened.push_back({open_one(options, seq_len, seed, held_out, vocab_size), options.weight});
  }
  return mix_sources(std::move(opened));
}

}  // namespace prulong
