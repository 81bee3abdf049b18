// SPDX-License-Identifier: MIT
#include "trainer/config.h"

#include <cstdlib>
#include <fstream>

#include "common/config/config_io.h"
#include "common/error.h"
#include "tests/support/catch.h"
#include "tests/support/config_error.h"
#include "tests/support/files.h"

using namespace prulong;

namespace {

const std::string kMinimal =
    "model: {path: llama}\n"
    "run: {dir: out}\n"
    "data:\n"
    "  train:\n"
    "    - {type: recall, path: kit}\n";

TrainConfig parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return parse_train_config(text, "t.yaml", overrides);
}

std::string error_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return test::config_error_of([&] { parse(text, overrides); });
}

// The message for lines added after kMinimal: line 6 is the first of them.
std::string error_with(const std::string& lines) { return error_of(kMinimal + lines); }
std::string error_set(const std::string& assignment) { return error_of(kMinimal, {assignment}); }

}  // namespace

TEST_CASE("A file's keys and the command line's take effect, the rest keeps its default") {
  const TrainConfig config =
      parse(kMinimal +
                "sparsity:\n"
                "  end: 0.5   # half\n"
                "  schedule: logarithmic\n"
                "train: {mode: both, steps: 20, recompute: on}\n"
                "optimizer:\n"
                "  eps: 1e-6\n",
            {"train.steps=30", "data.train.0.questions=4", "gates.pattern=a dir/x: #1",
             "data.train.0.tasks=[passkey, codes]", "data.train.1.path=more", "data.eval.0.path=held"});
  CHECK(config.model.path == "llama");
  CHECK(config.sparsity.end == 0.5);
  CHECK(config.sparsity.start == 0);
  CHECK(config.sparsity.schedule == SparsitySchedule::kLogarithmic);
  CHECK(config.train.mode == TrainMode::kBoth);
  CHECK(config.train.steps == 30);
  CHECK(config.train.recompute == Recompute::kOn);
  CHECK(config.optimizer.eps == 1e-6);
  CHECK(config.gates.pattern == "a dir/x: #1");
  REQUIRE(config.data.train.size() == 2);
  CHECK(config.data.train[0].type == SourceType::kRecall);
  CHECK(config.data.train[0].tasks == std::vector{RecallTask::kPasskey, RecallTask::kCodes});
  CHECK(config.data.train[0].questions == 4);
  CHECK(config.data.train[1].type == SourceType::kTokens);
  CHECK(config.data.train[1].path == "more");
  REQUIRE(config.data.eval.size() == 1);
  CHECK(config.attention.sink == 128);
  CHECK(config.run.resume == Resume::kAuto);
}

TEST_CASE("A key with dots in a file, and a quoted number, are named for what they are") {
  CHECK(error_of(kMinimal + "train.steps: 5\n") ==
        "t.yaml:" + std::to_string(std::count(kMinimal.begin(), kMinimal.end(), '\n') + 1) +
            ": key \"train.steps\" has dots, which stand for sections on the command line only; here write \"steps\" "
            "into "
            "the section \"train\"");
  CHECK_THAT(error_of(kMinimal + "gates: {a.b.c: 1}\n"),
             ContainsSubstring("write \"c\" into the section \"gates.a.b\""));
  CHECK_THAT(error_of(kMinimal + "eval: {every: '10'}\n"),
             ContainsSubstring("eval.every: expected an integer from 0 to 1073741824, found the quoted text \"10\""));
  CHECK_THAT(error_of(kMinimal + "sparsity: {linear_term: \"true\"}\n"),
             ContainsSubstring("found the quoted text \"true\""));
}

TEST_CASE("Numbers nearer to 0 than a double are 0, those beyond are no numbers") {
  CHECK(parse(kMinimal, {"optimizer.lr_gates=1e-400"}).optimizer.lr_gates == 0);
  CHECK_THAT(error_set("optimizer.eps=1e-400"), ContainsSubstring("expected a number above 0, found"));
  CHECK_THAT(error_set("optimizer.lr_gates=1e400"),
             ContainsSubstring("expected a number of at least 0, found \"1e400\""));
}

