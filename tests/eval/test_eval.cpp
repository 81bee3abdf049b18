// SPDX-License-Identifier: MIT
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>

#include "common/error.h"
#include "eval/compare.h"
#include "eval/eval_config.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"
#include "tests/support/config_error.h"
#include "tests/support/files.h"

using namespace prulong;
using test::TemporaryFolder;
using test::write_text;

namespace {

const std::string kMinimal =
    "model: {path: llama}\n"
    "data:\n"
    "  - {type: recall, path: kit}\n"
    "methods:\n"
    "  - {type: full}\n"
    "  - {type: pattern, path: masks}\n"
    "  - {type: random, sparsity: 0.5}\n";

EvalConfig load(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const TemporaryFolder folder;
  write_text(folder / "e.yaml", text);
  return load_eval_config(folder / "e.yaml", overrides);
}

/// The message, from the file's own name on.
std::string error_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const std::string message = test::config_error_of([&] { load(text, overrides); });
  const size_t name = message.find("e.yaml");
  return name == std::string::npos ? message : message.substr(name);
}

std::string error_set(const std::string& assignment) { return error_of(kMinimal, {assignment}); }

EvalResult measured(double accuracy, double exact) {
  EvalResult result;
  result.sequences = 2;
  result.labels = result.answer_tokens = 40;
  result.answers = 10;
  result.loss_nats = 1.5;
  result.answer_accuracy = accuracy;
  result.answer_exact = exact;
  return result;
}

std::vector<MethodResult> some_rows() {
  return {{"full attention", "full", 0, 1, {measured(1, 0.925)}},
          {"5 random masks", "random", 0.7, 0.4, {measured(0.25, 0), measured(1, 1), measured(0.1, 0.2)}},
          {"caf\xc3\xa9", "local", 1, 0.1406, {measured(0.05, 0)}}};
}

}  // namespace

TEST_CASE("KV kept is what local heads hold of a sequence") {
  CHECK(kv_kept(0, 16, 128, 1024) == 1);
  CHECK(kv_kept(1, 16, 128, 1024) == 0.140625);
  CHECK(kv_kept(0.5, 16, 128, 1024) == 0.5 + 0.5 * 0.140625);
  CHECK(kv_kept(1, 0, 1, 1000) == 0.001);
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  CHECK(kv_kept(1, kHuge, kHuge, 1000) == 1);
  CHECK(kv_kept(1, 16, 128, 144) == 1);  // a short sequence fits
  CHECK(kv_kept(1, 16, 128, 145) == Approx(144.0 / 145));
  CHECK(kv_kept(0.7, 1 << 30, 1 << 30, 10) == Approx(1));
}

TEST_CASE("A file's keys and the command line's make the comparison") {
  const EvalConfig config = load(kMinimal + "seq_len: 256\nattention: {sink: 4}\n",
                                 {"data.0.tasks=[passkey, codes]", "methods.2.count=3", "methods.1.sparsity=0.25",
                                  "methods.3.type=local", "out=r.json"});
  CHECK(config.model.path == "llama");
  CHECK(config.seq_len == 256);
  CHECK(config.attention.sink == 4);
  CHECK(config.attention.window == 1024);
  REQUIRE(config.data.size() == 1);
  CHECK((config.data[0].tasks == std::vector{RecallTask::kPasskey, RecallTask::kCodes}));
  REQUIRE(config.methods.size() == 4);
  CHECK(name_of(config.methods[0].type) == "full");
  CHECK(config.methods[1].sparsity == 0.25);
  CHECK(config.methods[2].count == 3);
  CHECK(name_of(config.methods[3].type) == "local");
  CHECK(config.out == "r.json");
  CHECK(load(kMinimal).methods[1].sparsity == -1);
}

