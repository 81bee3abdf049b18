// SPDX-License-Identifier: MIT
#include "parallel/watch.h"

#include <atomic>
#include <map>
#include <stdexcept>

#include "tests/support/catch.h"

using namespace prulong;
using namespace std::chrono_literals;

namespace {

/// What all ranks of a test share.
struct Wall {
  std::mutex mutex;
  std::map<std::string, std::string> texts;
  std::map<std::string, int64_t> counts;
  bool broken = false;
};

class WallBoard : public Board {
 public:
  explicit WallBoard(std::shared_ptr<Wall> wall) : wall_(std::move(wall)) {}
  void set(const std::string& key, const std::string& text) override {
    const std::lock_guard lock(whole());
    wall_->texts[key] = text;
  }
  std::optional<std::string> get(const std::string& key) override {
    const std::lock_guard lock(whole());
    const auto found = wall_->texts.find(key);
    if (found == wall_->texts.end()) return std::nullopt;
    return found->second;
  }
  int64_t count(const std::string& key) override {
    const std::lock_guard lock(whole());
    return ++wall_->counts[key];
  }

 private:
  std::mutex& whole() const {
    if (wall_->broken) throw std::runtime_error("broken");
    return wall_->mutex;
  }
  std::shared_ptr<Wall> wall_;
};

std::unique_ptr<Watch> watch_of(
    const std::shared_ptr<Wall>& wall, int64_t rank, std::chrono::milliseconds timeout = 1h,
    std::function<void()> on_hang = [] {}) {
  return std::make_unique<Watch>(std::make_unique<WallBoard>(wall), rank, 3, timeout, 20ms, std::move(on_hang));
}

}  // namespace

TEST_CASE("The first rank that fails says why, the others are silent") {
  const auto wall = std::make_shared<Wall>();
  const auto one = watch_of(wall, 1), two = watch_of(wall, 2);
  const auto first = one->explain("data.bin: damaged", false);
  CHECK((first.ours && first.line == "rank 1 of 3: data.bin: damaged"));
  CHECK_FALSE(two->explain("data.bin: damaged", false).ours);
  one->explained(first.line);
  const auto later = two->explain("connection closed", true);
  CHECK((!later.ours && later.line == first.line));
}

TEST_CASE("Of ranks that are lost the one is named that shows no life, with its last place") {
  const auto wall = std::make_shared<Wall>();
  const auto zero = watch_of(wall, 0), two = watch_of(wall, 2);
  auto one = watch_of(wall, 1);
  zero->enter("step 3: sums over ranks");
  two->enter("step 3: sums over ranks");
  one->enter("step 3: sequence 7");
  std::this_thread::sleep_for(60ms);
  one.reset();
  CHECK(zero->explain("connection closed", true).line ==
        "rank 1 of 3 gives no sign of life since 'step 3: sequence 7' (killed? out of memory?); ranks 0 and 2 are in "
        "'step 3: "
        "sums over ranks' for 0 s");
}

TEST_CASE("A rank that stays in one place for too long is told of, with all others") {
  const auto wall = std::make_shared<Wall>();
  std::mutex mutex;
  std::condition_variable called;
  int calls = 0;
  const auto zero = watch_of(wall, 0), two = watch_of(wall, 2);
  const auto one = watch_of(wall, 1, 100ms, [&] {
    const std::lock_guard lock(mutex);
    ++calls;
    called.notify_all();
  });
  zero->enter("a");
  two->enter("a");
  one->enter("b");
  std::unique_lock lock(mutex);
  REQUIRE(called.wait_for(lock, 10s, [&] { return calls > 0; }));
  CHECK(one->explain("no step within 0 s", true).line ==
        "no step within 0 s; ranks 0 and 2 are in 'a' for 0 s; rank 1 is in 'b' for 0 s");
  CHECK(calls == 1);
}

TEST_CASE("Entering places often enough is life") {
  const auto wall = std::make_shared<Wall>();
  std::atomic<int> calls = 0;
  const auto zero = watch_of(wall, 0, 300ms, [&] { ++calls; });
  for (int i = 0; i < 20; ++i) {
    zero->enter("place " + std::to_string(i));
    std::this_thread::sleep_for(20ms);
  }
  CHECK(calls == 0);
}

TEST_CASE("A rank that reaches nobody says what it knows") {
  const auto wall = std::make_shared<Wall>();
  const auto zero = watch_of(wall, 0);
  wall->broken = true;
  std::this_thread::sleep_for(60ms);
  CHECK(zero->explain("connection closed", true).line == "rank 0 of 3: connection closed");
  zero->explained("");
}
