// SPDX-License-Identifier: MIT
// prulong-train CONFIG.yaml [key.path=value ...]
// key=[a, b] is one argument, not two.
#define CXXOPTS_VECTOR_DELIMITER '\0'

#include <cstdio>
#include <cxxopts.hpp>
#include <string>
#include <vector>

#include "model/error.h"
#include "trainer/config.h"
#include "trainer/memory.h"
#include "trainer/program.h"
#include "trainer/trainer.h"

namespace {

int run(int argc, char** argv) {
  cxxopts::Options options(
      "prulong-train",
      "Learns which KV heads of a pretrained Llama-like model need the whole context.\n"
      "configs/README.md describes every key of CONFIG.yaml; key.path=value arguments override it.\n"
      "A run goes on from the newest checkpoint of its run.dir.\n");
  options.positional_help("CONFIG.yaml [key.path=value ...]");
  options.add_options()("h,help", "show this text")("version", "show the version")(
      "show-config", "print the resolved configuration and stop")(
      "memory", "estimate the memory of a training step from the model's config.json alone, and stop")(
      "arguments", "", cxxopts::value<std::vector<std::string>>());
  options.parse_positional({"arguments"});
  const auto flags = options.parse(argc, argv);
  if (flags.count("help")) {
    std::printf(
        "%s\nExit status: 0 finished, or stopped by SIGTERM and saved; 1 a failure while running; 2 a bad command "
        "line or configuration.\n",
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
  const auto config = prulong::load_train_config(path, arguments);
  if (flags.count("show-config")) {
    std::fputs(prulong::to_yaml(config).c_str(), stdout);
    return 0;
  }
  if (flags.count("memory")) {
    std::fputs(prulong::memory_report(config).c_str(), stdout);
    return 0;
  }
  prulong::stop_on_signals();
  prulong::train(config);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return prulong::run_program<cxxopts::exceptions::exception>("prulong-train", [&] { return run(argc, argv); });
}
