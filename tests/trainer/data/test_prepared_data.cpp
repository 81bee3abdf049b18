// SPDX-License-Identifier: MIT
// What scripts/prepare_data.py writes and the readers here compose, checked as text.
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <iterator>
#include <map>
#include <set>
#include <sstream>

#include "tests/support/catch.h"
#include "tests/trainer/data/data_files.h"
#include "trainer/data/mds.h"
#include "trainer/data/recall.h"
#include "trainer/data/token_folder.h"

namespace prulong {
namespace {

using namespace test;

/// The prepared data, written once for this program.
class Prepared {
 public:
  Prepared() {
    const std::string command = std::string("'") + PRULONG_TEST_PYTHON + "' '" + PRULONG_TEST_SOURCE +
                                "/tests/trainer/data/make_data.py' '" + folder_.path().string() + "'";
    if (std::system(command.c_str()) != 0) throw std::runtime_error("failed: " + command);
    std::istringstream lines(read_text(folder_.path() / "vocab.txt"));
    for (std::string line; std::getline(lines, line);) {
      std::string bytes;
      for (size_t i = 0; i + 1 < line.size(); i += 2) {
        bytes += static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16));
      }
      vocab_.push_back(bytes);
    }
  }

  std::filesystem::path path(const char* name) const { return folder_.path() / name; }

  std::string decode(const int32_t* begin, const int32_t* end) const {
    std::string text;
    for (; begin < end; ++begin) text += vocab_.at(static_cast<size_t>(*begin));
    return text;
  }

  std::string decode(const std::vector<int32_t>& tokens) const {
    return decode(tokens.data(), tokens.data() + tokens.size());
  }

 private:
  TemporaryFolder folder_;
  std::vector<std::string> vocab_;
};

const Prepared& prepared() {
  static const Prepared data;
  return data;
}

/// The words of an asset, one a line.
std::set<std::string> words(const std::string& file) {
  std::istringstream text(read_text(std::string(PRULONG_TEST_SOURCE) + "/assets/words/" + file));
  return {std::istream_iterator<std::string>(text), {}};
}

/// The texts of the segments that are marked as answers.
std::vector<std::string> answers(const Sequence& sequence) {
  std::vector<std::string> result;
  for (size_t i = 0; i < sequence.tokens.size(); ++i) {
    if (sequence.is_answer[i] == 0) continue;
    if (i == 0 || sequence.is_answer[i - 1] == 0) result.emplace_back();
    result.back() += prepared().decode({sequence.tokens[i]});
  }
  return result;
}

/// The fixed words of a fact: before NAME middle VALUE after.
struct Wording {
  std::string before, middle, after;
};

/// (name, value with its leading space) of every fact and question of a text, in order.
std::vector<std::pair<std::string, std::string>> find_facts(const std::string& text, const Wording& wording) {
  std::vector<std::pair<std::string, std::string>> found;
  for (size_t at = text.find(wording.before); at != std::string::npos; at = text.find(wording.before, at)) {
    const size_t name = at + wording.before.size();
    const size_t middle = text.find(wording.middle, name);
    REQUIRE(middle != std::string::npos);
    size_t end = middle + wording.middle.size() + 1;
    while (end < text.size() && std::isalnum(static_cast<unsigned char>(text[end]))) ++end;
    const size_t value = middle + wording.middle.size();
    CHECK(text[value] == ' ');
    CHECK(text.substr(end, wording.after.size()) == wording.after);
    found.emplace_back(text.substr(name, middle - name), text.substr(value, end - value));
    at = end;
  }
  return found;
}

TEST_CASE("composed recall reads as intended, with names of its own split") {
  const std::map<std::string, Wording> wordings = {{"codes", {" The secret code of the ", " is", "."}},
                                                   {"key_values", {"\n- ", ":", ""}},
                                                   {"passkey", {" The passkey", " is", ". Remember it."}}};
  for (const bool held_out : {false, true}) {
    const std::string split = held_out ? "eval" : "train";
    const std::set<std::string> adjectives = words("adjectives." + split + ".txt"),
                                nouns = words("nouns." + split + ".txt");
    for (const auto& [task, wording] : wordings) {
      const size_t count = task == "passkey" ? 1 : 12;
      const auto source = open_recall({prepared().path("kit"), held_out, {task}, 1500, 12, 12, 5});
      for (int64_t n = 0; n < 5; ++n) {
        const Sequence sequence = source->sequence(n);
        REQUIRE(sequence.tokens.size() == 1500);
        const std::string text = prepared().decode(sequence.tokens);
        CHECK(text.substr(0, 5) == "<bos>");
        const auto found = find_facts(text, wording);
        REQUIRE(found.size() == 2 * count);
        const std::map<std::string, std::string> stated(found.begin(), found.begin() + static_cast<int64_t>(count));
        CHECK(stated.size() == count);
        std::vector<std::string> expected;
        for (size_t i = count; i < 2 * count; ++i) {
          CHECK(stated.at(found[i].first) == found[i].second);
          expected.push_back(found[i].second);
        }
        CHECK(answers(sequence) == expected);
        for (const auto& [name, value] : found) {
          if (task != "key_values") CHECK(value.size() == (task == "codes" ? 6 : 8));
          if (task == "passkey") continue;
          CHECK(adjectives.count(name.substr(0, name.find(' '))) == 1);
          CHECK(nouns.count(name.substr(name.find(' ') + 1)) == 1);
        }
        CHECK(text.find("\xEF\xBF\xBD") == std::string::npos);  // no broken character
      }
    }
  }
}

