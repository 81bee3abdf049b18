// SPDX-License-Identifier: MIT
#include "trainer/export.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <ostream>
#include <sstream>
#include <system_error>

#include "common/error.h"
#include "eval/input_files.h"
#include "model/model_config.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;

struct Input {
  enum class Kind { kPattern, kTable };
  Kind kind;
  fs::path path;     // for Pattern::load or import_head_table
  const char* what;  // for the report
};

Input detect(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) {
    if (fs::exists(path / "pattern.json", ignored)) {
      const bool run = fs::exists(path / "metrics.jsonl", ignored);
      return {Input::Kind::kPattern, path, run ? "training run, pattern.json" : "pattern folder, pattern.json"};
    }
    if (fs::exists(path / "full_attention_heads.tsv", ignored)) {
      return {Input::Kind::kTable, path, "DuoAttention folder, full_attention_heads.tsv and config.json"};
    }
    throw Error(path.string() +
                ": holds no pattern.json (a training run writes it at its first checkpoint) and no "
                "full_attention_heads.tsv; check the path");
  }
  if (!fs::exists(path, ignored)) throw Error(path.string() + ": there is no such file or folder; check the path");
  char first = 0;
  std::ifstream(path, std::ios::binary) >> first;  // skips white space
  if (first == '{') return {Input::Kind::kPattern, path, "pattern file"};
  return {Input::Kind::kTable, path, "table of heads, tab-separated"};
}

std::string shown(double number) {
  std::ostringstream text;
  text << number;
  return text.str();
}

Pattern read_input(const ExportRequest& request, const Input& input) {
  if (input.kind == Input::Kind::kPattern) {
    Pattern pattern = Pattern::load(input.path);
    if (request.model) pattern.check_fits(read_model_config(*request.model).shape(), input.path.string());
    const auto change = [&](const char* key, int64_t& value, const std::optional<int64_t>& wanted) {
      if (!wanted || *wanted == value) return;
      pattern.provenance[std::string(key) + "_changed_at_export"] = "from " + std::to_string(value);
      value = *wanted;
    };
    change("sink", pattern.sink, request.sink);
    change("window", pattern.window, request.window);
    return pattern;
  }
  if (!request.model) {
    throw ConfigError(input.path.string() +
                      ": a table of heads does not say which model it is for: give the model's folder with --model");
  }
  const bool folder = fs::is_directory(input.path);
  if (!folder && !(request.sink && request.window)) {
    throw ConfigError(input.path.string() +
                      ": a table of heads does not say its sink and window: give both with --sink and --window "
                      "(PruLong's published masks use 128 and 1024)");
  }
  Pattern pattern =
      import_head_table(input.path, read_model_config(*request.model).shape(), request.sink, request.window);
  if (!request.sparsity && !pattern.scores_are_a_mask()) {
    throw ConfigError(
        input.path.string() +
        ": holds a score per head, not a mask: say with --sparsity what share of the heads to make local");
  }
  return pattern;
}

}  // namespace

Pattern export_pattern(const ExportRequest& request, std::ostream& report) {
  if (request.sparsity && !(*request.sparsity >= 0 && *request.sparsity <= 1)) {
    throw ConfigError("--sparsity: expected a number from 0 to 1, found " + shown(*request.sparsity));
  }
  if (request.sink && *request.sink < 0) {
    throw ConfigError("--sink: expected at least 0, found " + std::to_string(*request.sink));
  }
  if (request.window && *request.window < 1) {
    throw ConfigError("--window: expected at least 1, found " + std::to_string(*request.window));
  }
  if (request.out && request.out->empty()) throw ConfigError("--out: expected a folder, found an empty name");
  std::error_code ignored;
  for (const char* const written : {"", "pattern.json", "masks.tsv"}) {
    if (request.out && fs::equivalent(*request.out / written, request.input, ignored)) {
      throw ConfigError("--out: " + request.out->string() + " is or holds the input itself; name another folder");
    }
  }

  const Input input = detect(request.input);
  if (request.out) {
    std::vector<fs::path> inputs = {file_of_pattern(request.input), request.input / "full_attention_heads.tsv",
                                    request.input / "config.json"};
    if (request.model) inputs.push_back(*request.model / "config.json");
    refuse_inputs("--out", {*request.out / "pattern.json", *request.out / "masks.tsv"}, inputs);
  }
  Pattern pattern = read_input(request, input);
  if (request.sparsity) pattern = pattern.rounded(*request.sparsity, request.input.string());
  if (request.out) pattern.save(*request.out);  // before the report: a failed export says nothing but why
  const ModelShape& model = pattern.model;
  report << "input      " << request.input.string() << " (" << input.what << ")\n"
         << "model      " << model.type << ", " << model.layers << " layers of " << model.kv_heads << " KV heads, "
         << model.query_heads << " query heads, head_dim " << model.head_dim << "\n"
         << "local      sink " << pattern.sink << ", window " << pattern.window << " tokens\n"
         << "sparsity   " << shown(pattern.sparsity) << " asked, " << shown(pattern.local_fraction())
         << " reached: " << std::count(pattern.mask.begin(), pattern.mask.end(), uint8_t{0}) << " of "
         << pattern.mask.size() << " heads are local\n";
  if (const auto tie = request.sparsity ? pattern.tie() : std::nullopt) {
    report << "note       " << tie->heads << " heads tie at the cut with score " << shown(tie->score) << "; "
           << tie->global << " of them stay global, the first by layer and head\n";
  }
  report << "\n" << mask_map(pattern) << "\n";
  if (request.out) {
    report << "wrote      " << (*request.out / "pattern.json").string() << " and "
           << (*request.out / "masks.tsv").string() << "\n";
  } else {
    report << "wrote      nothing; name a folder with --out\n";
  }
  return pattern;
}

}  // namespace prulong
