// SPDX-License-Identifier: MIT
#include "common/config/config_main.h"

// key=[a, b] is one argument, not two.
#define CXXOPTS_VECTOR_DELIMITER '\0'

#include <cstdio>
#include <cxxopts.hpp>

#include "common/config/program.h"
#include "common/error.h"

namespace prulong {
namespace {

void run(int argc, char** argv, const ConfigProgram& program, const std::function<void(const ConfigCommand&)>& body) {
  cxxopts::Options options(program.name, program.description);
  options.positional_help("CONFIG.yaml [key.path=value ...]");
  options.add_options()("h,help", "show this text")("version", "show the version");
  for (const auto& [name, help] : program.switches) options.add_options()(name, help);
  for (const auto& [name, help] : program.numbers) options.add_options()(name, help, cxxopts::value<int64_t>(), "N");
  options.add_options()("arguments", "", cxxopts::value<std::vector<std::string>>());
  options.parse_positional({"arguments"});
  const auto flags = options.parse(argc, argv);
  if (flags.count("help")) {
    std::printf("%s\nExit status: 0 %s; 1 a failure while running; 2 a bad command line or configuration.\n",
                options.help({""}).c_str(), program.success.c_str());
    return;
  }
  if (flags.count("version")) {
    std::printf("prulong %s\n", PRULONG_VERSION);
    return;
  }
  if (!flags.count("arguments")) throw ConfigError("expected CONFIG.yaml, found no argument; see --help");
  ConfigCommand command;
  command.overrides = flags["arguments"].as<std::vector<std::string>>();
  command.path = command.overrides.front();
  command.overrides.erase(command.overrides.begin());
  for (const auto& [name, help] : program.switches) {
    if (flags.count(name)) command.switches.insert(name);
  }
  for (const auto& [name, help] : program.numbers) {
    if (!flags.count(name)) continue;
    command.numbers[name] = flags[name].as<int64_t>();
    if (command.numbers[name] < 1) {
      throw ConfigError("--" + name + ": expected at least 1, found " + std::to_string(command.numbers[name]));
    }
  }
  body(command);
}

}  // namespace

int config_main(int argc, char** argv, const ConfigProgram& program,
                const std::function<void(const ConfigCommand&)>& body) {
  return run_program<cxxopts::exceptions::exception>(program.name.c_str(), [&] {
    run(argc, argv, program, body);
    return 0;
  });
}

}  // namespace prulong