TEST_CASE("What cannot be compared is refused by place and key") {
  CHECK(error_of("model: {path: llama}\nmethods: [{type: full}]\n") ==
        "e.yaml: data: expected at least one source, found none");
  CHECK(error_set("methods=[]") == "command line: methods: expected at least one method, found none");
  CHECK(error_set("methods.0.type=fulll") ==
        "command line: methods.0.type: expected full, local, pattern or random, found \"fulll\"");
  CHECK(error_set("data=[{type: tokens, path: x}]") ==
        "command line: data.0.type: expected recall, the only type with answers, found tokens; use a recall kit");
  CHECK(error_set("data.0.questions=13") ==
        "command line: data.0.questions: expected at most statements, which is 12, found 13");
  CHECK(error_of(kMinimal + "  - {type: random}\n") ==
        "e.yaml:8: methods.3.sparsity: expected a number in [0, 1], found -1");
  CHECK(error_set("methods.1.sparsity=-0.5") ==
        "command line: methods.1.sparsity: expected a number in [0, 1], found -0.5");
  CHECK(error_set("methods.2.sparsity=1.5") ==
        "command line: methods.2.sparsity: expected a number in [-1, 1], found \"1.5\"");
  CHECK(error_set("methods.2.count=0") ==
        "command line: methods.2.count: expected an integer from 1 to 65536, found \"0\"");
  CHECK_THAT(error_of(kMinimal + "  - {type: pattern}\n"),
             ContainsSubstring("e.yaml:8: methods.3.path is missing, but required"));
  CHECK(error_set("methods.0.seed=1") == "command line: key \"methods.0.seed\" applies only with type: random");
  CHECK_THAT(error_of(kMinimal + "sequence: 3\n"),
             ContainsSubstring("e.yaml:8: unknown key \"sequence\"; the nearest known key is sequences"));
  CHECK_THAT(error_of("methods: [{type: full}]\ndata: [{type: recall, path: x}]\n"),
             ContainsSubstring("model.path is missing"));
  CHECK_THROWS_WITH(load_eval_config("/nowhere/e.yaml", {}), ContainsSubstring("/nowhere/e.yaml"));
}

TEST_CASE("The table has a line a method, with the range where there are several masks") {
  CHECK(comparison_table(some_rows()) ==
        "method              answer tokens right     whole answers right   KV kept\n"
        "full attention                  100.0 %                  92.5 %   100.0 %\n"
        "5 random masks   45.0 % (10.0 to 100.0)   40.0 % (0.0 to 100.0)    40.0 %\n"
        "caf\xc3\xa9                              5.0 %                   0.0 %    14.1 %\n");
  const std::string label(400, 'x');
  const std::string table = comparison_table({{label, "full", 0, 1, {measured(1, 1)}}});
  CHECK_THAT(table, ContainsSubstring(label + "  ") && ContainsSubstring("100.0 %\n"));
}

TEST_CASE("The JSON holds every mask's figures, the configuration, the versions and the machine") {
  EvalConfig config = load(kMinimal);
  config.sequences = 2;
  const auto report = nlohmann::json::parse(
      comparison_json(config, {"cpu", "bfloat16", {{"cpu", "some processor"}, {"threads", "2"}}, some_rows()}));
  CHECK(report["sequences"] == 2);
  CHECK(report["seq_len"] == 1024);
  CHECK(report["model"] == "llama");
  CHECK(report["device"] == "cpu");
  CHECK(report["dtype"] == "bfloat16");
  CHECK(report["machine"] == nlohmann::json({{"cpu", "some processor"}, {"threads", "2"}}));
  CHECK(report["versions"].contains("prulong"));
  CHECK(report["versions"].contains("commit"));
  REQUIRE(report["methods"].size() == 3);
  const auto& random = report["methods"][1];
  CHECK(random["label"] == "5 random masks");
  CHECK(random["type"] == "random");
  CHECK(random["local_fraction"] == 0.7);
  CHECK(random["kv_kept"] == 0.4);
  CHECK(random["answer_accuracy"].get<double>() == Approx(0.45));
  CHECK(random["answer_exact"].get<double>() == Approx(0.4));
  REQUIRE(random["masks"].size() == 3);
  CHECK(random["masks"][2] == nlohmann::json({{"answer_accuracy", 0.1},
                                              {"answer_exact", 0.2},
                                              {"answer_tokens", 40},
                                              {"answers", 10},
                                              {"answer_loss_nats", 1.5}}));
  // The configuration makes the same comparison again.
  const TemporaryFolder folder;
  write_text(folder / "again.yaml", report["config"].get<std::string>());
  const EvalConfig again = load_eval_config(folder / "again.yaml", {});
  CHECK(again.sequences == 2);
  CHECK(again.methods.size() == 3);
  CHECK(again.methods[2].sparsity == 0.5);
}

TEST_CASE("configs/eval.md lists the keys as they are") {
  const std::string path = std::string(PRULONG_SOURCE_DIR) + "/configs/eval.md";
  if (std::getenv("PRULONG_UPDATE_FILES") != nullptr) std::ofstream(path, std::ios::binary) << eval_config_table();
  INFO("generate it with: PRULONG_UPDATE_FILES=1 build/cpu/bin/test_eval 'configs/*'");
  CHECK(test::read_text(path) == eval_config_table());
}
