// SPDX-License-Identifier: MIT
#include "trainer/data/recall.h"

#include <algorithm>
#include <limits>
#include <span>

#include "common/error.h"
#include "trainer/data/integer_file.h"
#include "trainer/data/random.h"
#include "trainer/data/recall_kind.h"
#include "trainer/data/recall_kit.h"

namespace prulong {
namespace {

using Tokens = RecallKit::Tokens;

int64_t length(Tokens tokens) { return static_cast<int64_t>(tokens.size()); }

/// Appends pieces to a sequence.
class Writer {
 public:
  explicit Writer(Sequence& sequence) : sequence_(sequence) {}

  void add(Tokens tokens, bool answer = false) {
    sequence_.tokens.insert(sequence_.tokens.end(), tokens.begin(), tokens.end());
    sequence_.is_answer.insert(sequence_.is_answer.end(), tokens.size(), answer ? 1 : 0);
  }

  void add(const Sequence& part) {
    sequence_.tokens.insert(sequence_.tokens.end(), part.tokens.begin(), part.tokens.end());
    sequence_.is_answer.insert(sequence_.is_answer.end(), part.is_answer.begin(), part.is_answer.end());
  }

  void add(const RecallKit::Template& parts, const RecallFact& fact) {
    for (const Tokens piece :
         {Tokens(parts.before), fact.adjective, fact.noun, Tokens(parts.middle), fact.value, Tokens(parts.after)}) {
      add(piece);
    }
  }

  void add(const RecallKit::Template& parts, const RecallQuestion& question) {
    for (const Tokens piece :
         {Tokens(parts.question_before), question.adjective, question.noun, Tokens(parts.question_middle)}) {
      add(piece);
    }
    for (size_t i = 0; i < question.values.size(); ++i) {
      if (i > 0) add(parts.separator);
      add(question.values[i], true);
    }
    add(parts.question_after);
  }

 private:
  Sequence& sequence_;
};

class Recall final : public Source {
 public:
  explicit Recall(const RecallOptions& options) : options_(options), kit_(options.kit, options.held_out) {
    check_largest_token(options.kit.string(), kit_.largest_token(), kit_.vocab_size(), options.vocab_size);
    for (const std::string& name : options.tasks) {
      tasks_.emplace_back(kit_, name, options.statements, options.questions);
      check(tasks_.back());
    }
  }

  Sequence sequence(int64_t n) const override {
    if (n < 0) throw Error("sequence " + std::to_string(n) + " is out of range");
    Random random({options_.seed, static_cast<uint64_t>(n)});
    const RecallKind& task = tasks_[random.below(tasks_.size())];
    const RecallKit::Template& parts = task.parts();
    const RecallSample sample = task.draw(random);

    // Everything but the prose, composed apart to know its length.
    std::vector<Sequence> facts(task.scattered() ? sample.facts.size() : 1);
    Sequence questions;
    if (!task.scattered()) Writer(facts[0]).add(parts.intro);
    for (size_t i = 0; i < sample.facts.size(); ++i)
      Writer(facts[task.scattered() ? i : 0]).add(parts, sample.facts[i]);
    if (!task.scattered()) Writer(facts[0]).add(parts.outro);
    Writer(questions).add(parts.ask);
    for (const RecallQuestion& question : sample.questions) Writer(questions).add(parts, question);
    int64_t fixed = length(kit_.prefix()) + length(questions.tokens);
    for (const Sequence& fact : facts) fixed += length(fact.tokens);
    const std::vector<Tokens> prose = draw_prose(options_.seq_len - fixed, random);
    const std::vector<size_t> places = draw_places(prose, facts.size(), random);

    Sequence result;
    result.tokens.reserve(static_cast<size_t>(options_.seq_len));
    result.is_answer.reserve(static_cast<size_t>(options_.seq_len));
    Writer writer(result);
    writer.add(kit_.prefix());
    size_t next = 0;
    for (size_t sentence = 0; sentence < prose.size(); ++sentence) {
      writer.add(prose[sentence]);
      for (; next < places.size() && places[next] == sentence; ++next) writer.add(facts[next].tokens);
    }
    writer.add(questions);
    result.cu_seqlens = {0, static_cast<int32_t>(result.tokens.size())};
    return result;
  }

  int64_t vocab_size() const override { return std::min(kit_.vocab_size(), options_.vocab_size); }

  std::string fingerprint() const override {
    std::string text = "recall:" + std::to_string(kit_.hash()) + (options_.held_out ? ":eval" : ":train");
    for (const RecallKind& task : tasks_) text += ":" + task.name();
    return text + ":seq_len=" + std::to_string(options_.seq_len) +
           ":statements=" + std::to_string(options_.statements) + ":questions=" + std::to_string(options_.questions) +
           ":seed=" + std::to_string(options_.seed);
  }

 private:
  /// Refuses what cannot be composed, whatever the draw.
  void check(const RecallKind& task) const {
    const int64_t needed = length(kit_.prefix()) + task.longest() + 1;  // a token of prose at least
    if (options_.seq_len < needed) {
      throw ConfigError("recall: seq_len " + std::to_string(options_.seq_len) + " is too short for " +
                        std::to_string(task.statements()) + " statements and " + std::to_string(task.questions()) +
                        " questions of task " + task.name() + ", which take up to " + std::to_string(needed) +
                        " tokens; raise it, or ask for fewer");
    }
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
  std::vector<RecallKind> tasks_;
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
  if (options.tasks.empty())
    throw ConfigError("recall: no tasks; codes, key_values, passkey, multi_values and labels exist");
  return std::make_unique<Recall>(options);
}

}  // namespace prulong
