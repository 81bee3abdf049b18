// SPDX-License-Identifier: MIT
// prulong-eval CONFIG.yaml [key.path=value ...]
// key=[a, b] is one argument, not two.
#define CXXOPTS_VECTOR_DELIMITER '\0'

#include <cstdio>
#include <cxxopts.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "eval/compare.h"
#include "eval/eval_config.h"
#include "model/atomic_file.h"
#include "model/error.h"
#include "trainer/program.h"

namespace {

int run(int argc, char** argv) {
  cxxopts::Options options(
      "prulong-eval",
      "Measures masks on held-out recall: answers right and KV entries kept, side by side.\n"
      "configs/eval.md describes every key of CONFIG.yaml; key.path=value arguments override it.\n");
  options.positional_help("CONFIG.yaml [key.path=value ...]");
  options.add_options()("h,help", "show this text")("version", "show the version")(
      "arguments", "", cxxopts::value<std::vector<std::string>>());
  options.parse_positional({"arguments"});
  const auto flags = options.parse(argc, argv);
  if (flags.count("help")) {
    std::printf("%s\nExit status: 0 done; 1 a failure while running; 2 a bad command line or configuration.\n",
                options.help({""}).c_str());
    return 0;
  }
  if (flags.count("version")) {
    std::printf("prulong %s\n", PRULONG_VERSION);
    return 0;
  }
  if (!flags.count("arguments")) throw prulong::ConfigError("expected CONFIG.yaml, found no argument; see --help");
  auto arguments = flags["arguments"].as<std::vector<std::string>>();
  const std::string path = arguments.front();
  arguments.erase(arguments.begin());
  const auto config = prulong::load_eval_config(path, arguments);
  if (!config.out.empty() && !std::filesystem::is_directory(std::filesystem::absolute(config.out).parent_path())) {
    throw prulong::Error(config.out + ": its folder does not exist; create it, or choose another out");
  }
  const auto rows =
      prulong::compare(config, [](const std::string& message) { std::fprintf(stderr, "%s\n", message.c_str()); });
  std::fputs(prulong::comparison_table(rows).c_str(), stdout);
  if (!config.out.empty()) prulong::write_file_atomically(config.out, prulong::comparison_json(config, rows));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return prulong::run_program<cxxopts::exceptions::exception>("prulong-eval", [&] { return run(argc, argv); });
}
