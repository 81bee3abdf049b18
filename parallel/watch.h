// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

namespace prulong {

/// Short texts that all ranks can read, by key.
class Board {
 public:
  virtual ~Board() = default;
  virtual void set(const std::string& key, const std::string& text) = 0;
  virtual std::optional<std::string> get(const std::string& key) = 0;
  /// @returns how often `key` was counted so far, this time included.
  virtual int64_t count(const std::string& key) = 0;
};

/// Shows the other ranks where this one is, as long as it lives, and so finds out afterwards which rank failed.
class Watch {
 public:
  /// @param board    used by this object alone; may throw once the ranks fall apart.
  /// @param timeout  how long this rank may stay in one place.
  /// @param beat     how often it shows that it lives.
  /// @param on_hang  called once, by the watching thread, after that.
  Watch(std::unique_ptr<Board> board, int64_t rank, int64_t size, std::chrono::milliseconds timeout,
        std::chrono::milliseconds beat, std::function<void()> on_hang);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  void enter(const std::string& place);

  /// Why the run ends.
  struct Explanation {
    std::string line;
    bool ours = true;  ///< this rank says it: the first that fails does
  };
  /// @param reason  what this rank found.
  /// @param lost    only that it cannot go on with the others: then it is asked who is gone, and where the others are.
  Explanation explain(const std::string& reason, bool lost);
  /// This rank has said it: the others, who showed so far that they live, may end.
  void explained(const std::string& line);

 private:
  struct Seen {
    int64_t beats = -1;  // none was ever seen
    int64_t seconds = 0;
    std::string place;
  };
  void watch();
  Seen look_at(int64_t rank);
  std::string who_failed(const std::string& reason);

  std::unique_ptr<Board> board_;
  const int64_t rank_, size_;
  const std::chrono::milliseconds timeout_, beat_;
  const std::function<void()> on_hang_;
  std::mutex board_mutex_, mutex_;  // of the board; of what follows
  std::condition_variable ended_;
  bool ending_ = false, alone_ = false;
  std::string place_ = "start";
  std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
  std::thread thread_;  // the last: it uses the others
};

}  // namespace prulong
