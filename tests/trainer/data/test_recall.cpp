// SPDX-License-Identifier: MIT
#include "trainer/data/recall.h"

#include <algorithm>
#include <map>
#include <set>

#include "common/error.h"
#include "common/hash.h"
#include "tests/support/catch.h"
#include "tests/trainer/data/data_files.h"
#include "trainer/data/random.h"

namespace prulong {
namespace {

using namespace test;

constexpr int32_t kSentenceEnd = 9;
constexpr int kSentences = 20, kAdjectives = 6, kNouns = 10, kCodes = 30, kPasskeys = 5, kLabels = 8;
constexpr int32_t kEval = 500;  // added to the ids of the evaluation split
constexpr int64_t kLargestToken = 470 + kLabels - 1 + kEval;

int sentence_length(int index) { return 5 + index % 4; }

/// A kit whose ids tell what they are: prose 100 + sentence, adjectives 200, nouns 300 + 350, codes 10 + 400, passkeys
/// 10 + 11 + 450, labels 470; evaluation adds 500. Templates use 20 to 67, the prefix is 1.
void write_kit(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  std::vector<uint16_t> tokens;
  std::vector<int64_t> offsets = {0};
  std::string lists;
  const auto add_list = [&](const std::string& name, int count, const auto& piece) {
    lists += (lists.empty() || lists.back() == '{' ? "\"" : ", \"") + name + "\": [" +
             std::to_string(offsets.size() - 1) + ", " + std::to_string(count) + "]";
    for (int i = 0; i < count; ++i) {
      for (const int token : piece(i)) tokens.push_back(static_cast<uint16_t>(token));
      offsets.push_back(static_cast<int64_t>(tokens.size()));
    }
  };
  for (const int32_t add : {0, kEval}) {
    lists += add == 0 ? "\"train\": {" : ", \"eval\": {";
    add_list("prose", kSentences, [&](int i) {
      std::vector<int> sentence(static_cast<size_t>(sentence_length(i)), 100 + i + add);
      sentence.back() = kSentenceEnd;
      return sentence;
    });
    add_list("adjectives", kAdjectives, [&](int i) { return std::vector<int>{200 + i + add}; });
    add_list("nouns", kNouns, [&](int i) { return std::vector<int>{300 + i + add, 350}; });
    add_list("codes", kCodes, [&](int i) { return std::vector<int>{10, 400 + i + add}; });
    add_list("passkeys", kPasskeys, [&](int i) { return std::vector<int>{10, 11, 450 + i + add}; });
    add_list("labels", kLabels, [&](int i) { return std::vector<int>{470 + i + add}; });
    lists += "}";
  }
  write_u16(folder / "tokens.npy", tokens);
  write_i64(folder / "offsets.npy", offsets);
  write_text(folder / "kit.json", R"({"format": "prulong-recall-kit", "version": 2, "vocab_size": 1000, "tokens": )" +
                                      std::to_string(tokens.size()) + R"(, "pieces": )" +
                                      std::to_string(offsets.size() - 1) + R"(, "prefix": [1], "lists": {)" + lists +
                                      R"(}, "templates": {
    "codes": {"intro": [], "before": [20, 21], "middle": [22], "after": [23], "outro": [], "ask": [],
      "question_before": [20, 21], "question_middle": [22], "separator": [], "question_after": [23]},
    "passkey": {"intro": [], "before": [30], "middle": [], "after": [31, 32], "outro": [], "ask": [],
      "question_before": [30], "question_middle": [], "separator": [], "question_after": [31, 32]},
    "key_values": {"intro": [40], "before": [41], "middle": [42], "after": [], "outro": [43], "ask": [44],
      "question_before": [41], "question_middle": [42], "separator": [], "question_after": []},
    "multi_values": {"intro": [], "before": [50], "middle": [51], "after": [52], "outro": [], "ask": [],
      "question_before": [53], "question_middle": [54, 55], "separator": [56, 57], "question_after": [58]},
    "labels": {"intro": [60], "before": [61], "middle": [62], "after": [63], "outro": [64], "ask": [65],
      "question_before": [66], "question_middle": [67], "separator": [], "question_after": [63]}}})");
}

