// SPDX-License-Identifier: MIT
#include "eval/compare.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "common/error.h"
#include "common/philox.h"
#include "common/provenance.h"
#include "eval/advice.h"
#include "model/open_model.h"
#include "parallel/agreement.h"
#include "trainer/data/open_source.h"

namespace prulong {
namespace {

constexpr int64_t kLossChunk = 2048;

struct Method {
  MethodResult row;
  std::vector<HeadMask> mask;
};

std::string percent(double share) {
  char text[16];
  std::snprintf(text, sizeof text, "%.0f %%", 100 * share);
  return text;
}

/// Every mask of a method, rounded and checked before anything is measured.
std::vector<Pattern> patterns_of(const MethodOptions& options, const EvalConfig& config, const ModelShape& shape) {
  const auto heads = static_cast<size_t>(shape.layers * shape.kv_heads);
  const auto& [sink, window] = config.attention;
  switch (options.type) {
    case MethodType::kFull:
    case MethodType::kLocal:
      return {Pattern::from_scores(shape, std::vector<double>(heads, 0.0), options.type == MethodType::kFull ? 0 : 1,
                                   sink, window)};
    case MethodType::kPattern: {
      auto pattern = Pattern::load(options.path);
      pattern.check_fits(shape, options.path);
      if (options.sparsity < 0) return {pattern};
      return {Pattern::from_scores(shape, pattern.scores, options.sparsity, pattern.sink, pattern.window)};
    }
    case MethodType::kRandom:
      break;
  }
  std::vector<Pattern> masks;
  for (int64_t i = 0; i < options.count; ++i) {
    std::vector<double> scores;
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      for (int64_t head = 0; head < shape.kv_heads; ++head) {
        scores.push_back(random_mask_score(static_cast<uint64_t>(options.seed), i, layer, head));
      }
    }
    masks.push_back(Pattern::from_scores(shape, scores, options.sparsity, sink, window));
  }
  return masks;
}

std::string default_label(const MethodOptions& options, const Pattern& pattern) {
  switch (options.type) {
    case MethodType::kFull:
      return "full attention";
    case MethodType::kLocal:
      return "all heads local";
    case MethodType::kPattern:
      return "mask, " + percent(pattern.local_fraction()) + " of heads local";
    case MethodType::kRandom:
      break;
  }
  return std::to_string(options.count) + " random masks, " + percent(pattern.local_fraction());
}

using Cells = std::array<std::string, 4>;

/// The first column to the left, the others to the right.
std::string aligned(const std::vector<Cells>& lines) {
  const auto width_of = [](const std::string& text) {  // characters, not bytes of UTF-8
    return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
  };
  std::array<size_t, 4> widths{};
  for (const Cells& cells : lines) {
    for (size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], width_of(cells[i]));
  }
  std::string text;
  for (const Cells& cells : lines) {
    text += cells[0] + std::string(widths[0] - width_of(cells[0]), ' ');
    for (size_t i = 1; i < cells.size(); ++i) text += std::string(3 + widths[i] - width_of(cells[i]), ' ') + cells[i];
    text += '\n';
  }
  return text;
}

template <class Get>
double mean(const std::vector<EvalResult>& results, Get get) {
  double sum = 0;
  for (const EvalResult& result : results) sum += get(result);
  return sum / static_cast<double>(results.size());
}

}  // namespace

double MethodResult::mean_answer_accuracy() const {
  return mean(results, [](const EvalResult& h) { return h.answer_accuracy; });
}

double MethodResult::mean_answer_exact() const {
  return mean(results, [](const EvalResult& h) { return h.answer_exact; });
}

double kv_kept(double local_fraction, int64_t sink, int64_t window, int64_t tokens) {
  // Each bounded for itself: their sum may overflow.
  const int64_t kept = std::min(tokens, std::min(sink, tokens) + std::min(window, tokens));
  const auto local = static_cast<double>(kept) / static_cast<double>(tokens);
  return local_fraction * local + (1 - local_fraction);
}

