// SPDX-License-Identifier: MIT
// prulong-train CONFIG.yaml [key.path=value ...]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>
#include <vector>

#include "common/config/config_main.h"
#include "common/stop.h"
#include "eval/input_files.h"
#include "parallel/mesh.h"
#include "trainer/config.h"
#include "trainer/memory.h"
#include "trainer/run_folder.h"
#include "trainer/trainer.h"

namespace {

const prulong::ConfigProgram kProgram = {
    "prulong-train",
    "Learns which KV heads of a pretrained Llama-like model need the whole context.\n"
    "configs/README.md describes every key of CONFIG.yaml; key.path=value arguments override it.\n"
    "A run goes on from the newest checkpoint of its run.dir.\n",
    "finished, or stopped by SIGTERM, SIGINT or SIGHUP and saved",
    {{"show-config", "print the resolved configuration and stop"},
     {"memory", "estimate the memory of a training step from the model's config.json alone, and stop"}},
    {{"ranks", "with --memory: how many processes torchrun will start"}}};

/// Refuses a run that would write onto what it reads. Its own config.yaml may be the configuration, as long as it stays
/// as it is; its own pattern.json may be what it goes on with, for that must have the mask that it began with.
void refuse_inputs(const prulong::TrainConfig& config, const std::filesystem::path& path) {
  std::vector<std::filesystem::path> inputs = files_of(config.model);
  const std::filesystem::path dir = config.run.dir, pattern = prulong::file_of_pattern(config.gates.pattern);
  std::error_code ignored;
  const bool own = std::filesystem::exists(dir / "checkpoints", ignored) &&
                   std::filesystem::equivalent(pattern, dir / "pattern.json", ignored);
  if (!config.gates.pattern.empty() && !own) inputs.push_back(pattern);
  for (const auto* const sources : {&config.data.train, &config.data.eval}) {
    for (const auto& source : *sources) std::ranges::move(files_of(source), std::back_inserter(inputs));
  }
  std::ifstream file(path, std::ios::binary);
  const std::string content(std::istreambuf_iterator<char>(file), {});
  if (content != prulong::to_yaml(config)) inputs.push_back(path);
  prulong::refuse_inputs("run.dir", prulong::run_outputs(dir), inputs);
}

void run(const prulong::ConfigCommand& command) {
  const auto config = prulong::load_train_config(command.path, command.overrides);
  if (command.switches.contains("show-config")) {
    std::fputs(prulong::to_yaml(config).c_str(), stdout);
  } else if (command.switches.contains("memory")) {
    const auto ranks = command.numbers.find("ranks");
    std::fputs(prulong::memory_report(config, ranks == command.numbers.end() ? 1 : ranks->second).c_str(), stdout);
  } else {
    refuse_inputs(config, command.path);
    prulong::Mesh mesh(prulong::read_launch().value_or(prulong::Launch{}),
                       std::chrono::seconds(config.parallel.timeout));
    prulong::request_stop_on_signals();  // from here on: who still waits for others may be killed
    mesh.run(kProgram.name, [&] { prulong::train(config, mesh); });
  }
}

}  // namespace

int main(int argc, char** argv) { return prulong::config_main(argc, argv, kProgram, run); }