RecallOptions options(const TemporaryFolder& folder, std::vector<std::string> tasks = {"codes"}) {
  RecallOptions result;
  result.kit = folder.path();
  result.tasks = std::move(tasks);
  result.seq_len = 200;
  result.statements = 6;
  result.questions = 4;
  result.seed = 7;
  return result;
}

/// What a reader finds in a sequence of the hand-made kit.
struct Parsed {
  std::vector<size_t> fact_at;                             ///< where facts start
  std::vector<std::vector<int32_t>> names, values;         ///< of the facts
  std::vector<std::vector<int32_t>> asked_names, answers;  ///< of the questions
  std::vector<int32_t> prose;
};

/// Takes a sequence apart at the marks [before..., middle, after] of its task; checks that nothing else is in it.
Parsed parse(const Sequence& sequence, const std::vector<int32_t>& before, size_t name_length, int32_t middle,
             size_t value_length, const std::vector<int32_t>& after, const std::set<int32_t>& marks = {}) {
  Parsed result;
  const std::vector<int32_t>& tokens = sequence.tokens;
  REQUIRE(sequence.is_answer.size() == tokens.size());
  REQUIRE(tokens.front() == 1);
  for (size_t i = 1; i < tokens.size();) {
    if (marks.count(tokens[i]) != 0 || tokens[i] != before[0]) {
      CHECK(sequence.is_answer[i] == 0);
      if (marks.count(tokens[i]) == 0) result.prose.push_back(tokens[i]);
      ++i;
      continue;
    }
    const size_t start = i;
    for (const int32_t token : before) REQUIRE(tokens.at(i++) == token);
    const std::vector<int32_t> name(tokens.begin() + i, tokens.begin() + i + name_length);
    i += name_length;
    if (middle != 0) REQUIRE(tokens.at(i++) == middle);
    const std::vector<int32_t> value(tokens.begin() + i, tokens.begin() + i + value_length);
    const bool question = sequence.is_answer[i] != 0;
    for (size_t k = start; k < i; ++k) CHECK(sequence.is_answer[k] == 0);
    for (size_t k = i; k < i + value_length; ++k) CHECK((sequence.is_answer[k] != 0) == question);
    i += value_length;
    for (const int32_t token : after) {
      CHECK(sequence.is_answer[i] == 0);
      REQUIRE(tokens.at(i++) == token);
    }
    if (!question) CHECK(result.answers.empty());  // questions come last
    if (!question) result.fact_at.push_back(start);
    (question ? result.asked_names : result.names).push_back(name);
    (question ? result.answers : result.values).push_back(value);
  }
  return result;
}

void check_answers(const Parsed& parsed, size_t statements, size_t questions) {
  REQUIRE(parsed.names.size() == statements);
  REQUIRE(parsed.answers.size() == questions);
  std::map<std::vector<int32_t>, std::vector<int32_t>> facts;
  for (size_t i = 0; i < statements; ++i) facts[parsed.names[i]] = parsed.values[i];
  CHECK(facts.size() == statements);
  CHECK(std::set(parsed.values.begin(), parsed.values.end()).size() == statements);
  CHECK(std::set(parsed.asked_names.begin(), parsed.asked_names.end()).size() == questions);
  for (size_t i = 0; i < questions; ++i) CHECK(facts.at(parsed.asked_names[i]) == parsed.answers[i]);
}

/// Prose without its facts is the kit's, in order, cut at its front alone.
void check_prose(const std::vector<int32_t>& prose, int32_t add) {
  REQUIRE(!prose.empty());
  CHECK(prose.back() == kSentenceEnd);
  std::vector<int32_t> expected;
  int sentence = prose.size() > 1 ? prose[prose.size() - 2] - 100 - add : 0;
  while (expected.size() < prose.size()) {
    std::vector<int32_t> piece(static_cast<size_t>(sentence_length(sentence)), 100 + sentence + add);
    piece.back() = kSentenceEnd;
    expected.insert(expected.begin(), piece.begin(), piece.end());
    sentence = (sentence + kSentences - 1) % kSentences;
  }
  expected.erase(expected.begin(), expected.end() - std::ssize(prose));
  CHECK(prose == expected);
}