TEST_CASE("The reference preset sets the published recipe under the file's own keys") {
  const TrainConfig standard = parse(kMinimal);
  CHECK(standard.optimizer.gates_weight_decay == 0);
  CHECK(standard.sparsity.estimate == SparsityEstimate::kExpected);
  // Wherever the key stands.
  const TrainConfig config = parse(kMinimal + "optimizer: {lr_gates: 0.5}\npreset: reference\n");
  CHECK(config.preset == Preset::kReference);
  CHECK(config.optimizer.lr_gates == 0.5);
  CHECK(config.optimizer.lr_multipliers == 1.0);
  CHECK(config.optimizer.gates_weight_decay == 0.1);
  CHECK(config.optimizer.weight_decay == 0.1);
  CHECK(config.optimizer.beta1 == 0.9);
  CHECK(config.optimizer.beta2 == 0.95);
  CHECK(config.optimizer.clip_norm == 1.0);
  CHECK(config.optimizer.warmup_ratio == 0.1);
  CHECK(config.optimizer.min_lr_ratio == 0.01);
  CHECK(config.optimizer.warmup_from_zero);
  CHECK(config.optimizer.lr_weights == 1e-5);
  CHECK(config.sparsity.estimate == SparsityEstimate::kSampled);
  CHECK(config.sparsity.schedule == SparsitySchedule::kLinear);
  CHECK(config.sparsity.warmup_ratio == 0.8);
  CHECK(config.train.steps == 1000);
  CHECK(config.train.seq_len * config.train.sequences_per_step == 1 << 20);
  CHECK(config.gates.init_mean == 4.0);
  CHECK(config.attention.sink == 128);
  CHECK(config.attention.window == 1024);
  CHECK(parse(kMinimal, {"preset=reference"}).optimizer.lr_gates == 1.0);
}

TEST_CASE("A written configuration reads back to the same") {
  TrainConfig config = parse(kMinimal, {"preset=reference", "optimizer.eps=1e-7", "data.eval.0.path=held"});
  config.gates.pattern = "quote\" back\\slash tab\t newline\n #hash: caf\xc3\xa9";
  config.sparsity.end = 0.1 + 0.2;
  const std::string yaml = to_yaml(config);
  const TrainConfig again = parse(yaml);
  CHECK(to_yaml(again) == yaml);
  CHECK(again.gates.pattern == config.gates.pattern);
  CHECK(again.sparsity.end == config.sparsity.end);
  CHECK_THAT(yaml, ContainsSubstring("eps: 1.0e-07\n"));
  CHECK_THAT(yaml, ContainsSubstring("data:\n  train:\n    - type: \"recall\"\n      path: \"kit\"\n"));
  CHECK_THAT(to_yaml(parse(kMinimal)), ContainsSubstring("  eval: []\n"));
}

TEST_CASE("Unknown keys are refused with the nearest known one") {
  CHECK(error_with("sparsity:\n  edn: 0.5\n") ==
        "t.yaml:7: unknown key \"sparsity.edn\"; the nearest known key is sparsity.end");
  CHECK(error_with("trian: {steps: 3}\n") == "t.yaml:6: unknown key \"trian\"; the nearest known key is train");
  CHECK(error_with("steps: 3\n") == "t.yaml:6: unknown key \"steps\"; the nearest known key is train.steps");
  CHECK(error_with("<<: {steps: 3}\n") == "t.yaml:6: unknown key \"<<\"; the nearest known key is run");
  CHECK(error_set("data.train.0.statments=3") ==
        "command line: unknown key \"data.train.0.statments\"; the nearest known key is data.train[].statements");
  // A misspelled required key is called unknown, not missing.
  CHECK(error_of("modle: {path: x}\n") == "t.yaml:1: unknown key \"modle\"; the nearest known key is model");
  CHECK(error_of("model: {path: x}\nrun: {dir: y}\ndata:\n  train:\n    - path: z\n      tasks: [codes]\n") ==
        "t.yaml:6: key \"data.train.0.tasks\" applies only with type: recall");
}

