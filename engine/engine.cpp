// SPDX-License-Identifier: MIT
#include "engine/engine.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <set>
#include <utility>

#include "common/error.h"
#include "common/host_memory.h"
#include "engine/cached_attention.h"

namespace prulong {
namespace {

constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();  // the cache's
constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

int64_t free_bytes(at::Device device) {
  if (device.is_cpu()) return available_host_bytes();
  const c10::cuda::CUDAGuard guard(device);
  size_t free = 0, all = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &all));
  return static_cast<int64_t>(free);
}

EngineOptions with_defaults(EngineOptions options, at::Device device) {
  const auto refuse = [](const std::string& name, const std::string& expected, const std::string& found) {
    throw Error(name + ": expected " + expected + ", found " + found);
  };
  if (options.tokens_per_step == 0) options.tokens_per_step = device.is_cpu() ? 512 : 8192;
  if (options.tokens_per_step < 1) refuse("tokens_per_step", "at least 1", std::to_string(options.tokens_per_step));
  if (options.max_sequences < 1) refuse("max_sequences", "at least 1", std::to_string(options.max_sequences));
  if (!(options.kv_gib >= 0 && options.kv_gib < 1e6))
    refuse("kv_gib", "GiB of memory for keys and values (0: what is free)", std::to_string(options.kv_gib));
  // Each running sequence gets at least its next token computed in every step.
  options.max_sequences = std::min(options.max_sequences, options.tokens_per_step);
  return options;
}

KvCacheOptions cache_options(const Llama& model, const std::optional<Pattern>& pattern, const EngineOptions& options) {
  const ModelConfig& config = model.config();
  KvCacheOptions cache;
  cache.layers = config.layers;
  cache.kv_heads = config.kv_heads;
  cache.head_dim = config.head_dim;
  if (pattern) {
    pattern->check_fits(config.shape());
    cache.is_global = pattern->mask;
    cache.sink = std::min(pattern->sink, kMostTokens);
    cache.window = std::min(pattern->window, kMostTokens);
  }
  cache.page = model.device().is_cpu() ? 64 : 128;
  cache.bytes = static_cast<int64_t>(options.kv_gib > 0 ? options.kv_gib * kGib
                                                        : 0.9 * static_cast<double>(free_bytes(model.device())));
  cache.dtype = model.dtype();
  cache.device = model.device();
  return cache;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Engine::Engine(Llama model, const std::optional<Pattern>& pattern, const EngineOptions& options)
    : model_(std::move(model)),
      options_(with_defaults(options, model_.device())),
      cache_(cache_options(model_, pattern, options_)),
      decoder_(model_, cache_) {}

int64_t Engine::submit(std::vector<int64_t> prompt, const Sampling& sampling) {
  const ModelConfig& config = model_.config();
  if (prompt.empty()) throw Error("prompt: expected at least one token, found none");
  check_sampling(sampling, config.vocab_size);
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] >= 0 && prompt[i] < config.vocab_size) continue;
    throw Error("prompt: token " + std::to_string(prompt[i]) + " at place " + std::to_string(i) +
                " is outside the model's vocabulary of " + std::to_string(config.vocab_size) +
                "; was the text prepared with another model's tokenizer?");
  }
  Request request;
  request.prompt_tokens = static_cast<int64_t>(prompt.size());
  request.limit = request.prompt_tokens + sampling.max_new_tokens;
  if (!options_.allow_beyond_positions && config.max_positions > 0) {
    if (request.prompt_tokens > config.max_positions) {
      throw Error("prompt: expected at most " + std::to_string(config.max_positions) +
                  " tokens, the positions that the model was made for, found " + std::to_string(request.prompt_tokens) +
                  "; shorten it, or allow positions beyond them");
    }
    // The last token is chosen, but never computed.
    request.limit = std::min(request.limit, config.max_positions + 1);
  }
  request.pages = cache_.pages_needed(request.limit - 1, options_.tokens_per_step);
  if (request.pages > cache_.pages()) {
    const double page = static_cast<double>(cache_.options().bytes) / static_cast<double>(cache_.pages()) / kGib;
    char numbers[96];
    std::snprintf(numbers, sizeof numbers, "%.3f GiB, there are %.3f GiB", page * static_cast<double>(request.pages),
                  page * static_cast<double>(cache_.pages()));
    throw Error("prompt: keys and values of " + std::to_string(request.prompt_tokens) + " tokens and up to " +
                std::to_string(request.limit - request.prompt_tokens) + " new ones need up to " + numbers +
                "; raise kv_gib, ask for fewer new tokens, or use a mask with more local heads");
  }
  request.id = next_id_++;
  request.tokens = std::move(prompt);
  request.sampling = sampling;
  waiting_.push_back(std::move(request));
  return waiting_.back().id;
}