TEST_CASE("code sequences are of exact length, and every answer is the stated one") {
  const TemporaryFolder folder;
  write_kit(folder.path());
  for (const bool held_out : {false, true}) {
    RecallOptions wanted = options(folder);
    wanted.held_out = held_out;
    const int32_t add = held_out ? kEval : 0;
    const auto source = open_recall(wanted);
    CHECK(source->vocab_size() == 1000);
    for (int64_t n = 0; n < 50; ++n) {
      const Sequence sequence = source->sequence(n);
      CHECK(sequence.tokens.size() == 200);
      CHECK(sequence.cu_seqlens == std::vector<int32_t>{0, 200});
      const Parsed parsed = parse(sequence, {20, 21}, 3, 22, 2, {23});
      check_answers(parsed, 6, 4);
      check_prose(parsed.prose, add);
      for (const auto& name : parsed.names) {
        CHECK((name[0] >= 200 + add && name[0] < 200 + add + kAdjectives));
        CHECK((name[1] >= 300 + add && name[1] < 300 + add + kNouns));
      }
      for (const auto& value : parsed.values) CHECK((value[1] >= 400 + add && value[1] < 400 + add + kCodes));
      for (const size_t at : parsed.fact_at) {
        const int32_t previous = sequence.tokens[at - 1];
        CHECK((previous == kSentenceEnd || previous == 23));
      }
    }
  }
}

TEST_CASE("facts are spread over the whole depth") {
  const TemporaryFolder folder;
  write_kit(folder.path());
  RecallOptions wanted = options(folder);
  wanted.seq_len = 1000;
  wanted.statements = wanted.questions = 1;
  const auto source = open_recall(wanted);
  std::vector<int> tenths(10);
  for (int64_t n = 0; n < 1000; ++n) ++tenths[parse(source->sequence(n), {20, 21}, 3, 22, 2, {23}).fact_at.at(0) / 100];
  for (const int count : tenths) CHECK(count == Approx(100).margin(45));
}

TEST_CASE("questions come in every order") {
  const TemporaryFolder folder;
  write_kit(folder.path());
  RecallOptions wanted = options(folder);
  wanted.statements = wanted.questions = 3;
  const auto source = open_recall(wanted);
  std::set<std::vector<int>> orders;
  for (int64_t n = 0; n < 100; ++n) {
    const Parsed parsed = parse(source->sequence(n), {20, 21}, 3, 22, 2, {23});
    std::vector<int> order;
    for (const auto& name : parsed.asked_names) {
      order.push_back(
          static_cast<int>(std::find(parsed.names.begin(), parsed.names.end(), name) - parsed.names.begin()));
    }
    orders.insert(order);
  }
  CHECK(orders.size() == 6);
}

TEST_CASE("a list of key values stands in one place, a passkey alone") {
  const TemporaryFolder folder;
  write_kit(folder.path());
  for (int64_t n = 0; n < 30; ++n) {
    const Sequence list = open_recall(options(folder, {"key_values"}))->sequence(n);
    CHECK(list.tokens.size() == 200);
    const Parsed parsed = parse(list, {41}, 3, 42, 2, {}, {40, 43, 44});
    check_answers(parsed, 6, 4);
    check_prose(parsed.prose, 0);
    for (size_t i = 0; i < 6; ++i) CHECK(parsed.fact_at[i] == parsed.fact_at[0] + 7 * i);
    CHECK(list.tokens[parsed.fact_at[0] - 1] == 40);
    CHECK(list.tokens[parsed.fact_at[0] + 42] == 43);
    CHECK(std::count(list.tokens.begin(), list.tokens.end(), 44) == 1);

    const Sequence passkey = open_recall(options(folder, {"passkey"}))->sequence(n);
    CHECK(passkey.tokens.size() == 200);
    const Parsed key = parse(passkey, {30}, 0, 0, 3, {31, 32});
    REQUIRE(key.values.size() == 1);
    CHECK(key.answers == key.values);
    check_prose(key.prose, 0);
  }
}

/// The tokens from one on that satisfy a condition.
template <typename Condition>
std::vector<size_t> positions(const Sequence& sequence, const Condition& condition) {
  std::vector<size_t> found;
  for (size_t i = 0; i < sequence.tokens.size(); ++i) {
    if (condition(sequence.tokens[i])) found.push_back(i);
  }
  return found;
}

