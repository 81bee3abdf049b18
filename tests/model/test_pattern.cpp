// SPDX-License-Identifier: MIT
#include "model/pattern.h"

#include <cmath>
#include <filesystem>
#include <limits>
#include <random>
#include <thread>

#include "common/error.h"
#include "tests/support/catch.h"
#include "tests/support/files.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;
using test::read_text;
using test::TemporaryFolder;
using test::write_text;

ModelShape shape(int64_t layers, int64_t kv_heads) { return {"llama", layers, kv_heads, 2 * kv_heads, 16}; }

std::vector<uint8_t> mask_of(std::vector<double> scores, double sparsity) {
  const int64_t heads = static_cast<int64_t>(scores.size());
  return Pattern::from_scores(shape(1, heads), std::move(scores), sparsity, 0, 1).mask;
}

/// A valid file, for tests that spoil one part of it.
const std::string kValid = R"({
  "format": "prulong-pattern", "version": 1,
  "model": {"type": "llama", "layers": 2, "kv_heads": 2, "query_heads": 4, "head_dim": 8},
  "sink": 4, "window": 32, "sparsity": 0.5,
  "mask": [[1, 0], [0, 1]], "scores": [[2.5, -1], [0.125, 3e2]],
  "provenance": {"seed": "7"}
})";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

/// The message of loading a bad pattern; it must be one line that names the file.
std::string refusal(const TemporaryFolder& scratch, const std::string& content) {
  const fs::path file = write_text(scratch / "bad.json", content);
  try {
    Pattern::load(file);
  } catch (const Error& error) {
    const std::string message = error.what();
    CHECK(message.find(file.string()) != std::string::npos);
    CHECK(message.find('\n') == std::string::npos);
    return message;
  }
  FAIL("accepted: " << content);
  return "";
}

}  // namespace

TEST_CASE("the number of global heads is rounded to nearest, halves away from zero") {
  struct Golden {
    double sparsity;
    int64_t heads, global;
  };
  // In double arithmetic 1 - 0.9 is a little less than 0.1: five heads keep 0.49999... of one, so none.
  for (const Golden& golden : {Golden{0, 90, 90}, Golden{1, 90, 0}, Golden{0.7, 90, 27}, Golden{0.7, 256, 77},
                               Golden{0.5, 5, 3}, Golden{0.1, 5, 5}, Golden{0.3, 5, 4}, Golden{0.9, 5, 0},
                               Golden{0.5, 1, 1}, Golden{0.75, 2, 1}, Golden{0.95, 90, 5}, Golden{0.25, 6, 5}}) {
    INFO("sparsity " << golden.sparsity << " of " << golden.heads);
    CHECK(global_heads(golden.sparsity, golden.heads) == golden.global);
  }
}

TEST_CASE("the best scores stay global, ties go to the earlier layer and head") {
  CHECK(mask_of({0.1, 3, -2, 0.5}, 0.5) == std::vector<uint8_t>{0, 1, 0, 1});
  CHECK(mask_of({1, 1, 1, 1}, 0.5) == std::vector<uint8_t>{1, 1, 0, 0});
  CHECK(mask_of({0, 1, 0.5, 1, 0.5}, 0.4) == std::vector<uint8_t>{0, 1, 1, 1, 0});
  CHECK(mask_of({-0.0, 0.0}, 0.5) == std::vector<uint8_t>{1, 0});
  CHECK(mask_of({5, 4}, 0) == std::vector<uint8_t>{1, 1});
  CHECK(mask_of({5, 4}, 1) == std::vector<uint8_t>{0, 0});

  SECTION("against sorting by score and position") {
    std::mt19937 random(11);
    for (int round = 0; round < 50; ++round) {
      std::vector<double> scores(24);
      for (double& score : scores) score = static_cast<double>(random() % 7);
      const Pattern pattern = Pattern::from_scores(shape(6, 4), scores, 0.7, 0, 1);
      for (size_t i = 0; i < scores.size(); ++i) {
        int64_t better = 0;
        for (size_t j = 0; j < scores.size(); ++j) better += scores[j] > scores[i] || (scores[j] == scores[i] && j < i);
        CHECK(pattern.mask[i] == (better < global_heads(0.7, 24) ? 1 : 0));
      }
      CHECK(pattern.local_fraction() == Approx(17.0 / 24));
    }
  }
}

