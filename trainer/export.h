// SPDX-License-Identifier: MIT
// What prulong-export does, without its command line.
#pragma once

#include <filesystem>
#include <iosfwd>
#include <optional>

#include "model/pattern.h"

namespace prulong {

/// One call of prulong-export.
struct ExportRequest {
  std::filesystem::path input;                 ///< training run, pattern, DuoAttention folder or table of heads
  std::optional<std::filesystem::path> out;    ///< folder for pattern.json and masks.tsv; none: only report
  std::optional<std::filesystem::path> model;  ///< Hugging Face folder whose shape the pattern must fit
  std::optional<double> sparsity;              ///< none: the mask that the input has
  std::optional<int64_t> sink, window;         ///< none: the input's
};

/// Reads any kind of input, told apart by content, rounds its scores to the sparsity, writes the pattern and reports
/// what it found and did, with a map of the mask, to `report`.
/// @throws ConfigError when the request lacks something this input needs or has a value out of range; Error when a file
///         is bad, the model does not fit, or the scores cannot tell which heads to keep at this sparsity.
Pattern export_pattern(const ExportRequest& request, std::ostream& report);

}  // namespace prulong
