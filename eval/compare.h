// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "eval/eval_config.h"
#include "eval/held_out.h"

namespace prulong {

/// One method's row of the comparison.
struct MethodResult {
  std::string label;
  std::string type;
  double local_fraction = 0;        ///< share of KV heads that are local
  double kv_kept = 1;               ///< KV entries held at the end of a sequence, relative to full attention
  std::vector<EvalResult> results;  ///< one per mask: several for type random
  double mean_answer_accuracy() const;
  double mean_answer_exact() const;
};

/// What was measured, and on what.
struct Comparison {
  std::string device, dtype;                   ///< of the model, as loaded: "cpu", "bfloat16"
  std::map<std::string, std::string> machine;  ///< as machine() of provenance.h
  std::vector<MethodResult> rows;
};

/// KV entries that remain after `tokens` tokens of one document, relative to keeping all, when this share of heads is
/// local.
double kv_kept(double local_fraction, int64_t sink, int64_t window, int64_t tokens);

/// Measures every configured method on the same sequences.
/// @param say  called before each method with a line for the user.
/// @param mesh  whose ranks share the sequences; all get the comparison.
/// @throws Error naming the pattern, model or data that does not fit.
Comparison compare(const EvalConfig& config, const std::function<void(const std::string&)>& say,
                   const Mesh& mesh = Mesh());

/// The comparison as a table for people, and as JSON with the configuration, versions and machine.
std::string comparison_table(const std::vector<MethodResult>& rows);
std::string comparison_json(const EvalConfig& config, const Comparison& comparison);

}  // namespace prulong