void Engine::admit() {
  while (!waiting_.empty() && running() < options_.max_sequences &&
         reserved_pages_ + waiting_.front().pages <= cache_.pages()) {
    waiting_.front().sequence = cache_.add();
    reserved_pages_ += waiting_.front().pages;
    running_.splice(running_.end(), waiting_, waiting_.begin());
  }
}

std::vector<Engine::Share> Engine::share_out() {
  int64_t left = options_.tokens_per_step;
  std::vector<Share> shares;
  for (const bool decoding : {true, false}) {
    for (Request& request : running_) {
      if ((request.pending() == 1) != decoding || left == 0) continue;
      shares.push_back({&request, std::min(left, request.pending())});
      left -= shares.back().count;
    }
  }
  return shares;
}

void Engine::note_full_attention(int64_t new_rows) {
  int64_t entries = new_rows;
  for (const Request& request : running_) entries += request.computed;
  const ModelConfig& config = model_.config();
  const int64_t bytes = 2 * config.head_dim * static_cast<int64_t>(c10::elementSize(model_.dtype()));
  stats_.peak_full_kv_bytes = std::max(stats_.peak_full_kv_bytes, entries * config.layers * config.kv_heads * bytes);
}

at::Tensor Engine::compute(const std::vector<Share>& shares) {
  std::vector<KvCache::Sequence> sequences;
  std::vector<int64_t> counts, last_rows;
  int64_t rows = 0;
  for (const auto& [request, count] : shares) {
    sequences.push_back(request->sequence);
    counts.push_back(count);
    rows += count;
    if (count == request->pending()) last_rows.push_back(rows - 1);
  }
  note_full_attention(rows);
  if (rows == static_cast<int64_t>(shares.size()) && last_rows.size() == shares.size()) {
    std::vector<int64_t> next;
    for (const auto& [request, count] : shares) next.push_back(request->tokens.back());
    return decoder_.step(next, sequences);
  }
  at::Tensor tokens = at::empty({rows}, at::kLong), positions = at::empty({rows}, at::kFloat);
  auto* token = tokens.mutable_data_ptr<int64_t>();
  auto* position = positions.mutable_data_ptr<float>();
  for (const auto& [request, count] : shares) {
    for (int64_t i = request->computed; i < request->computed + count; ++i) {
      *token++ = request->tokens[static_cast<size_t>(i)];
      *position++ = static_cast<float>(i);
    }
  }
  const at::Device device = model_.device();
  const auto attention = std::make_shared<CachedAttention>(cache_, cache_.append(sequences, counts));
  const at::Tensor hidden = model_.forward(tokens.to(device), positions.to(device), attention);
  if (last_rows.empty()) return {};
  const at::Tensor last = hidden.index_select(0, at::tensor(last_rows, at::kLong).to(device));
  return model_.logits(last, /*independent_rows=*/true);
}

std::vector<int64_t> Engine::choose(const at::Tensor& logits, const std::vector<const Request*>& requests) const {
  std::vector<int64_t> chosen;
  const bool greedy = std::all_of(requests.begin(), requests.end(), [](const Request* request) {
    return request->sampling.temperature == 0 && request->sampling.repetition_penalty == 1;
  });
  if (greedy && logits.is_cuda()) {  // then the logits stay there
    const auto [most, tokens] = logits.max(-1);
    const at::Tensor values = most.to(at::kCPU, at::kFloat), places = tokens.cpu();
    for (int64_t i = 0; i < places.size(0); ++i) {
      check_maximum(values.const_data_ptr<float>()[i]);
      chosen.push_back(places.const_data_ptr<int64_t>()[i]);
    }
    return chosen;
  }
  const at::Tensor host = logits.to(at::kCPU, at::kFloat).contiguous();
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& request = *requests[i];
    const int64_t index = static_cast<int64_t>(request.tokens.size()) - request.prompt_tokens;
    at::Tensor row = host[static_cast<int64_t>(i)];
    chosen.push_back(sample_token({row.mutable_data_ptr<float>(), static_cast<size_t>(row.numel())}, request.sampling,
                                  request.tokens, index));
  }
  return chosen;
}

