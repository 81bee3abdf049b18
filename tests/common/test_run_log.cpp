// SPDX-License-Identifier: MIT
#include "common/run_log.h"

#include <limits>

#include "common/error.h"
#include "tests/support/catch.h"
#include "tests/support/files.h"

using namespace prulong;
using test::read_text;
using test::TemporaryFolder;
using test::write_text;

namespace {

/// What metrics.jsonl holds after a run resumed at a step.
std::string resumed(const std::string& before, int64_t step) {
  const TemporaryFolder folder;
  write_text(folder / "metrics.jsonl", before);
  { const RunLog log(folder.path(), step); }
  return read_text(folder / "metrics.jsonl");
}

}  // namespace

TEST_CASE("Metrics of steps that a resumed run repeats are dropped") {
  const std::string one = "{\"step\":1,\"loss_nats\":2.5}\n", two = "{\"step\":2}\n",
                    held_out = "{\"held_out\":{},\"step\":2}\n", three = "{\"step\":3}\n";
  CHECK(resumed(one + two + held_out + three, 2) == one + two + held_out);
  CHECK(resumed(one + two + three, 3) == one + two + three);
  CHECK(resumed(one + two, 0) == "");
  CHECK(resumed("", 5) == "");
  // A checkpoint that was passed over leaves later lines ahead of repeated ones.
  CHECK(resumed(one + two + three, 1) == one);
}

TEST_CASE("A line cut short by a kill is dropped") {
  CHECK(resumed("{\"step\":1}\n{\"step\":2,\"loss", 9) == "{\"step\":1}\n");
  CHECK(resumed("{\"step\":1}\n{\"step\":2}", 9) == "{\"step\":1}\n{\"step\":2}\n");  // only its newline was cut
  CHECK(resumed("{\"step\":1}\n\n[1]\n{\"step\":\"2\"}\nnull\n", 9) == "{\"step\":1}\n");
}

TEST_CASE("Metrics are appended, messages are kept in log.txt") {
  const TemporaryFolder folder;
  {
    RunLog log(folder.path(), 0);
    log.metrics("{\"step\":1}");
    CHECK(read_text(folder / "metrics.jsonl") == "{\"step\":1}\n");  // at once: a kill loses no finished step
    log.warn("something {odd} of 100 %");
  }
  RunLog log(folder.path(), 1);
  log.metrics("{\"step\":2}");
  CHECK(read_text(folder / "metrics.jsonl") == "{\"step\":1}\n{\"step\":2}\n");
  CHECK_THAT(read_text(folder.path() / "log.txt"), ContainsSubstring(" warning something {odd} of 100 %\n"));
}

TEST_CASE("A measurement that cannot be written, or has no step, is an error") {
  const TemporaryFolder folder;
  RunLog log(folder.path(), 0);
  CHECK_THROWS(log.metrics("{\"loss_nats\":1}"));
  CHECK_THROWS_WITH(EventFile(folder.path() / "none", 0), ContainsSubstring("none/events.out.tfevents."));
}

TEST_CASE("What was measured of the step that a run goes on from is known") {
  const TemporaryFolder folder;
  write_text(folder / "metrics.jsonl", "{\"step\":1,\"held_out\":{}}\n{\"step\":2}\n{\"step\":3,\"held_out\":{}}\n");
  CHECK_FALSE(RunLog(folder.path(), 2).resumed_with("held_out"));
  CHECK(RunLog(folder.path(), 1).resumed_with("held_out"));
  CHECK_FALSE(RunLog(folder.path(), 0).resumed_with("held_out"));
}

TEST_CASE("A folder that cannot take a log is named") {
  CHECK_THROWS_WITH(RunLog("/nowhere/at/all", 0), ContainsSubstring("/nowhere/at/all/metrics.jsonl"));
}

TEST_CASE("Times are short") {
  CHECK(format_seconds(0) == "0 s");
  CHECK(format_seconds(44.6) == "45 s");
  CHECK(format_seconds(59.4) == "59 s");
  CHECK(format_seconds(59.6) == "1:00");
  CHECK(format_seconds(754) == "12:34");
  CHECK(format_seconds(3599.6) == "1:00:00");
  CHECK(format_seconds(5025) == "1:23:45");
  CHECK(format_seconds(360000) == "100:00:00");
  CHECK(format_seconds(-3) == "0 s");
  CHECK(format_seconds(std::numeric_limits<double>::quiet_NaN()) == "0 s");
}