TEST_CASE("from_scores refuses what makes no mask") {
  const double nan = std::nan("");
  CHECK_THROWS_WITH(mask_of({1, nan}, 0.5), ContainsSubstring("layer 0, head 1 is not a finite number"));
  CHECK_THROWS_WITH(mask_of({std::numeric_limits<double>::infinity(), 1}, 0.5), ContainsSubstring("head 0"));
  CHECK_THROWS_WITH(mask_of({1, 2}, 1.5), ContainsSubstring("sparsity must be from 0 to 1"));
  CHECK_THROWS_WITH(mask_of({1, 2}, nan), ContainsSubstring("sparsity must be from 0 to 1"));
  CHECK_THROWS_WITH(Pattern::from_scores(shape(2, 2), {1, 2, 3}, 0.5, 0, 1), ContainsSubstring("found 3"));
  CHECK_THROWS_WITH(Pattern::from_scores(shape(1, 2), {1, 2}, 0.5, -1, 1), ContainsSubstring("sink"));
  CHECK_THROWS_WITH(Pattern::from_scores(shape(1, 2), {1, 2}, 0.5, 0, 0), ContainsSubstring("window"));
  CHECK_THROWS_AS(Pattern::from_scores(shape(int64_t{1} << 62, 4), {}, 0.5, 0, 1), Error);
}

TEST_CASE("a saved pattern reads back exactly") {
  const TemporaryFolder scratch;
  std::mt19937_64 random(3);
  std::normal_distribution<double> normal;
  std::vector<double> scores(12);
  for (double& score : scores) score = normal(random) * std::pow(10.0, normal(random) * 20);
  scores[0] = 0.1;
  scores[1] = -std::numeric_limits<double>::denorm_min();
  scores[2] = std::numeric_limits<double>::max();
  Pattern pattern = Pattern::from_scores(shape(4, 3), scores, 0.7, 128, 1024);
  pattern.provenance = {{"data", "a \"quoted\"\ttext\n\xc3\xa9"}, {"seed", "42"}};
  pattern.save(scratch / "new" / "folder");

  const Pattern copy = Pattern::load(scratch / "new" / "folder");
  CHECK(copy.model == pattern.model);
  CHECK(copy.sink == 128);
  CHECK(copy.window == 1024);
  CHECK(copy.sparsity == 0.7);
  CHECK(copy.scores == pattern.scores);
  CHECK(copy.mask == pattern.mask);
  CHECK(copy.provenance == pattern.provenance);
  CHECK_NOTHROW(Pattern::load(scratch / "new" / "folder" / "pattern.json"));

  SECTION("beside it lies the table, and nothing else") {
    const std::string table = read_text(scratch / "new" / "folder" / "masks.tsv");
    std::string expected;
    for (size_t i = 0; i < 12; ++i) expected += std::string(copy.mask[i] ? "1.0" : "0.0") + (i % 3 == 2 ? "\n" : "\t");
    CHECK(table == expected);
    CHECK(std::distance(fs::directory_iterator(scratch / "new" / "folder"), {}) == 2);
    CHECK(std::distance(fs::directory_iterator(scratch / "new"), {}) == 1);
  }
  SECTION("an old folder is overwritten and keeps its other files") {
    write_text(scratch / "new/folder/notes.txt", "mine");
    pattern.window = 7;
    pattern.save((scratch / "new" / "folder").string() + "/");
    CHECK(Pattern::load(scratch / "new" / "folder").window == 7);
    CHECK(read_text(scratch / "new" / "folder" / "notes.txt") == "mine");
  }
  SECTION("text that is not UTF-8 does not stop saving") {
    pattern.provenance["data"] = "caf\xe9";
    pattern.save_json(scratch / "scores.json");
    CHECK(Pattern::load(scratch / "scores.json").provenance.at("data") == "caf\xef\xbf\xbd");
  }
  SECTION("what load would refuse is not written") {
    pattern.mask.pop_back();
    CHECK_THROWS_WITH(pattern.save(scratch / "half"), ContainsSubstring("one mask value for each"));
    CHECK_FALSE(fs::exists(scratch / "half"));
    pattern.mask = std::vector<uint8_t>(12, 2);
    CHECK_THROWS_WITH(pattern.save_json(scratch / "half.json"), ContainsSubstring("must be 0 or 1"));
    CHECK_FALSE(fs::exists(scratch / "half.json"));
  }
  SECTION("a target that is a file is refused") {
    write_text(scratch / "taken", "text");
    CHECK_THROWS_WITH(pattern.save(scratch / "taken"), ContainsSubstring("not a folder"));
    CHECK_THROWS_WITH(pattern.save(scratch / "taken" / "under"), ContainsSubstring("taken"));
    CHECK(read_text(scratch / "taken") == "text");
  }
}

