// SPDX-License-Identifier: MIT
// What is to be recalled in one sequence: facts and questions, before they are composed with prose.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/data/random.h"
#include "trainer/data/recall_kit.h"

namespace prulong {

/// A statement: "The secret code of the red apple is 48213."
struct RecallFact {
  RecallKit::Tokens adjective, noun;  ///< empty where the task has no names
  RecallKit::Tokens value;
};

/// A question and its only right answer.
struct RecallQuestion {
  RecallKit::Tokens adjective, noun;
  std::vector<RecallKit::Tokens> values;  ///< of "multi_values" several, in the order of their statements
};

/// What one sequence states and asks.
struct RecallSample {
  std::vector<RecallFact> facts;  ///< in the order of the text
  std::vector<RecallQuestion> questions;
};

/// One kind of recall:
/// - "codes": each of `statements` names has one code, stated on its own; `questions` of them are asked.
/// - "key_values": the same as one list of "- red apple: lantern" lines.
/// - "passkey": one number without a name, one question.
/// - "multi_values": each name has four numbers, stated apart; a question wants all four, in the order in which they
///   stood. `statements` / 4 names; at most as many questions.
/// - "labels": many-shot labels. Lines "- red apple: 37" give examples of classes; the noun alone decides the label,
///   and is given with a new adjective every time, also in its question. `statements` examples of `statements` / 4
///   classes, at least 2 and at most as many as there are labels and nouns.
/// Names differ from each other, as do the values of different names.
class RecallKind {
 public:
  /// @throws ConfigError for an unknown name, or where the kit has too few names or values.
  RecallKind(const RecallKit& kit, const std::string& name, int64_t statements, int64_t questions);

  const std::string& name() const { return name_; }
  const RecallKit::Template& parts() const { return *parts_; }
  /// Whether facts stand apart from each other, rather than in one list.
  bool scattered() const { return scattered_; }
  int64_t statements() const { return statements_; }
  int64_t questions() const { return questions_; }
  /// The most tokens that the facts and questions of a sample take, with all parts around them.
  int64_t longest() const;

  RecallSample draw(Random& random) const;

 private:
  RecallSample draw_named(Random& random) const;
  RecallSample draw_multi_values(Random& random) const;
  RecallSample draw_labels(Random& random) const;

  const RecallKit* kit_;
  std::string name_;
  const RecallKit::Template* parts_;
  const RecallKit::List* values_ = nullptr;
  bool named_ = true;
  bool scattered_ = true;
  int64_t statements_;
  int64_t questions_;
  int64_t names_ = 0;            ///< of "labels": classes
  int64_t values_per_name_ = 1;  ///< in one question
};

}  // namespace prulong
