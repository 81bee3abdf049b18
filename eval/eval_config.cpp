// SPDX-License-Identifier: MIT
#include "eval/eval_config.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "common/config/config_io.h"
#include "common/error.h"
#include "eval/input_files.h"

namespace prulong {
namespace {

constexpr std::array<std::string_view, 4> kMethods = {"full", "local", "pattern", "random"};

void visit_method(ConfigVisitor& v, MethodOptions& o) {
  v.choice(o.type,
           {"type", "full: every head global; local: none; pattern: a learned mask; random: masks drawn at random"},
           kMethods);
  v.text(o.label, {"label", "name in the table; empty: made from the method"}, TextRule::kOptional);
  v.when(o.type == MethodType::kPattern, "type: pattern", [&] {
    v.text(o.path, {"path", "pattern.json, or the folder that holds it"}, TextRule::kRequired);
  });
  v.when(o.type == MethodType::kPattern || o.type == MethodType::kRandom, "type: pattern or random", [&] {
    v.number(o.sparsity, {"sparsity", "round the pattern's scores anew; -1: its own mask (random needs a value)"},
             Interval::closed(-1, 1));
  });
  v.when(o.type == MethodType::kRandom, "type: random", [&] {
    v.integer(o.count, {"count", "how many masks", "masks"}, 1, 1 << 16);
    v.integer(o.seed, {"seed", "of the masks"}, 0, std::numeric_limits<int64_t>::max());
  });
}

}  // namespace

std::string_view name_of(MethodType type) { return kMethods[static_cast<size_t>(type)]; }

void visit_config(ConfigVisitor& v, EvalConfig& c) {
  v.section({"model", "The pretrained model"}, [&] { visit_options(v, c.model); });
  v.section({"attention", "What local heads of the methods local and random see; a pattern brings its own"},
            [&] { visit_options(v, c.attention); });
  v.list(c.data, {"data", "Sources of sequences with answers (type: recall), of their held-out split; at least one"},
         [](ConfigVisitor& item, SourceOptions& o) { visit_options(item, o); });
  v.integer(c.seq_len, {"seq_len", "length of a sequence", "tokens"}, 2, 1 << 30);
  v.integer(c.sequences, {"sequences", "how many sequences every method is measured on", "sequences"}, 1, 1 << 20);
  v.list(c.methods, {"methods", "Rows of the table; at least one"}, visit_method);
  v.text(c.out, {"out", "JSON file to write; empty: print only"}, TextRule::kOptional);
}

EvalConfig load_eval_config(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  auto document = ConfigDocument::load(path);
  for (const std::string& assignment : overrides) document.set(assignment);
  EvalConfig config;
  document.read([&](ConfigVisitor& v) { visit_config(v, config); });
  const auto refuse = [&](const std::string& key, const std::string& what) {
    throw ConfigError(document.where(key) + ": " + key + ": " + what);
  };
  if (config.data.empty()) refuse("data", "expected at least one source, found none");
  if (config.methods.empty()) refuse("methods", "expected at least one method, found none");
  for (size_t i = 0; i < config.data.size(); ++i) {
    if (config.data[i].type != SourceType::kRecall) {
      refuse("data." + std::to_string(i) + ".type", "expected recall, the only type with answers, found " +
                                                        std::string(name_of(config.data[i].type)) +
                                                        "; use a recall kit");
    }
    if (const auto problem = find_problem(config.data[i])) {
      refuse("data." + std::to_string(i) + "." + problem->key, problem->what);
    }
  }
  for (size_t i = 0; i < config.methods.size(); ++i) {
    const MethodOptions& method = config.methods[i];
    const std::string key = "methods." + std::to_string(i) + ".sparsity";
    if (method.sparsity < 0 && (method.type == MethodType::kRandom || method.sparsity != -1)) {
      refuse(key, "expected a number in [0, 1], found " + show_number(method.sparsity));
    }
  }
  return config;
}

std::vector<std::filesystem::path> files_of(const EvalConfig& config, const std::filesystem::path& path) {
  std::vector<std::filesystem::path> files = files_of(config.model);
  files.push_back(path);
  for (const auto& source : config.data) std::ranges::move(files_of(source), std::back_inserter(files));
  for (const auto& method : config.methods) {
    if (method.type == MethodType::kPattern) files.push_back(file_of_pattern(method.path));
  }
  return files;
}

std::string eval_config_table() {
  EvalConfig config;
  return config_table("prulong-eval", "eval/eval_config.cpp",
                      list_keys([&](ConfigVisitor& v) { visit_config(v, config); }));
}

}  // namespace prulong