TEST_CASE("a bad pattern file is refused by file and key") {
  const TemporaryFolder scratch;
  const Pattern valid = Pattern::load(write_text(scratch / "pattern.json", kValid));
  CHECK(valid.scores == std::vector<double>{2.5, -1, 0.125, 300});

  struct Case {
    const char *from, *to, *message;
  };
  const Case cases[] = {
      {"\"sink\": 4", "\"sinks\": 4", "unknown key \"sinks\""},
      {"\"sink\": 4,", "", "\"sink\" is missing; expected an integer of at least 0"},
      {"\"sink\": 4", "\"sink\": 4, \"sink\": 5", "key \"sink\" stands there twice"},
      {"\"sink\": 4", "\"sink\": -1", "\"sink\" is -1; expected an integer of at least 0"},
      {"\"sink\": 4", "\"sink\": 4.0", "; expected an integer"},
      {"\"sink\": 4", "\"sink\": true", "; expected an integer"},
      {"\"sink\": 4", "\"sink\": 18446744073709551615", "; expected an integer"},
      {"\"sink\": 4", "\"sink\": \"4\"", "\"sink\" is \"4\"; expected an integer of at least 0"},
      {"\"window\": 32", "\"window\": 0", "\"window\" is 0; expected an integer of at least 1"},
      {"0.5", "1.5", "\"sparsity\" is 1.5; expected a number from 0 to 1"},
      {"0.5", "null", "\"sparsity\" is "},
      {"0.5", "NaN", "\"sparsity\" is NaN; expected a number from 0 to 1"},
      {"3e2", "-Infinity", "\"scores[1][1]\" is -Infinity; expected a finite number"},
      {"\"7\"", "NaN", "\"provenance.seed\" is NaN; expected a text"},
      {"0.5", "1e999", "not valid JSON"},
      {"\"version\": 1", "\"version\": 2", "\"version\" is 2; this program reads version 1"},
      {"\"version\": 1", "\"version\": true", "\"version\" is "},
      {"\"version\": 1", "\"version\": 1.0", "\"version\" is "},
      {"prulong-pattern", "other", "not a pattern file"},
      {"\"type\": \"llama\"", "\"type\": \"\"", "\"model.type\" is "},
      {"\"head_dim\": 8", "\"head_dim\": 8, \"rope\": 1", "unknown key \"model.rope\""},
      {"\"layers\": 2", "\"layers\": 3", "; expected 3 rows (layers) of 2"},
      {"\"layers\": 2", "\"layers\": 4611686018427387904", "; expected 4611686018427387904 rows"},
      {"\"query_heads\": 4", "\"query_heads\": 3", "query_heads 3 is not a multiple of kv_heads 2"},
      {"[1, 0]", "[1, 0, 1]", "\"mask[0]\" is [1,0,1]; expected 2 values (KV heads)"},
      {"[1, 0]", "[1, 2]", "\"mask[0][1]\" is 2; expected 0 or 1"},
      {"[1, 0]", "[1, false]", "\"mask[0][1]\" is false; expected 0 or 1"},
      {"[1, 0]", "[1, 0.0]", "\"mask[0][1]\" is 0.0; expected 0 or 1"},
      {"[1, 0]", "7", "\"mask[0]\" is "},
      {"[2.5, -1]", "[2.5]", "; expected 2 values"},
      {"[2.5, -1]", "[2.5, \"x\"]", "\"scores[0][1]\" is \"x\"; expected a finite number"},
      {"[2.5, -1]", "[2.5, null]", "\"scores[0][1]\" is "},
      {"{\"seed\": \"7\"}", "[]", "; expected an object"},
      {"\"7\"", "7", "\"provenance.seed\" is 7; expected a text"},
      {"\"7\"", "\"\xff\"", "not valid JSON"},
      {"[1, 0]", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]", "nested deeper"},
  };
  for (const Case& bad : cases) {
    INFO(bad.from << " -> " << bad.to);
    CHECK_THAT(refusal(scratch, replaced(kValid, bad.from, bad.to)), ContainsSubstring(bad.message));
  }
  refusal(scratch, "");
  refusal(scratch, "[]");
  refusal(scratch, "{}");
  refusal(scratch, "\xef\xbb\xbf");
  refusal(scratch, kValid + "x");
  refusal(scratch, std::string(1000000, '['));
  CHECK(refusal(scratch, "{\"format\": \"" + std::string(100000, 'x')).size() < 1000);
  for (size_t length = 0; length + 1 < kValid.size(); ++length) refusal(scratch, kValid.substr(0, length));

  CHECK_THROWS_WITH(Pattern::load(scratch / "none"), ContainsSubstring("no such file"));
  fs::create_directory(scratch / "empty");
  CHECK_THROWS_WITH(Pattern::load(scratch / "empty"), ContainsSubstring("pattern.json: there is no such file"));
}

