// SPDX-License-Identifier: MIT
#include "trainer/data/recall_kind.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "common/error.h"

namespace prulong {
namespace {

constexpr int64_t kValuesPerName = 4;     // of "multi_values"
constexpr int64_t kExamplesPerClass = 4;  // of "labels", as long as there are labels enough

/// Draws numbers below `count`, none twice.
class Drawer {
 public:
  explicit Drawer(size_t count) : count_(count) {}
  size_t draw(Random& random) {
    uint64_t index = random.below(count_);
    while (!drawn_.insert(index).second) index = random.below(count_);
    return index;
  }

 private:
  size_t count_;
  std::set<uint64_t> drawn_;
};

int64_t size_of(const std::vector<int32_t>& part) { return std::ssize(part); }
int64_t count_of(const RecallKit::List& list) { return std::ssize(list.pieces); }

/// 0, 1, ... in random order.
std::vector<size_t> shuffled(int64_t count, Random& random) {
  std::vector<size_t> indices(static_cast<size_t>(count));
  std::iota(indices.begin(), indices.end(), 0);
  random.shuffle(indices);
  return indices;
}

}  // namespace

RecallKind::RecallKind(const RecallKit& kit, const std::string& name, int64_t statements, int64_t questions)
    : kit_(&kit), name_(name), statements_(statements), questions_(questions) {
  int64_t names_available = count_of(kit.adjectives()) * count_of(kit.nouns());
  names_ = statements;
  if (name == "codes") {
    values_ = &kit.codes();
  } else if (name == "key_values") {
    values_ = &kit.nouns();
    scattered_ = false;
  } else if (name == "passkey") {
    values_ = &kit.passkeys();
    named_ = false;
    names_available = statements_ = questions_ = names_ = 1;
  } else if (name == "multi_values") {
    values_ = &kit.codes();
    values_per_name_ = kValuesPerName;
    if (statements < kValuesPerName) {
      throw ConfigError("recall: task multi_values needs at least " + std::to_string(kValuesPerName) + " statements, " +
                        std::to_string(statements) + " found; raise statements");
    }
    names_ = statements / kValuesPerName;
    statements_ = names_ * kValuesPerName;
    questions_ = std::min(questions, names_);
  } else if (name == "labels") {
    values_ = &kit.labels();
    scattered_ = false;
    names_ =
        std::min({std::max<int64_t>(statements / kExamplesPerClass, 2), count_of(kit.labels()), count_of(kit.nouns())});
    const auto per_class = [&](int64_t count) { return (count + names_ - 1) / names_; };
    if (statements < names_ || per_class(statements) + per_class(questions) > count_of(kit.adjectives())) {
      throw ConfigError("recall: task labels with " + std::to_string(statements) + " statements and " +
                        std::to_string(questions) + " questions: 2 to " +
                        std::to_string(names_ * count_of(kit.adjectives())) +
                        " of both together expected, as the kit has adjectives for; change statements or questions");
    }
  } else {
    throw ConfigError("recall: task \"" + name +
                      "\" is unknown; codes, key_values, passkey, multi_values and labels exist");
  }
  parts_ = &kit.parts_of(name);
  const int64_t values_needed = name == "labels" ? names_ : statements_;
  const int64_t available = std::min(names_available * (values_needed / names_), count_of(*values_));
  if (values_needed > available) {
    throw ConfigError("recall: " + std::to_string(statements_) + " statements of task " + name +
                      " wanted, the kit has names and values for " + std::to_string(available) +
                      "; ask for fewer, or prepare a larger kit");
  }
}

int64_t RecallKind::longest() const {
  const RecallKit::Template& p = *parts_;
  const int64_t name = named_ ? kit_->adjectives().longest() + kit_->nouns().longest() : 0;
  const int64_t value = values_->longest();
  const int64_t fact = size_of(p.before) + name + size_of(p.middle) + value + size_of(p.after);
  const int64_t question = size_of(p.question_before) + name + size_of(p.question_middle) + value * values_per_name_ +
                           size_of(p.separator) * (values_per_name_ - 1) + size_of(p.question_after);
  return size_of(p.intro) + fact * statements_ + size_of(p.outro) + size_of(p.ask) + question * questions_;
}

RecallSample RecallKind::draw(Random& random) const {
  if (name_ == "multi_values") return draw_multi_values(random);
  if (name_ == "labels") return draw_labels(random);
  return draw_named(random);
}

RecallSample RecallKind::draw_named(Random& random) const {
  const size_t nouns = kit_->nouns().pieces.size();
  Drawer names(kit_->adjectives().pieces.size() * nouns), values(values_->pieces.size());
  RecallSample sample;
  for (int64_t i = 0; i < statements_; ++i) {
    RecallFact& fact = sample.facts.emplace_back();
    if (named_) {
      const size_t name = names.draw(random);
      fact.adjective = kit_->adjectives().pieces[name / nouns];
      fact.noun = kit_->nouns().pieces[name % nouns];
    }
    fact.value = values_->pieces[values.draw(random)];
  }
  std::vector<size_t> asked = shuffled(statements_, random);
  asked.resize(static_cast<size_t>(questions_));
  for (const size_t i : asked) {
    const RecallFact& fact = sample.facts[i];
    sample.questions.push_back({fact.adjective, fact.noun, {fact.value}});
  }
  return sample;
}

RecallSample RecallKind::draw_multi_values(Random& random) const {
  const size_t nouns = kit_->nouns().pieces.size();
  Drawer names(kit_->adjectives().pieces.size() * nouns), values(values_->pieces.size());
  std::vector<RecallQuestion> named;
  for (int64_t i = 0; i < names_; ++i) {
    const size_t name = names.draw(random);
    named.push_back({kit_->adjectives().pieces[name / nouns], kit_->nouns().pieces[name % nouns], {}});
  }
  RecallSample sample;
  for (const size_t i : shuffled(statements_, random)) {
    RecallQuestion& owner = named[i % named.size()];
    owner.values.push_back(values_->pieces[values.draw(random)]);
    sample.facts.push_back({owner.adjective, owner.noun, owner.values.back()});
  }
  for (const size_t i : shuffled(names_, random)) sample.questions.push_back(std::move(named[i]));
  sample.questions.resize(static_cast<size_t>(questions_));
  return sample;
}

RecallSample RecallKind::draw_labels(Random& random) const {
  struct Class {
    RecallKit::Tokens noun, label;
    Drawer adjectives;
  };
  Drawer nouns(kit_->nouns().pieces.size()), labels(values_->pieces.size());
  std::vector<Class> classes;
  for (int64_t i = 0; i < names_; ++i) {
    const size_t noun = nouns.draw(random);
    classes.push_back(
        {kit_->nouns().pieces[noun], values_->pieces[labels.draw(random)], Drawer(kit_->adjectives().pieces.size())});
  }
  const auto next_adjective = [&](Class& of) { return kit_->adjectives().pieces[of.adjectives.draw(random)]; };
  RecallSample sample;
  for (const size_t i : shuffled(statements_, random)) {
    Class& of = classes[i % classes.size()];
    sample.facts.push_back({next_adjective(of), of.noun, of.label});
  }
  for (const size_t i : shuffled(questions_, random)) {
    Class& of = classes[i % classes.size()];
    sample.questions.push_back({next_adjective(of), of.noun, {of.label}});
  }
  return sample;
}

}  // namespace prulong