TEST_CASE("Duplicate keys are refused") {
  CHECK(error_with("train:\n  steps: 1\n  steps: 2\n") ==
        "t.yaml:8: duplicate key \"steps\", already given at t.yaml:7; keep one");
  CHECK(error_with("model: {path: other}\n") ==
        "t.yaml:6: duplicate key \"model\", already given at t.yaml:1; keep one");
}

TEST_CASE("Required keys are asked for") {
  CHECK(error_of("run: {dir: x}\ndata: {train: [{path: y}]}\n") ==
        "t.yaml: model.path is missing, but required (Hugging Face folder of the pretrained model)");
  CHECK(error_of("model: {path: x}\ndata: {train: [{path: y}]}\n") ==
        "t.yaml: run.dir is missing, but required (folder of the run's results)");
  CHECK(error_of("model: {path: x}\nrun: {dir: x}\ndata:\n  train:\n    - type: recall\n") ==
        "t.yaml:5: data.train.0.path is missing, but required (file or folder of the data, as type says)");
  CHECK(error_set("run.dir=") == "command line: run.dir: expected a text that is not empty, found \"\"");
  CHECK(error_of("model: {path: x}\nrun: {dir: y}\n") ==
        "t.yaml: data.train: expected at least one source, found none");
}

TEST_CASE("Integers are plain integers in range") {
  const std::string expected = ": train.steps: expected an integer from 1 to 1073741824, found ";
  for (const std::string text :
       {"0", "-1", "1073741825", "99999999999999999999", "1e3", "10.0", "0x10", "1_000", "ten", "nan", "true", "+5"}) {
    CHECK(error_with("train: {steps: " + text + "}\n") == "t.yaml:6" + expected + '"' + text + '"');
    CHECK(error_set("train.steps=" + text) == "command line" + expected + '"' + text + '"');
  }
  CHECK(error_set("train.steps= 5") == "command line" + expected + "\" 5\"");
  CHECK(error_with("train: {steps: \"5\"}\n") == "t.yaml:6" + expected + "the quoted text \"5\"");
  CHECK(error_with("train:\n  steps:\n") == "t.yaml:7" + expected + "nothing");
  CHECK(error_with("train:\n  steps:\n    - 5\n") == "t.yaml:7" + expected + "a list");
  CHECK(error_with("train:\n  steps: {a: 5}\n") == "t.yaml:7" + expected + "a section");
}

TEST_CASE("Numbers are finite and in range") {
  for (const std::string text : {"1.01", "-0.1", "nan", ".nan", "inf", "-.inf", "1e999", "0,5", "70%"}) {
    CHECK(error_with("sparsity:\n  end: \"" + text + "\"\n") ==
          "t.yaml:7: sparsity.end: expected a number in [0, 1], found the quoted text \"" + text + "\"");
    CHECK(error_set("sparsity.end=" + text) ==
          "command line: sparsity.end: expected a number in [0, 1], found \"" + text + "\"");
  }
  CHECK(error_set("optimizer.beta1=1") == "command line: optimizer.beta1: expected a number in [0, 1), found \"1\"");
  CHECK(error_set("optimizer.eps=0") == "command line: optimizer.eps: expected a number above 0, found \"0\"");
  CHECK(error_set("optimizer.lr_gates=inf") ==
        "command line: optimizer.lr_gates: expected a number of at least 0, found \"inf\"");
  CHECK(parse(kMinimal, {"sparsity.end=1", "sparsity.start=.5"}).sparsity.start == 0.5);
}

