// SPDX-License-Identifier: MIT
#include "csrc/ops/backend.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <string>

#include "tests/support/catch.h"

using prulong::AttentionSpec;
using prulong::Backend;

namespace {

// Sets a variable, or removes it (null), until the end of the scope.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    set(value);
  }
  ~Environment() { set(before_.empty() ? nullptr : before_.c_str()); }

 private:
  void set(const char* value) const { value != nullptr ? setenv(name_, value, 1) : unsetenv(name_); }
  const char* name_;
  std::string before_;
};

struct Ran {
  int reads = 0;
  char backend = ' ';
};

Ran run(Backend backend) {
  Ran ran;
  ran.backend = prulong::run_on(
      backend,
      [&] {
        ++ran.reads;
        return AttentionSpec{{}, {}, {0, 1}, 0.5};
      },
      [] { return 'h'; }, [](const AttentionSpec& spec) { return spec.scale == 0.5 ? 's' : ' '; },
      [](const AttentionSpec& spec) { return spec.scale == 0.5 ? 'b' : ' '; });
  return ran;
}

}  // namespace

TEST_CASE("data on the device are read to the host for every backend but Hopper's, and there under PRULONG_CHECK") {
  for (const char* value : {static_cast<const char*>(nullptr), "", "0", "1"}) {
    INFO("PRULONG_CHECK " << (value != nullptr ? value : "unset"));
    const Environment environment("PRULONG_CHECK", value);
    const bool checks = value != nullptr && std::string(value) == "1";
    const Ran hopper = run(Backend::kHopper), sdpa = run(Backend::kSdpa), blocked = run(Backend::kBlocked);
    CHECK(hopper.backend == 'h');
    CHECK(hopper.reads == (checks ? 1 : 0));
    CHECK(sdpa.backend == 's');
    CHECK(sdpa.reads == 1);
    CHECK(blocked.backend == 'b');
    CHECK(blocked.reads == 1);
  }
}

TEST_CASE("what the check refuses under PRULONG_CHECK never reaches the Hopper kernels") {
  const Environment environment("PRULONG_CHECK", "1");
  bool launched = false;
  const auto refuse = []() -> AttentionSpec { TORCH_CHECK(false, "gate must lie in [0, 1]"); };
  const auto none = [](const AttentionSpec&) { return 0; };
  CHECK_THROWS_WITH(prulong::run_on(
                        Backend::kHopper, refuse,
                        [&] {
                          launched = true;
                          return 0;
                        },
                        none, none),
                    ContainsSubstring("gate must lie in [0, 1]"));
  CHECK_FALSE(launched);
}

TEST_CASE("unknown values of environment variables are refused by name") {
  const Environment check("PRULONG_CHECK", "yes");
  CHECK_THROWS_WITH(run(Backend::kHopper),
                    ContainsSubstring("environment variable PRULONG_CHECK must be 0 or 1, got 'yes'"));
}
