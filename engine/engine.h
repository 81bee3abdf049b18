// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <list>
#include <optional>
#include <string>
#include <vector>

#include "engine/decoder.h"
#include "engine/kv_cache.h"
#include "engine/sampling.h"
#include "model/llama.h"
#include "model/pattern.h"

namespace prulong {

struct EngineOptions {
  /// Tokens that one step computes at most, decoded ones and prompts' chunks together; 0: 512 on a CPU, 8,192 on a GPU.
  int64_t tokens_per_step = 0;
  int64_t max_sequences = 64;  ///< requests that run at one time
  double kv_gib = 0;           ///< memory for keys and values; 0: nine tenths of what is free now
  /// Whether tokens may stand beyond the positions that the model was made for (max_position_embeddings).
  bool allow_beyond_positions = false;
};

enum class FinishReason { kLength, kStop, kCancelled };

/// A request's end.
struct Generation {
  int64_t id = 0;
  int64_t prompt_tokens = 0;
  std::vector<int64_t> tokens;  ///< chosen ones, the stop among them
  FinishReason reason = FinishReason::kLength;
};

/// One more token of a request.
struct NewToken {
  int64_t id, token;
};

struct StepResult {
  std::vector<NewToken> tokens;      ///< by time of submission
  std::vector<Generation> finished;  ///< their last tokens are among `tokens` too
};

/// What an engine has done since it was made, or since reset_stats.
struct EngineStats {
  int64_t prompt_tokens = 0;                      ///< computed
  int64_t decoded_tokens = 0;                     ///< computed one by one: new ones, save each request's last
  int64_t new_tokens = 0;                         ///< chosen
  double prompt_seconds = 0, decode_seconds = 0;  ///< a step that does both counts by its rows
  int64_t peak_kv_bytes = 0;       ///< most that keys and values took at one time, a chunk in flight included
  int64_t peak_full_kv_bytes = 0;  ///< most that the same tokens would have taken with every head global
};

/// Generates text with a model, under a pattern or without one. Requests run together: every step computes the next
/// token of those whose prompt is done, and chunks of the others' prompts, each request over its own keys. Requests are
/// admitted in order, once the pages that they can need at most are free. What a request's tokens are does not depend
/// on the others, nor on how its prompt was cut: on a CPU in float32 not by a bit. One thread at a time.
class Engine {
 public:
  /// @throws Error if the pattern does not fit the model, an option is out of range, or the memory holds less than a
  /// page per head.
  Engine(Llama model, const std::optional<Pattern>& pattern, const EngineOptions& options = {});

  /// Queues a request.
  /// @returns its id, counted from 0.
  /// @throws Error if the prompt is empty, holds a token outside the vocabulary or is longer than the model's positions
  /// (allow_beyond_positions), an option of `sampling` is out of range, or the request can never fit in the memory for
  /// keys and values. The engine goes on as before.
  int64_t submit(std::vector<int64_t> prompt, const Sampling& sampling);

  /// Computes one step, if there is anything to do.
  /// @throws whatever computing throws; the requests of that step are gone then.
  StepResult step();

  /// Requests that are not finished.
  bool busy() const { return !waiting_.empty() || !running_.empty(); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t running() const { return static_cast<int64_t>(running_.size()); }

  /// Ends a request; its memory is free at once.
  /// @returns what it had; nullopt if there is no such request (any more).
  std::optional<Generation> cancel(int64_t id);

  /// Submits prompts and runs until they are finished. Results in the prompts' order, ids as submitted.
  /// @param on_token  called for each new token.
  std::vector<Generation> generate(const std::vector<std::vector<int64_t>>& prompts, const Sampling& sampling,
                                   const std::function<void(const NewToken&)>& on_token = {});

  const Llama& model() const { return model_; }
  const EngineOptions& options() const { return options_; }
  const KvCache& cache() const { return cache_; }
  const EngineStats& stats() const { return stats_; }
  void reset_stats();

 private:
  struct Request {
    int64_t id;
    std::vector<int64_t> tokens;  // the prompt and what was chosen
    int64_t prompt_tokens;
    int64_t computed = 0;  // tokens that are in the cache
    int64_t limit;         // most tokens, prompt included
    int64_t pages;         // most that it needs
    Sampling sampling;
    KvCache::Sequence sequence = -1;  // of a running one

    int64_t pending() const { return static_cast<int64_t>(tokens.size()) - computed; }
  };
  /// A request's next tokens, as part of a step.
  struct Share {
    Request* request;
    int64_t count;
  };

  void admit();
  std::vector<Share> share_out();
  void note_full_attention(int64_t new_rows);
  /// Logits of the requests whose tokens are all computed then, in order.
  at::Tensor compute(const std::vector<Share>& shares);
  std::vector<int64_t> choose(const at::Tensor& logits, const std::vector<const Request*>& requests) const;
  std::optional<Generation> take_token(Request& request, int64_t token);
  Generation finish(const Request& request, FinishReason reason);
  void forget(const std::vector<Share>& shares);

  Llama model_;
  EngineOptions options_;
  KvCache cache_;
  Decoder decoder_;
  EngineStats stats_;
  std::list<Request> waiting_;
  std::list<Request> running_;
  int64_t reserved_pages_ = 0;  // of running requests
  int64_t next_id_ = 0;
};

/// Token ids that end a model's text: eos_token_id of generation_config.json, else of config.json; empty if neither
/// names one.
/// @throws Error naming the file if it is not JSON or the ids are no numbers.
std::vector<int64_t> stop_tokens_of(const std::filesystem::path& model_folder);

}  // namespace prulong