TEST_CASE("flipped bytes in a pattern file never do worse than a refusal") {
  const TemporaryFolder scratch;
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    std::string text = kValid;
    for (int flips = 0; flips < 3; ++flips) text[random() % text.size()] = static_cast<char>(random());
    const fs::path file = write_text(scratch / "fuzzed.json", text);
    try {
      const Pattern pattern = Pattern::load(file);
      CHECK(pattern.mask.size() == pattern.scores.size());
    } catch (const Error&) {
    }
  }
}

TEST_CASE("a pattern for another model is refused by what differs") {
  const Pattern pattern = Pattern::from_scores(shape(4, 2), std::vector<double>(8, 1.0), 0, 4, 16);
  CHECK_NOTHROW(pattern.check_fits(shape(4, 2)));
  ModelShape other = shape(4, 2);
  other.type = "mistral";
  CHECK_THROWS_WITH(pattern.check_fits(other), ContainsSubstring("type llama in the pattern, mistral in the model"));
  CHECK_THROWS_WITH(pattern.check_fits(shape(5, 2)), ContainsSubstring("layers 4 in the pattern, 5 in the model"));
  CHECK_THROWS_WITH(pattern.check_fits(shape(4, 4)), ContainsSubstring("kv_heads 2 in the pattern, 4 in the model"));
  other = shape(4, 2);
  other.query_heads = 8;
  CHECK_THROWS_WITH(pattern.check_fits(other), ContainsSubstring("query_heads 4 in the pattern, 8 in the model"));
  other = shape(4, 2);
  other.head_dim = 64;
  CHECK_THROWS_WITH(pattern.check_fits(other), ContainsSubstring("head_dim 16 in the pattern, 64 in the model"));
}

