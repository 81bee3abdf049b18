// SPDX-License-Identifier: MIT
#include "trainer/data/recall.h"

#include <algorithm>
#include <limits>
#include <set>
#include <span>

#include "model/error.h"
#include "trainer/data/random.h"
#include "trainer/data/recall_kit.h"

namespace prulong {
namespace {

using Tokens = RecallKit::Tokens;

/// One kind of sample.
struct Task {
  std::string name;
  const RecallKit::Template* parts;
  const RecallKit::List* values;
  bool named;      ///< facts carry an adjective and a noun
  bool scattered;  ///< facts stand apart from each other
  int64_t statements;
  int64_t questions;
};

struct Fact {
  Tokens adjective, noun;  ///< empty where the task has no names
  Tokens value;
};

int64_t length(Tokens tokens) { return static_cast<int64_t>(tokens.size()); }

/// Appends pieces to a sequence.
class Writer {
 public:
  explicit Writer(Sequence& sequence) : sequence_(sequence) {}

  void add(Tokens tokens, bool answer = false) {
    sequence_.tokens.insert(sequence_.tokens.end(), tokens.begin(), tokens.end());
    sequence_.is_answer.insert(sequence_.is_answer.end(), tokens.size(), answer ? 1 : 0);
  }

  void add(const RecallKit::Template& parts, const Fact& fact, bool question) {
    add(parts.before);
    add(fact.adjective);
    add(fact.noun);
    add(parts.middle);
    add(fact.value, question);
    add(parts.after);
  }

 private:
  Sequence& sequence_;
};

class Recall final : public Source {
 public:
  explicit Recall(const RecallOptions& options) : options_(options), kit_(options.kit, options.eval_split) {
    for (const std::string& name : options.tasks) {
      tasks_.push_back(make_task(name));
      check(tasks_.back());
    }
  }

  Sequence sequence(int64_t n) const override {
    if (n < 0) throw Error("sequence " + std::to_string(n) + " is out of range");
    Random random({options_.seed, static_cast<uint64_t>(n)});
    const Task& task = tasks_[random.below(tasks_.size())];
    const std::vector<Fact> facts = draw_facts(task, random);
    std::vector<size_t> asked(facts.size());
    for (size_t i = 0; i < asked.size(); ++i) asked[i] = i;
    random.shuffle(asked);
    asked.resize(static_cast<size_t>(task.questions));

    int64_t fixed =
        length(kit_.prefix()) + length(task.parts->intro) + length(task.parts->outro) + length(task.parts->ask);
    for (const Fact& fact : facts) fixed += fact_length(task, fact);
    for (const size_t i : asked) fixed += fact_length(task, facts[i]);
    const std::vector<Tokens> prose = draw_prose(options_.seq_len - fixed, random);
    const std::vector<size_t> places = draw_places(prose, task.scattered ? facts.size() : 1, random);

    Sequence result;
    result.tokens.reserve(static_cast<size_t>(options_.seq_len));
    result.is_answer.reserve(static_cast<size_t>(options_.seq_len));
    Writer writer(result);
    writer.add(kit_.prefix());
    size_t next = 0;  // fact, or place of the whole list
    for (size_t sentence = 0; sentence < prose.size(); ++sentence) {
      writer.add(prose[sentence]);
      for (; next < places.size() && places[next] == sentence; ++next) {
        if (task.scattered) {
          writer.add(*task.parts, facts[next], false);
          continue;
        }
        writer.add(task.parts->intro);
        for (const Fact& fact : facts) writer.add(*task.parts, fact, false);
        writer.add(task.parts->outro);
      }
    }
    writer.add(task.parts->ask);
    for (const size_t i : asked) writer.add(*task.parts, facts[i], true);
    result.cu_seqlens = {0, static_cast<int32_t>(result.tokens.size())};
    return result;
  }

  int64_t vocab_size() const override { return kit_.vocab_size(); }

  std::string fingerprint() const override {
    std::string text = "recall:" + std::to_string(kit_.hash()) + (options_.eval_split ? ":eval" : ":train");
    for (const Task& task : tasks_) text += ":" + task.name;
    return text + ":seq_len=" + std::to_string(options_.seq_len) +
           ":statements=" + std::to_string(options_.statements) + ":questions=" + std::to_string(options_.questions) +
           ":seed=" + std::to_string(options_.seed);
  }

 private:
  Task make_task(const std::string& name) const {
    if (name == "codes") {
      return {name, &kit_.codes_template(), &kit_.codes(), true, true, options_.statements, options_.questions};
    }
    if (name == "key_values") {
      return {name, &kit_.key_values_template(), &kit_.nouns(), true, false, options_.statements, options_.questions};
    }
    if (name == "passkey") return {name, &kit_.passkey_template(), &kit_.passkeys(), false, true, 1, 1};
    throw ConfigError("recall: task \"" + name + "\" is unknown; codes, key_values and passkey exist");
  }

