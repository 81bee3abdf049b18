// SPDX-License-Identifier: MIT
// prulong-train CONFIG.yaml [key.path=value ...]
#include <cstdio>

#include "common/config/config_main.h"
#include "trainer/config.h"
#include "trainer/memory.h"
#include "trainer/trainer.h"

namespace {

const prulong::ConfigProgram kProgram = {
    "prulong-train",
    "Learns which KV heads of a pretrained Llama-like model need the whole context.\n"
    "configs/README.md describes every key of CONFIG.yaml; key.path=value arguments override it.\n"
    "A run goes on from the newest checkpoint of its run.dir.\n",
    "finished, or stopped by SIGTERM and saved",
    {{"show-config", "print the resolved configuration and stop"},
     {"memory", "estimate the memory of a training step from the model's config.json alone, and stop"}}};

void run(const prulong::ConfigCommand& command) {
  const auto config = prulong::load_train_config(command.path, command.overrides);
  if (command.switches.contains("show-config")) {
    std::fputs(prulong::to_yaml(config).c_str(), stdout);
  } else if (command.switches.contains("memory")) {
    std::fputs(prulong::memory_report(config).c_str(), stdout);
  } else {
    prulong::stop_on_signals();
    prulong::train(config);
  }
}

}  // namespace

int main(int argc, char** argv) { return prulong::config_main(argc, argv, kProgram, run); }