TEST_CASE("Booleans, names, texts, lists and sections have their own forms") {
  CHECK(error_with("sparsity: {linear_term: yes}\n") ==
        "t.yaml:6: sparsity.linear_term: expected true or false, found \"yes\"");
  CHECK(error_with("sparsity: {linear_term: \"true\"}\n") ==
        "t.yaml:6: sparsity.linear_term: expected true or false, found the quoted text \"true\"");
  CHECK(error_with("train: {mode: mask}\n") == "t.yaml:6: train.mode: expected masks, weights or both, found \"mask\"");
  CHECK(error_with("gates: {pattern: [a]}\n") == "t.yaml:6: gates.pattern: expected a text, found a list");
  CHECK(error_with("sparsity: 3\n") ==
        "t.yaml:6: sparsity: expected a section (indented key: value lines), found \"3\"");
  CHECK(error_set("data.train=kit") ==
        "command line: data.train: expected a list (lines that start with -), found \"kit\"");
  CHECK(error_set("data.train=[kit]") ==
        "command line: data.train.0: expected a section (key: value lines), found \"kit\"");
  CHECK(error_set("data.train.0.tasks=[]") ==
        "command line: data.train.0.tasks: expected a list of codes, key_values, passkey, multi_values or labels, "
        "found a list");
  CHECK(
      error_set("data.train.0.tasks=[codes, code]") ==
      "command line: data.train.0.tasks: expected codes, key_values, passkey, multi_values or labels, found \"code\"");
  CHECK(error_set("data.train.0.tasks=[codes, codes]") ==
        "command line: data.train.0.tasks: expected each name once, found \"codes\"");
  CHECK(error_set("train.mode=" + std::string(70, 'x') + "\n") ==
        "command line: train.mode: expected masks, weights or both, found \"" + std::string(60, 'x') + "\"...");
  CHECK(parse(kMinimal + "sparsity:\n").sparsity.end == 0.7);  // all its keys commented out
}

TEST_CASE("Rules between keys are checked and point at a key") {
  CHECK(error_with("sparsity:\n  start: 0.8\n") ==
        "t.yaml:6: sparsity.end: expected at least sparsity.start, which is 0.8, found 0.7");
  CHECK(error_with("sparsity:\n  start: 0.8\n  end: 0.5\n") ==
        "t.yaml:8: sparsity.end: expected at least sparsity.start, which is 0.8, found 0.5");
  CHECK(error_of(kMinimal, {"sparsity.end=1", "sparsity.schedule=logarithmic"}) ==
        "command line: sparsity.end: expected less than 1 with sparsity.schedule: logarithmic, found 1");
  CHECK(error_set("train.seq_len=1152") ==
        "command line: train.seq_len: expected more than attention.sink + attention.window, which is 1152, found 1152: "
        "local heads would see everything");
  CHECK(error_with("train: {mode: weights}\n") ==
        "t.yaml: gates.pattern: required with train.mode: weights, which trains under a fixed mask");
  CHECK(error_of(kMinimal, {"train.loss_tokens=answers", "data.eval.0.path=x"}) ==
        "command line: data.eval.0.type: expected recall with train.loss_tokens: answers, found tokens, which has no "
        "answers");
  CHECK(error_set("data.train.0.questions=13") ==
        "command line: data.train.0.questions: expected at most statements, which is 12, found 13");
  const std::string raw = "model: {path: x}\nrun: {dir: x}\ndata:\n  train:\n    - {type: raw, path: x}\n";
  CHECK(error_of(raw) ==
        "t.yaml:5: data.train.0.dtype: expected uint16 or uint32 with type: raw, whose files do not say it, found "
        "unknown");
  CHECK(error_of(raw, {"data.train.0.dtype=int64"}) ==
        "command line: data.train.0.dtype: expected uint16 or uint32 with type: raw, whose files do not say it, found "
        "int64");
  CHECK(parse(raw, {"data.train.0.dtype=uint32", "data.train.0.end_token=2"}).data.train[0].end_token == 2);
}