TEST_CASE("a DuoAttention folder is imported with its scores and sizes") {
  const TemporaryFolder scratch;
  write_text(
      scratch / "duo/full_attention_heads.tsv",
      "-9.584426879882812500e-05\t5.585937500000000000e-01\n1.000000000000000000e+00\t0.000000000000000000e+00\n");
  write_text(scratch / "duo/config.json",
             R"({"model_name": "x", "lr": 0.02, "sink_size": 128, "recent_size": 256, "a": null})");
  const Pattern pattern = import_head_table(scratch / "duo/", shape(2, 2));
  CHECK(pattern.scores == std::vector<double>{-9.5844268798828125e-05, 0.55859375, 1, 0});
  CHECK(pattern.sink == 128);
  CHECK(pattern.window == 256);
  CHECK(pattern.sparsity == 0);
  CHECK(pattern.mask == std::vector<uint8_t>{1, 1, 1, 1});
  CHECK(pattern.provenance.at("source") == "DuoAttention folder duo");
  CHECK_FALSE(pattern.scores_are_a_mask());

  const Pattern overridden = import_head_table(scratch / "duo", shape(2, 2), 4, 8);
  CHECK(overridden.sink == 4);
  CHECK(overridden.window == 8);

  CHECK_THROWS_WITH(import_head_table(scratch / "duo", shape(4, 2)),
                    ContainsSubstring("2 rows of 2, but the model has 4 layers of 2 KV heads"));
  write_text(scratch / "duo/config.json", R"({"sink_size": 128})");
  CHECK_THROWS_WITH(import_head_table(scratch / "duo", shape(2, 2)), ContainsSubstring("\"recent_size\" is missing"));
  write_text(scratch / "duo/config.json", R"({"sink_size": 128, "recent_size": "256"})");
  CHECK_THROWS_WITH(import_head_table(scratch / "duo", shape(2, 2)),
                    ContainsSubstring("\"recent_size\" is \"256\"; expected"));
  write_text(scratch / "duo/config.json", "[]");
  CHECK_THROWS_WITH(import_head_table(scratch / "duo", shape(2, 2)), ContainsSubstring("expected a JSON object"));
  fs::remove(scratch / "duo/config.json");
  CHECK_THROWS_WITH(import_head_table(scratch / "duo", shape(2, 2)),
                    ContainsSubstring("config.json: there is no such"));
  fs::remove(scratch / "duo/full_attention_heads.tsv");
  CHECK_THROWS_WITH(import_head_table(scratch / "duo", shape(2, 2)), ContainsSubstring("full_attention_heads.tsv"));
}

TEST_CASE("a table of zeros and ones is the mask") {
  const TemporaryFolder scratch;
  const fs::path file = write_text(scratch / "masks_sp0.5.tsv", "1.0\t0.0\r\n0.0\t0\r\n1\t1.0\r\n\r\n");
  const Pattern pattern = import_head_table(file, shape(3, 2), 128, 1024);
  CHECK(pattern.mask == std::vector<uint8_t>{1, 0, 0, 0, 1, 1});
  CHECK(pattern.sparsity == 0.5);
  CHECK(pattern.scores_are_a_mask());
  CHECK(pattern.sink == 128);
  CHECK(pattern.window == 1024);

  CHECK_THROWS_WITH(import_head_table(file, shape(3, 2)), ContainsSubstring("about the sink and the window"));
  CHECK_THROWS_WITH(import_head_table(file, shape(3, 2), 128), ContainsSubstring("about the window"));
  CHECK_THROWS_WITH(import_head_table(file, shape(3, 2), 0, 0), ContainsSubstring("window must be at least 1"));
  const auto refuse = [&](const std::string& content, const std::string& message) {
    INFO(content);
    CHECK_THROWS_WITH(import_head_table(write_text(scratch / "bad.tsv", content), shape(2, 2), 1, 1),
                      ContainsSubstring(message));
  };
  refuse("", "bad.tsv: an empty table");
  refuse("\n\n", "bad.tsv: an empty table");
  refuse("1\t0\n1\n", "bad.tsv:2: 1 columns, but the rows before have 2");
  refuse("1\t0\n1\t0\t1\n", "bad.tsv:2: 3 columns");
  refuse("1\t0\n\n1\t0\n", "bad.tsv:2: expected numbers, found an empty row");
  refuse("1\t0\n1\tx\n", "bad.tsv:2: expected a finite number, found 'x'");
  refuse("1\t0\n1\t\n", "bad.tsv:2: expected a finite number, found ''");
  refuse("1 0\n1 0\n",
         "bad.tsv:1: expected a finite number, found '1 0'; mend the table (columns are separated by tabs)");
  refuse("nan\t0\n1\t0\n", "bad.tsv:1: expected a finite number");
  refuse("1\t0\n1\t1e400\n", "bad.tsv:2: expected a finite number, found '1e400'");
  refuse("1\tinf\n1\t0\n", "bad.tsv:1: expected a finite number");
  refuse(std::string("1\t0\n1\t\0\n", 8), "bad.tsv:2: expected a finite number, found '?'");
  refuse("1\t0\n1\t0\n1\t0\n", "3 rows of 2, but the model has 2 layers");
}

