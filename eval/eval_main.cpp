// SPDX-License-Identifier: MIT
// prulong-eval CONFIG.yaml [key.path=value ...]
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <string>

#include "common/atomic_file.h"
#include "common/config/config_main.h"
#include "common/error.h"
#include "eval/compare.h"
#include "eval/eval_config.h"
#include "eval/input_files.h"
#include "parallel/mesh.h"

namespace {

const prulong::ConfigProgram kProgram = {
    "prulong-eval",
    "Measures masks on held-out recall: answers right and KV entries kept, side by side.\n"
    "configs/eval.md describes every key of CONFIG.yaml; key.path=value arguments override it.\n",
    "done",
    {}};

constexpr std::chrono::minutes kTimeout{30};  // for a sequence, of several ranks

void run(const prulong::ConfigCommand& command) {
  const auto config = prulong::load_eval_config(command.path, command.overrides);
  if (!config.out.empty() && !std::filesystem::is_directory(std::filesystem::absolute(config.out).parent_path())) {
    throw prulong::Error(config.out + ": its folder does not exist; create it, or choose another out");
  }
  if (std::filesystem::is_directory(config.out)) {
    throw prulong::Error(config.out + ": a folder; name a file for out");
  }
  prulong::refuse_inputs("out", {config.out}, prulong::files_of(config, command.path));
  prulong::Mesh mesh(prulong::read_launch().value_or(prulong::Launch{}), kTimeout);
  mesh.run(kProgram.name, [&] {
    const auto say = [&](const std::string& message) {
      if (mesh.leader()) std::fprintf(stderr, "%s\n", message.c_str());
    };
    const auto comparison = prulong::compare(config, say, mesh);
    if (!mesh.leader()) return;
    if (!config.out.empty()) prulong::write_file_atomically(config.out, prulong::comparison_json(config, comparison));
    std::fputs(prulong::comparison_table(comparison.rows).c_str(), stdout);
  });
}

}  // namespace

int main(int argc, char** argv) { return prulong::config_main(argc, argv, kProgram, run); }