std::vector<int32_t> slice(const Sequence& sequence, size_t begin, size_t count) {
  return {sequence.tokens.begin() + begin, sequence.tokens.begin() + begin + count};
}

TEST_CASE("a question for several values wants all of its name, in their order, and no others") {
  const TemporaryFolder folder;
  write_kit(folder.path());
  RecallOptions wanted = options(folder, {"multi_values"});
  wanted.seq_len = 400;
  wanted.statements = 14;  // three names of four
  wanted.questions = 9;    // one each
  const auto source = open_recall(wanted);
  std::set<std::vector<int32_t>> first_asked;
  for (int64_t n = 0; n < 100; ++n) {
    const Sequence sequence = source->sequence(n);
    REQUIRE(sequence.tokens.size() == 400);
    std::map<std::vector<int32_t>, std::vector<std::vector<int32_t>>> stated;
    std::set<std::vector<int32_t>> values;
    const auto facts = positions(sequence, [](int32_t token) { return token == 50; });
    REQUIRE(facts.size() == 12);
    for (const size_t at : facts) {
      CHECK(sequence.tokens[at + 4] == 51);
      CHECK(sequence.tokens[at + 7] == 52);
      const std::vector<int32_t> value = slice(sequence, at + 5, 2);
      stated[slice(sequence, at + 1, 3)].push_back(value);
      CHECK(values.insert(value).second);
    }
    REQUIRE(stated.size() == 3);
    const auto questions = positions(sequence, [](int32_t token) { return token == 53; });
    REQUIRE(questions.size() == 3);
    std::set<std::vector<int32_t>> asked;
    std::vector<uint8_t> expected_answers(400, 0);
    for (const size_t at : questions) {
      const std::vector<int32_t> name = slice(sequence, at + 1, 3);
      if (at == questions[0]) first_asked.insert(stated.begin()->first == name ? name : std::vector<int32_t>{});
      CHECK(asked.insert(name).second);
      std::vector<int32_t> expected = {54, 55};
      REQUIRE(stated[name].size() == 4);
      for (size_t i = 0; i < 4; ++i) {
        if (i > 0) expected.insert(expected.end(), {56, 57});
        for (const int32_t token : stated[name][i]) {
          expected_answers[at + 4 + expected.size()] = 1;
          expected.push_back(token);
        }
      }
      expected.push_back(58);
      CHECK(slice(sequence, at + 4, expected.size()) == expected);
      CHECK(at > facts.back());
    }
    CHECK(sequence.is_answer == expected_answers);
  }
  CHECK(first_asked.size() > 10);
}

TEST_CASE("many-shot labels follow from the noun alone, and every question is a new example of a known class") {
  const TemporaryFolder folder;
  write_kit(folder.path());
  for (const int64_t statements : {2, 5, 12, 30}) {
    RecallOptions wanted = options(folder, {"labels"});
    wanted.seq_len = 500;
    wanted.statements = statements;
    wanted.questions = std::min<int64_t>(statements, 5);
    const size_t classes = static_cast<size_t>(std::max<int64_t>(statements / 4, 2));
    const auto source = open_recall(wanted);
    for (int64_t n = 0; n < 50; ++n) {
      const Sequence sequence = source->sequence(n);
      REQUIRE(sequence.tokens.size() == 500);
      std::map<std::vector<int32_t>, int32_t> label_of;  // noun -> label
      std::map<std::vector<int32_t>, int64_t> examples;
      std::set<int32_t> labels;
      std::set<std::vector<int32_t>> names;
      const auto facts = positions(sequence, [](int32_t token) { return token == 61; });
      REQUIRE(std::ssize(facts) == statements);
      for (size_t i = 0; i < facts.size(); ++i) {
        const size_t at = facts[i];
        CHECK(at == facts[0] + 7 * i);  // one list
        CHECK(names.insert(slice(sequence, at + 1, 3)).second);
        const std::vector<int32_t> noun = slice(sequence, at + 2, 2);
        CHECK(sequence.tokens[at + 4] == 62);
        const int32_t label = sequence.tokens[at + 5];
        CHECK((label >= 470 && label < 470 + kLabels));
        CHECK((label_of.count(noun) == 0 || label_of[noun] == label));
        label_of[noun] = label;
        labels.insert(label);
        ++examples[noun];
      }
      CHECK(label_of.size() == classes);
      CHECK(labels.size() == classes);  // no two classes share one
      for (const auto& [noun, count] : examples) CHECK(std::abs(count - statements / std::ssize(label_of)) <= 1);
      const auto questions = positions(sequence, [](int32_t token) { return token == 66; });
      REQUIRE(std::ssize(questions) == wanted.questions);
      std::vector<uint8_t> expected_answers(500, 0);
      for (const size_t at : questions) {
        CHECK(names.insert(slice(sequence, at + 1, 3)).second);
        CHECK(sequence.tokens[at + 4] == 67);
        CHECK(sequence.tokens[at + 5] == label_of.at(slice(sequence, at + 2, 2)));
        expected_answers[at + 5] = 1;
        CHECK(at > facts.back());
      }
      CHECK(sequence.is_answer == expected_answers);
    }
  }
}

