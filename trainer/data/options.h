// SPDX-License-Identifier: MIT
// Configuration of a source of sequences.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/config/config_visitor.h"

namespace prulong {

enum class SourceType { kTokens, kMds, kNpy, kRaw, kRecall };
enum class TokenType { kUnknown, kUint16, kUint32, kInt32, kInt64 };
enum class RecallTask { kCodes, kKeyValues, kPasskey, kMultiValues, kLabels };

/// As in a file: "codes".
std::string_view name_of(RecallTask task);

/// One stream of training or held-out sequences. A further type joins as an enumerator, its members, and a when() in
/// options.cpp.
struct SourceOptions {
  SourceType type = SourceType::kTokens;
  std::string path;
  double weight = 1.0;
  TokenType dtype = TokenType::kUnknown;
  int64_t end_token = -1;
  std::vector<RecallTask> tasks = {RecallTask::kCodes};
  int64_t statements = 12;
  int64_t questions = 12;
  int64_t seed = 0;
};

/// As in a file: "tokens".
std::string_view name_of(SourceType type);

/// The keys of a source.
void visit_options(ConfigVisitor& visitor, SourceOptions& options);

/// The first rule between a source's keys that is broken, if any; its key counts from the source.
std::optional<ConfigProblem> find_problem(const SourceOptions& options);

}  // namespace prulong