Comparison compare(const EvalConfig& config, const std::function<void(const std::string&)>& say, const Mesh& mesh) {
  const Llama model = open_model(config.model, mesh.launch());
  if (const auto note = dtype_note(config.model, model)) say(*note);
  const auto source = open_sources(config.data, config.seq_len, 0, true, model.config().vocab_size);
  std::map<std::string, std::string> inputs = {{"model", model_fingerprint(config.model.path)},
                                               {"model.dtype", dtype_name(model.dtype())},
                                               {"data", source->fingerprint()},
                                               {"sequences", std::to_string(config.sequences)}};
  std::vector<Method> methods;
  std::set<std::pair<int64_t, int64_t>> windows;  // sink and window of local heads
  for (const MethodOptions& options : config.methods) {
    Method& method = methods.emplace_back();
    const auto patterns = patterns_of(options, config, model.config().shape());
    for (const Pattern& pattern : patterns) {
      inputs["methods." + std::to_string(methods.size() - 1)] += mask_fingerprint(pattern.mask) + " ";
      // Full attention needs no mask arithmetic at all: the plain path is the baseline.
      method.mask.push_back(options.type == MethodType::kFull
                                ? HeadMask{}
                                : HeadMask::from_pattern(pattern, model.config(), model.device()));
    }
    const Pattern& first = patterns.front();
    if (options.type != MethodType::kFull) windows.emplace(first.sink, first.window);
    method.row.label = options.label.empty() ? default_label(options, first) : options.label;
    method.row.type = std::string(name_of(options.type));
    method.row.local_fraction = first.local_fraction();
    method.row.kv_kept = kv_kept(first.local_fraction(), first.sink, first.window, config.seq_len);
  }
  Comparison comparison = {model.device().str(), dtype_name(model.dtype()), machine(model.device()), {}};
  const auto lengths = first_documents(*source, config.seq_len, config.sequences);
  if (windows.empty()) windows.emplace(0, 0);  // positions matter to full attention too
  std::set<std::string> said;
  for (const auto& [sink, window] : windows) {
    for (const auto& advice : length_advice(lengths, model.config(), sink, window)) {
      if (said.insert(advice).second) say("warning: " + advice);
    }
  }
  check_same_on_all(mesh.world(), inputs);
  for (Method& method : methods) {
    say("measuring: " + method.row.label);
    for (const HeadMask& mask : method.mask) {
      method.row.results.push_back(evaluate(model, *source, 0, config.sequences, mask, true, kLossChunk, mesh));
    }
    comparison.rows.push_back(std::move(method.row));
  }
  return comparison;
}

std::string comparison_table(const std::vector<MethodResult>& rows) {
  const auto cell = [](const MethodResult& row, double average, auto get) {
    char text[64];
    if (row.results.size() == 1) {
      std::snprintf(text, sizeof text, "%.1f %%", 100 * average);
      return std::string(text);
    }
    const auto [low, high] = std::minmax_element(row.results.begin(), row.results.end(),
                                                 [&](const auto& a, const auto& b) { return get(a) < get(b); });
    std::snprintf(text, sizeof text, "%.1f %% (%.1f to %.1f)", 100 * average, 100 * get(*low), 100 * get(*high));
    return std::string(text);
  };
  std::vector<Cells> lines = {{"method", "answer tokens right", "whole answers right", "KV kept"}};
  for (const auto& row : rows) {
    char kept[32];
    std::snprintf(kept, sizeof kept, "%.1f %%", 100 * row.kv_kept);
    lines.push_back({row.label,
                     cell(row, row.mean_answer_accuracy(), [](const EvalResult& h) { return h.answer_accuracy; }),
                     cell(row, row.mean_answer_exact(), [](const EvalResult& h) { return h.answer_exact; }), kept});
  }
  return aligned(lines);
}

std::string comparison_json(const EvalConfig& config, const Comparison& comparison) {
  EvalConfig copy = config;
  nlohmann::json report = {{"config", to_yaml([&](ConfigVisitor& v) { visit_config(v, copy); })},
                           {"seq_len", config.seq_len},
                           {"sequences", config.sequences},
                           {"model", config.model.path},
                           {"device", comparison.device},
                           {"dtype", comparison.dtype},
                           {"machine", comparison.machine},
                           {"versions", versions()},
                           {"methods", nlohmann::json::array()}};
  for (const auto& row : comparison.rows) {
    nlohmann::json masks = nlohmann::json::array();
    for (const EvalResult& h : row.results) {
      masks.push_back({{"answer_accuracy", h.answer_accuracy},
                       {"answer_exact", h.answer_exact},
                       {"answer_tokens", h.answer_tokens},
                       {"answers", h.answers},
                       {"answer_loss_nats", h.loss_nats}});
    }
    report["methods"].push_back({{"label", row.label},
                                 {"type", row.type},
                                 {"local_fraction", row.local_fraction},
                                 {"kv_kept", row.kv_kept},
                                 {"answer_accuracy", row.mean_answer_accuracy()},
                                 {"answer_exact", row.mean_answer_exact()},
                                 {"masks", masks}});
  }
  return report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace prulong