StepResult Engine::step() {
  const c10::NoGradGuard no_grad;
  const auto start = std::chrono::steady_clock::now();
  admit();
  const std::vector<Share> shares = share_out();
  StepResult result;
  if (shares.empty()) return result;
  int64_t rows = 0, decoded = 0;
  try {
    const at::Tensor logits = compute(shares);
    std::vector<const Request*> ready;
    for (const auto& [request, count] : shares) {
      if (count == request->pending()) ready.push_back(request);
    }
    const std::vector<int64_t> chosen = ready.empty() ? std::vector<int64_t>() : choose(logits, ready);
    auto next = chosen.begin();
    for (const auto& [request, count] : shares) {
      const bool decodes = request->computed >= request->prompt_tokens;
      rows += count;
      decoded += decodes ? count : 0;
      (decodes ? stats_.decoded_tokens : stats_.prompt_tokens) += count;
      request->computed += count;
      if (request->pending() > 0) continue;
      if (auto finished = take_token(*request, *next++)) result.finished.push_back(std::move(*finished));
      result.tokens.push_back({request->id, request->tokens.back()});
      ++stats_.new_tokens;
    }
  } catch (...) {
    forget(shares);
    throw;
  }
  stats_.peak_kv_bytes = cache_.bytes().peak;
  for (const Generation& done : result.finished) {
    const auto place =
        std::find_if(running_.begin(), running_.end(), [&](const Request& r) { return r.id == done.id; });
    cache_.drop(place->sequence);
    reserved_pages_ -= place->pages;
    running_.erase(place);
  }
  std::sort(result.tokens.begin(), result.tokens.end(), [](auto& a, auto& b) { return a.id < b.id; });
  const double seconds = seconds_since(start), share = static_cast<double>(decoded) / static_cast<double>(rows);
  stats_.decode_seconds += seconds * share;
  stats_.prompt_seconds += seconds * (1 - share);
  return result;
}

std::optional<Generation> Engine::take_token(Request& request, int64_t token) {
  request.tokens.push_back(token);
  const std::span<const int64_t> chosen(request.tokens.begin() + request.prompt_tokens, request.tokens.end());
  if (meets_stop(request.sampling, chosen)) return finish(request, FinishReason::kStop);
  if (static_cast<int64_t>(request.tokens.size()) >= request.limit) return finish(request, FinishReason::kLength);
  return std::nullopt;
}

Generation Engine::finish(const Request& request, FinishReason reason) {
  return {request.id, request.prompt_tokens,
          std::vector<int64_t>(request.tokens.begin() + request.prompt_tokens, request.tokens.end()), reason};
}

void Engine::forget(const std::vector<Share>& shares) {
  std::set<int64_t> ids;
  for (const Share& share : shares) ids.insert(share.request->id);
  for (const int64_t id : ids) cancel(id);
}

std::optional<Generation> Engine::cancel(int64_t id) {
  for (std::list<Request>* requests : {&waiting_, &running_}) {
    const auto place = std::find_if(requests->begin(), requests->end(), [&](const Request& r) { return r.id == id; });
    if (place == requests->end()) continue;
    Generation result = finish(*place, FinishReason::kCancelled);
    if (place->sequence >= 0) {
      cache_.drop(place->sequence);
      reserved_pages_ -= place->pages;
    }
    requests->erase(place);
    return result;
  }
  return std::nullopt;
}

std::vector<Generation> Engine::generate(const std::vector<std::vector<int64_t>>& prompts, const Sampling& sampling,
                                         const std::function<void(const NewToken&)>& on_token) {
  std::vector<Generation> results(prompts.size());
  std::vector<int64_t> ids;
  try {
    for (const auto& prompt : prompts) ids.push_back(submit(prompt, sampling));
    size_t left = prompts.size();
    while (left > 0) {
      StepResult result = step();
      if (on_token) std::for_each(result.tokens.begin(), result.tokens.end(), on_token);
      for (Generation& done : result.finished) {
        const auto place = std::find(ids.begin(), ids.end(), done.id);
        if (place == ids.end()) continue;  // submitted by someone else before
        results[static_cast<size_t>(place - ids.begin())] = std::move(done);
        --left;
      }
    }
  } catch (...) {
    for (const int64_t id : ids) cancel(id);
    throw;
  }
  return results;
}

void Engine::reset_stats() { stats_ = {}; }

}  // namespace prulong