TEST_CASE("several tasks are mixed in equal parts") {
  const TemporaryFolder folder;
  write_kit(folder.path());
  const auto source = open_recall(options(folder, {"codes", "key_values", "passkey"}));
  std::map<int32_t, int> counts;
  for (int64_t n = 0; n < 300; ++n) {
    const std::vector<int32_t> tokens = source->sequence(n).tokens;
    CHECK(tokens.size() == 200);
    for (const int32_t mark : {20, 40, 30}) counts[mark] += std::count(tokens.begin(), tokens.end(), mark) > 0;
  }
  for (const auto& [mark, count] : counts) CHECK(count == Approx(100).margin(35));
}

TEST_CASE("the recall stream depends on kit, options and seed alone, and never changes between versions") {
  const TemporaryFolder folder;
  write_kit(folder.path());
  const auto source = open_recall(options(folder)), again = open_recall(options(folder));
  again->sequence(5);
  const Sequence first = source->sequence(0);
  CHECK(again->sequence(0).tokens == first.tokens);
  CHECK(source->sequence(1).tokens != first.tokens);
  CHECK(hash64(bytes_of(first.tokens)) == 0x0D2690BD986F00CCull);
  CHECK(source->fingerprint() == again->fingerprint());
  RecallOptions other = options(folder);
  other.seed = 8;
  CHECK(open_recall(other)->sequence(0).tokens != first.tokens);
  CHECK(open_recall(other)->fingerprint() != source->fingerprint());
  other = options(folder);
  other.held_out = true;
  CHECK(open_recall(other)->fingerprint() != source->fingerprint());
}

TEST_CASE("recall options that cannot be met are refused") {
  const TemporaryFolder folder;
  write_kit(folder.path());
  const auto refused = [&](const auto& change, const std::string& message) {
    RecallOptions wanted = options(folder);
    change(wanted);
    CHECK_THROWS_WITH(open_recall(wanted), ContainsSubstring(message));
    CHECK_THROWS_AS(open_recall(wanted), ConfigError);
  };
  refused([](auto& o) { o.tasks = {"code"}; },
          "task \"code\" is unknown; codes, key_values, passkey, multi_values and labels exist");
  refused([](auto& o) { o.tasks = {}; }, "no tasks");
  refused([](auto& o) { o.seq_len = 0; }, "seq_len: 1 to");
  refused([](auto& o) { o.statements = 0; }, "statements: 1 to");
  refused([](auto& o) { o.questions = 7; }, "questions: 1 to 6 expected, 7 found");
  refused([](auto& o) { o.statements = 31; }, "has names and values for 30");
  refused([](auto& o) { o.seq_len = 91; }, "seq_len 91 is too short for 6 statements and 4 questions");
  refused([](auto& o) { o.tasks = {"multi_values"}, o.statements = 3, o.questions = 1; },
          "at least 4 statements, 3 found");
  refused([](auto& o) { o.tasks = {"multi_values"}, o.statements = 32; }, "has names and values for 30");
  refused([](auto& o) { o.tasks = {"labels"}, o.statements = o.questions = 1; }, "1 statements and 1 questions: 2 to");
  refused([](auto& o) { o.tasks = {"labels"}, o.statements = 47; }, "as the kit has adjectives for");
  RecallOptions tight = options(folder);
  tight.seq_len = 92;  // prefix, ten facts of nine tokens, one token of prose
  CHECK(open_recall(tight)->sequence(0).tokens.size() == 92);
  CHECK_THROWS_WITH(open_recall(tight)->sequence(-1), ContainsSubstring("out of range"));
}