TEST_CASE("numbers too small for a double are 0") {
  const TemporaryFolder scratch;
  const fs::path file = write_text(scratch / "t.tsv", "1.0\t1e-400\n-1e-99999\t0." + std::string(400, '0') + "1\n");
  const Pattern pattern = import_head_table(file, shape(2, 2), 4, 8);
  CHECK(pattern.scores == std::vector<double>{1, 0, 0, 0});
  CHECK(pattern.mask == std::vector<uint8_t>{1, 0, 0, 0});
}

TEST_CASE("what is no JSON but Python's is read in another tool's file, not where we want a value") {
  const TemporaryFolder scratch;
  write_text(scratch / "duo/full_attention_heads.tsv", "0.5\t0.25\n");
  write_text(scratch / "duo/config.json", R"({"sink_size": 4, "best": NaN, "loss": [-Infinity], "recent_size": 8})");
  CHECK(import_head_table(scratch / "duo", shape(1, 2)).window == 8);
  write_text(scratch / "duo/config.json", R"({"sink_size": NaN, "recent_size": 8})");
  CHECK_THROWS_WITH(import_head_table(scratch / "duo", shape(1, 2)),
                    ContainsSubstring("\"sink_size\" is NaN; expected an integer of at least 0"));
}

TEST_CASE("a pattern is rounded anew, unless its scores are a mask") {
  Pattern pattern = Pattern::from_scores(shape(2, 2), {3, 1, 1, 0}, 0, 4, 8);
  pattern.provenance["seed"] = "7";
  CHECK_FALSE(pattern.tie());
  const Pattern half = pattern.rounded(0.5);
  CHECK(half.mask == std::vector<uint8_t>{1, 1, 0, 0});
  CHECK(half.provenance == pattern.provenance);
  REQUIRE(half.tie());
  CHECK(half.tie()->score == 1);
  CHECK(half.tie()->heads == 2);
  CHECK(half.tie()->global == 1);
  CHECK_FALSE(pattern.rounded(0.25).tie());

  const Pattern mask = Pattern::from_scores(shape(2, 2), {1, 0, 0, 1}, 0.5, 4, 8);
  CHECK(mask.rounded(0.5).mask == mask.mask);
  CHECK(mask.rounded(1).local_fraction() == 1);
  CHECK_THROWS_WITH(mask.rounded(0.25, "f.tsv"),
                    ContainsSubstring("f.tsv: a mask, not a ranking: it tells 2 of 4 heads from the others, and "
                                      "sparsity 0.25 keeps 3"));
}

TEST_CASE("savers of one folder never leave the table of one beside the pattern of another") {
  const TemporaryFolder scratch;
  for (int round = 0; round < 5; ++round) {
    const fs::path folder = scratch / ("p" + std::to_string(round));
    std::vector<std::thread> savers;
    for (int i = 0; i < 4; ++i) {
      savers.emplace_back([&folder, i] {
        std::vector<double> scores(4);
        scores[static_cast<size_t>(i)] = 1;
        const Pattern pattern = Pattern::from_scores(shape(2, 2), scores, 0.75, 4, 8);
        for (int time = 0; time < 10; ++time) pattern.save(folder);
      });
    }
    for (std::thread& saver : savers) saver.join();
    CHECK(read_text(folder / "masks.tsv") == mask_table(Pattern::load(folder)));
    CHECK(std::distance(fs::directory_iterator(folder), {}) == 2);
  }
  CHECK(std::distance(fs::directory_iterator(scratch.path()), {}) == 5);
}

TEST_CASE("the mask is shown with the last layer on top") {
  const Pattern pattern = Pattern::from_scores(shape(2, 3), {3, 2, 1, 0, 5, 4}, 0.5, 4, 16);
  CHECK(mask_map(pattern) == "layer  KV head 0 on the left; # global, . local\n    1  .##\n    0  #..\n");
}

}  // namespace prulong
