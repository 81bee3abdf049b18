// SPDX-License-Identifier: MIT
#include "common/provenance.h"

#include <ATen/ops/arange.h>

#include <set>

#include "common/cpu.h"
#include "common/error.h"
#include "model/safetensors.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"
#include "tests/support/files.h"

using namespace prulong;
using test::TemporaryFolder;
using test::write_text;

TEST_CASE("A model's fingerprint changes with its configuration, its tensors and their values, not with its place") {
  const auto write = [](const TemporaryFolder& folder, const char* config, const TensorMap& tensors) {
    write_text(folder / "config.json", config);
    write_text(folder / "README.md", config);
    save_safetensors(folder / "model.safetensors", tensors);
    return model_fingerprint(folder.path());
  };
  const TemporaryFolder one, other;
  // More than the samples hold.
  const at::Tensor weights = at::arange(300'000, at::kFloat);
  const std::string original = write(one, "{}", {{"a", weights}});
  CHECK(original.size() == 16);
  CHECK(write(other, "{}", {{"a", weights}}) == original);
  write_text(other / "README.md", "something else");
  CHECK(model_fingerprint(other.path()) == original);

  std::set<std::string> seen = {original};
  const auto is_new = [&](const std::string& found) { return seen.insert(found).second; };
  CHECK(is_new(write(other, "{ }", {{"a", weights}})));
  CHECK(is_new(write(other, "{}", {{"b", weights}})));
  CHECK(is_new(write(other, "{}", {{"a", weights.view({3, 100'000})}})));
  CHECK(is_new(write(other, "{}", {{"a", weights.neg()}})));
  for (const int64_t at : {0, 299'999}) {
    at::Tensor changed = weights.clone();
    changed[at] = -1;
    CHECK(is_new(write(other, "{}", {{"a", changed}})));
  }
  write(other, "{}", {{"a", weights}});
  write_text(other / "second.safetensors", "");
  CHECK(is_new(model_fingerprint(other.path())));
  std::filesystem::rename(other / "second.safetensors", other / "third.safetensors");
  CHECK(is_new(model_fingerprint(other.path())));
  write_text(other / "third.safetensors", std::string(8, '\xff'));  // a header longer than the file
  CHECK(is_new(model_fingerprint(other.path())));
}

TEST_CASE("A folder that is no model is named") {
  const TemporaryFolder folder;
  CHECK_THROWS_WITH(model_fingerprint(folder.path()), ContainsSubstring("config.json: cannot open"));
  CHECK_THROWS_WITH(model_fingerprint(folder / "none"), ContainsSubstring("none: cannot be listed"));
}

TEST_CASE("Fingerprints of tables and masks tell what differs") {
  CHECK(fingerprint({{"a", "b"}}) == fingerprint({{"a", "b"}}));
  CHECK(fingerprint({{"a", "b"}}) != fingerprint({{"ab", ""}}));
  CHECK(fingerprint({{"a", "b"}}) != fingerprint({{"a", "c"}}));
  CHECK(fingerprint({}) != fingerprint({{"", ""}}));
  CHECK(mask_fingerprint({1, 0}) == mask_fingerprint({1, 0}));
  CHECK(mask_fingerprint({1, 0}) != mask_fingerprint({0, 1}));
}

TEST_CASE("Versions are never empty") {
  for (const auto& [key, value] : versions()) CHECK_FALSE(value.empty());
  CHECK(versions().contains("commit"));
  CHECK(versions().at("torch").starts_with("2."));
  CHECK_FALSE(cpu_name().empty());
}