TEST_CASE("what occurs in a kit is held against the model's vocabulary") {
  const TemporaryFolder folder;
  write_kit(folder.path());
  RecallOptions fitting = options(folder);
  fitting.vocab_size = kLargestToken + 1;  // the kit says 1000
  CHECK(open_recall(fitting)->vocab_size() == kLargestToken + 1);
  CHECK(open_recall(fitting)->sequence(3).tokens == open_recall(options(folder))->sequence(3).tokens);
  const auto refused = [&](int64_t vocab_size, int64_t largest) {
    RecallOptions small = options(folder);
    small.vocab_size = vocab_size;
    CHECK_THROWS_WITH(open_recall(small),
                      ContainsSubstring(folder.path().string() + ": token " + std::to_string(largest) +
                                        " occurs, made for a vocabulary of 1000 tokens, the model has " +
                                        std::to_string(vocab_size)));
  };
  refused(kLargestToken, kLargestToken);
  const std::string kit = read_text(folder.path() / "kit.json");
  for (const std::string from : {"\"prefix\": [1]", "\"question_after\": [63]"}) {  // fixed tokens occur, too
    std::string content = kit;
    content.replace(content.find(from) + from.size() - 1, 1, ", 999]");
    write_text(folder.path() / "kit.json", content);
    refused(999, 999);
  }
}

TEST_CASE("damaged recall kits are refused by file and reason") {
  const TemporaryFolder folder;
  const auto open = [&] { return open_recall(options(folder)); };
  CHECK_THROWS_WITH(open(), ContainsSubstring("this folder has no kit.json; write it with"));
  write_kit(folder.path());
  const std::string kit = read_text(folder.path() / "kit.json");
  const auto changed = [&](const std::string& from, const std::string& to, const std::string& message) {
    INFO(message);
    std::string content = kit;
    REQUIRE(content.find(from) != std::string::npos);
    write_text(folder.path() / "kit.json", content.replace(content.find(from), from.size(), to));
    CHECK_THROWS_WITH(open(), ContainsSubstring(message) && ContainsSubstring("kit.json"));
    write_text(folder.path() / "kit.json", kit);
  };
  changed("prulong-recall-kit", "prulong-tokens", "expected \"prulong-recall-kit\"");
  changed("\"prefix\": [1]", "\"prefix\": [1000]", "\"prefix[0]\" is 1000; expected an integer from 0 to 999");
  changed("\"prefix\": [1]", "\"prefix\": 1", "\"prefix\" is 1; expected a list");
  changed("\"before\": [20, 21], ", "", "\"templates.codes.before\" is missing");
  changed("\"prose\": [0, 20]", "\"prose\": [0]", "\"lists.train.prose\" is");
  changed("\"prose\": [0, 20]", "\"prose\": [0, 0]", "\"lists.train.prose\" is");
  changed("\"prose\": [0, 20]", "\"prose\": [150, 20]", "\"lists.train.prose\" is");
  changed("\"vocab_size\": 1000", "\"vocab_size\": 600", "beyond the vocabulary of 600");
  changed("\"pieces\": 158", "\"pieces\": 157", "158 elements expected by kit.json, 159 found");

  std::vector<int64_t> offsets(159);  // every piece but the first is empty
  write_i64(folder.path() / "offsets.npy", offsets);
  CHECK_THROWS_WITH(open(), ContainsSubstring("offsets.npy: piece 0 goes from token 0 to 0"));
  offsets[1] = 100000;
  write_i64(folder.path() / "offsets.npy", offsets);
  CHECK_THROWS_WITH(open(), ContainsSubstring("offsets.npy: piece 0 goes from token 0 to 100000"));
  RecallOptions nowhere = options(folder);
  nowhere.kit = folder.path() / "nowhere";
  CHECK_THROWS_WITH(open_recall(nowhere), ContainsSubstring("nowhere: no such folder"));
}

}  // namespace
}  // namespace prulong
