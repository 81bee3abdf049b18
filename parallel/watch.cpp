// SPDX-License-Identifier: MIT
#include "parallel/watch.h"

#include <cstdio>
#include <exception>
#include <map>
#include <utility>
#include <vector>

namespace prulong {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kBeatsToBeGone = 3;
constexpr int kBeatsToExplain = 20;

std::string key_of(int64_t rank) { return "rank/" + std::to_string(rank); }

/// "rank 2", "ranks 0, 1 and 3".
std::string list(const std::vector<int64_t>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (i > 0) text += i + 1 == ranks.size() ? " and " : ", ";
    text += std::to_string(ranks[i]);
  }
  return text;
}

int64_t seconds_since(Clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - time).count();
}

}  // namespace

Watch::Watch(std::unique_ptr<Board> board, int64_t rank, int64_t size, std::chrono::milliseconds timeout,
             std::chrono::milliseconds beat, std::function<void()> on_hang)
    : board_(std::move(board)),
      rank_(rank),
      size_(size),
      timeout_(timeout),
      beat_(beat),
      on_hang_(std::move(on_hang)),
      thread_([this] { watch(); }) {}

Watch::~Watch() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  ended_.notify_all();
  thread_.join();
}

void Watch::enter(const std::string& place) {
  const std::lock_guard lock(mutex_);
  place_ = place;
  since_ = Clock::now();
}

void Watch::watch() {
  std::unique_lock lock(mutex_);
  bool hangs = false;
  for (int64_t beats = 0; !ending_; ++beats) {
    const std::string text = std::to_string(beats) + " " + std::to_string(seconds_since(since_)) + " " + place_;
    const bool too_long = Clock::now() - since_ > timeout_;
    lock.unlock();
    try {
      const std::lock_guard board(board_mutex_);
      if (!alone_) board_->set(key_of(rank_), text);
    } catch (const std::exception&) {
      alone_ = true;  // torchrun or the first rank is gone; whoever waits for a rank will find out
    }
    if (too_long && !std::exchange(hangs, true)) {
      // A thread of its own: this one goes on showing that the rank lives.
      std::thread(on_hang_).detach();
    }
    lock.lock();
    ended_.wait_for(lock, beat_, [&] { return ending_; });
  }
}

Watch::Seen Watch::look_at(int64_t rank) {
  std::optional<std::string> text;
  {
    const std::lock_guard board(board_mutex_);
    text = board_->get(key_of(rank));
  }
  Seen seen;
  if (!text) return seen;
  long long beats = 0, seconds = 0;
  int place = 0;
  if (std::sscanf(text->c_str(), "%lld %lld %n", &beats, &seconds, &place) == 2) {
    seen = {beats, seconds, text->substr(static_cast<size_t>(place))};
  }
  return seen;
}

std::string Watch::who_failed(const std::string& reason) {
  std::vector<Seen> before;
  for (int64_t r = 0; r < size_; ++r) before.push_back(look_at(r));
  std::this_thread::sleep_for(kBeatsToBeGone * beat_);
  std::vector<int64_t> gone, here;
  std::map<std::string, std::vector<int64_t>> places;
  for (int64_t r = 0; r < size_; ++r) {
    const Seen now = look_at(r);
    const bool lives = r == rank_ || now.beats > before[static_cast<size_t>(r)].beats;
    (lives ? here : gone).push_back(r);
    const std::string place = now.beats < 0 ? "start" : now.place;
    if (lives) places[place + "' for " + std::to_string(now.seconds) + " s"].push_back(r);
  }
  std::string text;
  for (const int64_t r : gone) {
    text += "rank " + std::to_string(r) + " of " + std::to_string(size_) + " gives no sign of life since '" +
            before[static_cast<size_t>(r)].place + "' (killed? out of memory?); ";
  }
  if (gone.empty()) text = reason + "; ";
  for (const auto& [place, ranks] : places)
    text += list(ranks) + (ranks.size() == 1 ? " is" : " are") + " in '" + place + "; ";
  return text.substr(0, text.size() - 2);
}

Watch::Explanation Watch::explain(const std::string& reason, bool lost) {
  const std::string own = "rank " + std::to_string(rank_) + " of " + std::to_string(size_) + ": " + reason;
  try {
    bool first = false;
    {
      const std::lock_guard board(board_mutex_);
      first = board_->count("failures") == 1;
    }
    if (first) return {lost ? who_failed(reason) : own};
    for (int i = 0; lost && i < kBeatsToExplain; ++i) {  // seen alive meanwhile
      {
        const std::lock_guard board(board_mutex_);
        if (const auto line = board_->get("explained")) return {*line, false};
      }
      std::this_thread::sleep_for(beat_);
    }
    return {own, false};
  } catch (const std::exception&) {
    return {own};
  }
}

void Watch::explained(const std::string& line) {
  try {
    const std::lock_guard board(board_mutex_);
    board_->set("explained", line);
  } catch (const std::exception&) {  // nobody is left to read it
  }
}

}  // namespace prulong
