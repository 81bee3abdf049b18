// SPDX-License-Identifier: MIT
#include "trainer/data/options.h"

#include <array>
#include <limits>

namespace prulong {
namespace {

constexpr std::array<std::string_view, 5> kSourceTypes = {"tokens", "mds", "npy", "raw", "recall"};
constexpr std::array<std::string_view, 5> kTokenTypes = {"unknown", "uint16", "uint32", "int32", "int64"};
constexpr std::array<std::string_view, 5> kRecallTasks = {"codes", "key_values", "passkey", "multi_values", "labels"};

constexpr int64_t kMaxTokens = int64_t{1} << 30;
constexpr int64_t kMaxSeed = std::numeric_limits<int64_t>::max();

}  // namespace

void visit_options(ConfigVisitor& v, SourceOptions& o) {
  v.choice(o.type,
           {"type",
            "tokens, recall: what scripts/prepare_data.py wrote from text, or for synthetic tasks; mds: a folder of "
            "MosaicML shards; npy, raw: a file of token ids, or a folder of *.npy or *.bin"},
           kSourceTypes);
  v.text(o.path, {"path", "file or folder of the data, as type says"}, TextRule::kRequired);
  v.number(o.weight, {"weight", "share of sequences, relative to the other sources of the list"}, Interval::above(0));
  v.when(o.type == SourceType::kRaw || o.type == SourceType::kMds, "type: raw or mds", [&] {
    v.choice(o.dtype, {"dtype", "of raw files' tokens (uint16 or uint32), or of an MDS column of bytes"}, kTokenTypes);
  });
  v.when(o.type == SourceType::kRaw || o.type == SourceType::kNpy, "type: raw or npy", [&] {
    v.integer(o.end_token, {"end_token", "token that ends each document; -1 = there is none"}, -1, kMaxTokens);
  });
  v.when(o.type == SourceType::kRecall, "type: recall", [&] {
    v.choices(o.tasks, {"tasks", "what is to be recalled; drawn at random when several"}, kRecallTasks);
    v.integer(o.statements, {"statements", "facts in a sequence (passkey: always 1; multi_values: four a name)"}, 1,
              1 << 16);
    v.integer(o.questions, {"questions", "questions at its end (passkey: always 1; multi_values: at most one a name)"},
              1, 1 << 16);
    v.integer(o.seed, {"seed", "of the tasks"}, 0, kMaxSeed);
  });
}

std::string_view name_of(RecallTask task) { return kRecallTasks[static_cast<size_t>(task)]; }

std::string_view name_of(SourceType type) { return kSourceTypes[static_cast<size_t>(type)]; }

std::optional<ConfigProblem> find_problem(const SourceOptions& o) {
  if (o.type == SourceType::kRaw && o.dtype != TokenType::kUint16 && o.dtype != TokenType::kUint32) {
    return {{"dtype", "expected uint16 or uint32 with type: raw, whose files do not say it, found " +
                          std::string(kTokenTypes[static_cast<size_t>(o.dtype)])}};
  }
  if (o.type == SourceType::kRecall && o.questions > o.statements) {
    return {{"questions", "expected at most statements, which is " + std::to_string(o.statements) + ", found " +
                              std::to_string(o.questions)}};
  }
  return std::nullopt;
}

}  // namespace prulong
