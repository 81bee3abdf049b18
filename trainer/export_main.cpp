// SPDX-License-Identifier: MIT
// prulong-export: a run's scores, or another tool's table of heads, to a pattern.
#include <charconv>
#include <cxxopts.hpp>
#include <iostream>
#include <string>

#include "common/config/program.h"
#include "common/error.h"
#include "trainer/export.h"

namespace {

constexpr const char* kDescription =
    R"(Writes the mask of global and local KV heads as DIR/pattern.json and DIR/masks.tsv.

INPUT is told by its content:
  a training run       its pattern.json, which every checkpoint renews
  a pattern            pattern.json, or the folder that holds it
  DuoAttention         a folder with full_attention_heads.tsv and config.json; needs --model
  a table of heads     tab-separated, a row per layer, a column per KV head, 1 = global (masks.tsv of PruLong
                       and of this program); needs --model, --sink and --window
)";

constexpr const char* kNotes = R"(
Heads are ranked by score over the whole model, ties by (layer, head), the earlier first; exactly
round((1 - S) * layers * KV heads) stay global, halves rounded away from zero.

Without --sparsity a run or a pattern keeps its own mask, and a table of only 0 and 1 is taken as it is. A table
of other scores (DuoAttention's) needs --sparsity: its scores are a ranking, and a threshold such as 0.5 would
call nearly every head of a GQA model global. A table of only 0 and 1 ranks nothing, so it is refused at any
sparsity but its own.

masks.tsv is written for other tools and says neither model, sink nor window; keep pattern.json.

Exit status: 0 done; 1 a file is bad or does not fit; 2 a bad command line.
)";

template <typename T>
std::optional<T> given(const cxxopts::ParseResult& options, const std::string& name) {
  if (options.count(name) == 0) return std::nullopt;
  return options[name].as<T>();
}

/// All of the text must be the number: cxxopts would take 0.7x for 0.7.
template <typename T>
std::optional<T> number(const cxxopts::ParseResult& options, const std::string& name) {
  const auto text = given<std::string>(options, name);
  if (!text) return std::nullopt;
  T value{};
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || end != text->data() + text->size()) {
    throw prulong::ConfigError("--" + name + ": expected " + (std::is_integral_v<T> ? "an integer" : "a number") +
                               ", found '" + *text + "'");
  }
  return value;
}

int run(int argc, char** argv) {
  cxxopts::Options options("prulong-export", kDescription);
  options.positional_help("INPUT");
  options.add_options()                                                                                      //
      ("out", "folder to write; without it the mask is only printed", cxxopts::value<std::string>(), "DIR")  //
      ("sparsity", "share of the KV heads to make local, 0 to 1 (default: the input's own mask)",
       cxxopts::value<std::string>(), "S")  //
      ("model", "Hugging Face folder of the model; the pattern must fit its config.json", cxxopts::value<std::string>(),
       "MODEL_DIR")  //
      ("sink", "first tokens of a document that local heads keep (default: the input's)", cxxopts::value<std::string>(),
       "N")  //
      ("window", "last tokens, the query included, that local heads keep (default: the input's)",
       cxxopts::value<std::string>(), "N")  //
      ("h,help", "show this text")("version", "show the version");
  options.add_options("positional")("input", "", cxxopts::value<std::string>());
  options.parse_positional({"input"});
  options.set_width(112);
  const cxxopts::ParseResult result = options.parse(argc, argv);
  if (result.count("help") != 0) {
    std::cout << options.help({""}) << kNotes;
    return 0;
  }
  if (result.count("version") != 0) {
    std::cout << "prulong " << PRULONG_VERSION << '\n';
    return 0;
  }
  if (!result.unmatched().empty()) {
    throw prulong::ConfigError("one INPUT is expected, '" + result.unmatched().front() + "' is one too many");
  }
  const auto input = given<std::string>(result, "input");
  if (!input || input->empty())
    throw prulong::ConfigError("no INPUT: name a run, a pattern or a table of heads; see --help");
  prulong::ExportRequest request;
  request.input = *input;
  request.out = given<std::string>(result, "out");
  request.model = given<std::string>(result, "model");
  request.sparsity = number<double>(result, "sparsity");
  request.sink = number<int64_t>(result, "sink");
  request.window = number<int64_t>(result, "window");
  prulong::export_pattern(request, std::cout);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return prulong::run_program<cxxopts::exceptions::exception>("prulong-export", [&] { return run(argc, argv); });
}