  /// Refuses what cannot be composed, whatever the draw.
  void check(const Task& task) const {
    const size_t names = kit_.adjectives().pieces.size() * kit_.nouns().pieces.size();
    const size_t available = task.named ? std::min(names, task.values->pieces.size()) : task.values->pieces.size();
    if (static_cast<uint64_t>(task.statements) > available) {
      throw ConfigError("recall: " + std::to_string(task.statements) + " statements of task " + task.name +
                        " wanted, " + options_.kit.string() + " has names and values for " + std::to_string(available));
    }
    const RecallKit::Template& parts = *task.parts;
    const int64_t name = task.named ? kit_.adjectives().longest() + kit_.nouns().longest() : 0;
    const int64_t fact =
        length(parts.before) + name + length(parts.middle) + task.values->longest() + length(parts.after);
    const int64_t fixed = length(kit_.prefix()) + length(parts.intro) + length(parts.outro) + length(parts.ask);
    const int64_t needed = fixed + fact * (task.statements + task.questions) + 1;  // a token of prose at least
    if (options_.seq_len < needed) {
      throw ConfigError("recall: seq_len " + std::to_string(options_.seq_len) + " is too short for " +
                        std::to_string(task.statements) + " statements and " + std::to_string(task.questions) +
                        " questions of task " + task.name + ", which take up to " + std::to_string(needed) + " tokens");
    }
  }

  int64_t fact_length(const Task& task, const Fact& fact) const {
    const RecallKit::Template& parts = *task.parts;
    return length(parts.before) + length(fact.adjective) + length(fact.noun) + length(parts.middle) +
           length(fact.value) + length(parts.after);
  }

  /// Facts with names and values that differ from each other.
  std::vector<Fact> draw_facts(const Task& task, Random& random) const {
    const size_t adjectives = kit_.adjectives().pieces.size(), nouns = kit_.nouns().pieces.size();
    std::set<uint64_t> names, values;
    const auto draw = [&](std::set<uint64_t>& drawn, size_t count) {
      uint64_t index = random.below(count);
      while (!drawn.insert(index).second) index = random.below(count);
      return index;
    };
    std::vector<Fact> facts(static_cast<size_t>(task.statements));
    for (Fact& fact : facts) {
      if (task.named) {
        const uint64_t name = draw(names, adjectives * nouns);
        fact.adjective = kit_.adjectives().pieces[name / nouns];
        fact.noun = kit_.nouns().pieces[name % nouns];
      }
      fact.value = task.values->pieces[draw(values, task.values->pieces.size())];
    }
    return facts;
  }

  /// `count` > 0 tokens of prose in order, ending with the end of a sentence; the first sentence is cut to fit. Prose
  /// that is too short repeats.
  std::vector<Tokens> draw_prose(int64_t count, Random& random) const {
    const std::vector<Tokens>& sentences = kit_.prose().pieces;
    size_t index = random.below(sentences.size());
    std::vector<Tokens> prose;
    while (count > 0) {
      const Tokens sentence = sentences[index];
      prose.push_back(sentence.last(static_cast<size_t>(std::min(count, length(sentence)))));
      count -= length(prose.back());
      index = (index + sentences.size() - 1) % sentences.size();
    }
    std::reverse(prose.begin(), prose.end());
    return prose;
  }

  /// After which sentences facts stand, ascending: uniform depths in tokens, moved on to the end of their sentence.
  static std::vector<size_t> draw_places(const std::vector<Tokens>& prose, size_t count, Random& random) {
    std::vector<int64_t> ends;
    int64_t total = 0;
    for (const Tokens sentence : prose) ends.push_back(total += length(sentence));
    std::vector<size_t> places;
    for (size_t i = 0; i < count; ++i) {
      const auto depth = static_cast<int64_t>(random.below(static_cast<uint64_t>(total)));
      places.push_back(static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), depth) - ends.begin()));
    }
    std::sort(places.begin(), places.end());
    return places;
  }

  RecallOptions options_;
  RecallKit kit_;
  std::vector<Task> tasks_;
};

void require_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) {
    throw ConfigError(std::string("recall: ") + name + ": " + std::to_string(least) + " to " + std::to_string(most) +
                      " expected, " + std::to_string(value) + " found");
  }
}

}  // namespace

std::unique_ptr<Source> open_recall(const RecallOptions& options) {
  constexpr int64_t kMaxStatements = 1'000'000;
  require_range("seq_len", options.seq_len, 1, std::numeric_limits<int32_t>::max());
  require_range("statements", options.statements, 1, kMaxStatements);
  require_range("questions", options.questions, 1, options.statements);
  if (options.tasks.empty()) throw ConfigError("recall: no tasks; codes, key_values and passkey exist");
  return std::make_unique<Recall>(options);
}

}  // namespace prulong