TEST_CASE("What is not a plain YAML document is refused") {
  CHECK(error_of("") == "t.yaml: expected key: value lines, found nothing; check the path");
  CHECK(error_of("# nothing\n---\n") == "t.yaml: expected key: value lines, found nothing; check the path");
  CHECK(error_of("just text\n") == "t.yaml:1: expected key: value lines, found \"just text\"");
  CHECK(error_of("- a\n") == "t.yaml:1: expected key: value lines, found a list");
  CHECK(error_of("model:\n\tpath: x\n") == "t.yaml:2: a tab in the indentation; use spaces");
  CHECK(error_of("model: &m {path: x}\n") == "t.yaml:1: anchors (&name) are not supported; write the value out");
  // yaml-cpp 0.8 goes on with the name.
  CHECK_THAT(error_of("model: *m\n"),
             ContainsSubstring("t.yaml:1: not valid YAML: the referenced anchor is not defined"));
  CHECK(error_of("train:\n  steps: !!int 3\n") ==
        "t.yaml:2: YAML tags are not supported; write the value without \"tag:yaml.org,2002:int\"");
  CHECK(error_of("? [a]\n: b\n") == "t.yaml:1: a key must be a name, found a list");
  CHECK(error_of("a: 1\n---\nb: 2\n") == "t.yaml: more than one YAML document; keep one");
  CHECK(error_of(std::string("a\0b", 3)) == "t.yaml: expected a text file, found a zero byte; name a YAML file");
  CHECK_THAT(error_of("a: [1\nb: 2\n"), ContainsSubstring("not valid YAML: "));
  for (const char* const open :
       {"a: \"b\n", "a: 'b\n\n", "a: \"b\n  c\n", "a: 'b''\n", "a: \"b\\\"\n", "a: \"b\n# c\n"}) {
    CHECK_THAT(error_of(open), ContainsSubstring("not valid YAML: illegal EOF in scalar"));
  }
  CHECK_THAT(error_of("a: b: c\n"), ContainsSubstring("t.yaml:1: not valid YAML: "));
  CHECK_THAT(error_of(std::string(20000, '[')), ContainsSubstring("t.yaml:1: not valid YAML: "));
  CHECK_THAT(error_of(std::string(20000, '{')), ContainsSubstring("t.yaml:1: not valid YAML: "));
}

TEST_CASE("Files that cannot be read are named") {
  CHECK_THROWS_WITH(load_train_config("/nonexistent/t.yaml"),
                    "/nonexistent/t.yaml: cannot open: No such file or directory; check the path");
  CHECK_THROWS_WITH(load_train_config("/"), "/: expected a YAML file, found a folder; name the file in it");
  CHECK_THROWS_WITH(load_train_config("/dev/zero"),
                    "/dev/zero: larger than 1 MiB: not a configuration; check the path");
}

TEST_CASE("Command-line changes that make no sense are refused") {
  CHECK(error_set("train.steps") == "command line: expected key=value, found \"train.steps\"");
  CHECK(error_set("=3") == "command line: expected key=value, found \"=3\"");
  CHECK(error_set("train..steps=3") == "command line: expected a key like train.steps, found \"train..steps\"");
  CHECK(error_set("model.path.x=3") ==
        "command line: \"model.path.x\": model.path is a value, expected a section; set model.path itself");
  CHECK(error_set("data.train.2.path=x") ==
        "command line: \"data.train.2.path\": data.train is a list of 1; expected a number up to that, found \"2\"");
  CHECK(error_set("data.train.path=x") ==
        "command line: \"data.train.path\": data.train is a list of 1; expected a number up to that, found \"path\"");
  CHECK_THAT(error_set("data.train=[{path: x"), ContainsSubstring("command line: not valid YAML: "));
}

TEST_CASE("configs/README.md lists the keys as they are") {
  const std::string path = std::string(PRULONG_SOURCE_DIR) + "/configs/README.md";
  if (std::getenv("PRULONG_UPDATE_FILES") != nullptr) std::ofstream(path, std::ios::binary) << train_config_table();
  INFO("generate it with: PRULONG_UPDATE_FILES=1 build/cpu/bin/test_trainer 'configs/*'");
  CHECK(test::read_text(path) == train_config_table());
}