TEST_CASE("composed lists of values and labels read as intended") {
  for (const bool held_out : {false, true}) {
    const auto multi = open_recall({prepared().path("kit"), held_out, {"multi_values"}, 1500, 12, 3, 5});
    const auto labels = open_recall({prepared().path("kit"), held_out, {"labels"}, 1500, 24, 6, 5});
    for (int64_t n = 0; n < 5; ++n) {
      std::string text = prepared().decode(multi->sequence(n).tokens);
      std::map<std::string, std::string> stated;
      for (const auto& [name, value] : find_facts(text, {" One of the numbers of the ", " is", "."})) {
        stated[name] += (stated[name].empty() ? "" : ",") + value;
      }
      CHECK(stated.size() == 3);
      for (const auto& [name, values] : stated) {
        CHECK_THAT(text, ContainsSubstring(" The numbers of the " + name + " are" + values + "."));
      }

      const Sequence sequence = labels->sequence(n);
      text = prepared().decode(sequence.tokens);
      const auto lines = find_facts(text, {"\n- ", ":", ""});
      REQUIRE(lines.size() == 30);
      std::map<std::string, std::string> label_of;
      std::vector<std::string> expected;
      for (size_t i = 0; i < lines.size(); ++i) {
        const std::string noun = lines[i].first.substr(lines[i].first.find(' '));
        if (i < 24) {
          CHECK(label_of.emplace(noun, lines[i].second).first->second == lines[i].second);
        } else {
          CHECK(label_of.at(noun) == lines[i].second);
          expected.push_back(lines[i].second);
        }
      }
      CHECK(label_of.size() == 6);
      CHECK(answers(sequence) == expected);
      CHECK_THAT(text, ContainsSubstring(" The labels\n- ") && ContainsSubstring(" More of them\n- "));
    }
  }
}

TEST_CASE("an epoch of prepared text is its paragraphs, each once") {
  std::multiset<std::string> expected, found;
  const std::string text = read_text(prepared().path("train.txt"));
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find("\n\n", start), text.size() - 1);
    expected.insert("<bos>" + text.substr(start, end - start));
    start = end + 2;
  }
  const int64_t tokens = (std::filesystem::file_size(prepared().path("tokens") / "tokens.npy") - 128) / 2;
  const Sequence epoch = open_token_folder(prepared().path("tokens"), tokens, 1)->sequence(0);
  for (size_t d = 0; d + 1 < epoch.cu_seqlens.size(); ++d) {
    found.insert(
        prepared().decode(epoch.tokens.data() + epoch.cu_seqlens[d], epoch.tokens.data() + epoch.cu_seqlens[d + 1]));
  }
  CHECK(found.size() > 20);
  CHECK((found == expected));
}

TEST_CASE("prepared shards hold what a prepared token folder holds") {
  const auto text = read_text(prepared().path("tokens") / "data.json");
  const int64_t total = std::stoll(text.substr(text.find("\"tokens\": ") + 10));
  const auto shards = open_mds({prepared().path("mds"), {}, 400}, 512, 1);
  std::vector<int32_t> in_shards,
      in_folder = open_token_folder(prepared().path("tokens"), total, 1)->sequence(0).tokens;
  for (int64_t n = 0; n <= total / 512; ++n) {
    const std::vector<int32_t> tokens = shards->sequence(n).tokens;
    in_shards.insert(in_shards.end(), tokens.begin(), tokens.end());
  }
  in_shards.resize(static_cast<size_t>(total));
  std::sort(in_shards.begin(), in_shards.end());
  std::sort(in_folder.begin(), in_folder.end());
  CHECK(in_shards == in_folder);
}

}  // namespace
}  // namespace prulong
