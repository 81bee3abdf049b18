// SPDX-License-Identifier: MIT
#include "trainer/checkpoint.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "common/error.h"
#include "common/hash.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"
#include "tests/support/files.h"

using namespace prulong;
using test::read_text;
using test::TemporaryFolder;
using test::write_text;

namespace {

TrainingState state_of(int64_t step) {
  TrainingState state;
  state.step = step;
  state.sequences = 3 * step + 1;
  at::manual_seed(static_cast<uint64_t>(step));
  state.tensors["log_alpha"] = at::randn({7}, at::kDouble);
  state.tensors["log_alpha"][2].fill_(-0.0);
  state.tensors["log_alpha"][3].fill_(std::numeric_limits<double>::denorm_min());
  state.tensors["multipliers"] = at::full({2}, std::nan(""), at::kDouble);
  state.tensors["weights.a"] = at::randn({3, 5}, at::kFloat);
  state.tensors["weights.b"] = at::randn({2, 3}, at::kBFloat16).t();
  state.tensors["steps"] = at::arange(4, at::kLong);
  state.identity = {{"model", "f00d"}, {"data.train", "tokens \"caf\xc3\xa9\"\nx"}, {"sparsity.end", "0.7"}};
  return state;
}

void check_same(const TrainingState& a, const TrainingState& b) {
  CHECK(a.step == b.step);
  CHECK(a.sequences == b.sequences);
  CHECK(a.identity == b.identity);
  REQUIRE(a.tensors.size() == b.tensors.size());
  for (const auto& [name, tensor] : a.tensors) {
    CAPTURE(name);
    REQUIRE(b.tensors.count(name) == 1);
    const auto one = tensor.contiguous(), other = b.tensors.at(name).contiguous();
    REQUIRE(one.scalar_type() == other.scalar_type());
    REQUIRE(one.sizes() == other.sizes());
    CHECK(std::memcmp(one.const_data_ptr(), other.const_data_ptr(), one.nbytes()) == 0);
  }
}

struct Loaded {
  std::optional<TrainingState> state;
  std::vector<std::string> warnings;
};

Loaded load(const std::filesystem::path& folder) {
  Loaded result;
  result.state = load_newest_checkpoint(folder, [&](const std::string& text) { result.warnings.push_back(text); });
  return result;
}

std::set<std::string> files_of(const std::filesystem::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

void flip_bit(const std::filesystem::path& file, size_t at) {
  std::string bytes = read_text(file);
  bytes[at] = static_cast<char>(bytes[at] ^ 4);
  write_text(file, bytes);
}

}  // namespace

TEST_CASE("A checkpoint comes back bit for bit") {
  const TemporaryFolder folder;
  const auto place = folder / "run" / "checkpoints";  // made when missing
  save_checkpoint(place, state_of(5), 1);
  CHECK(files_of(place) == std::set<std::string>{"step-00000005.json", "step-00000005.safetensors"});
  const Loaded loaded = load(place);
  REQUIRE(loaded.state);
  CHECK(loaded.warnings.empty());
  check_same(*loaded.state, state_of(5));
  // What was loaded lives on without the file.
  save_checkpoint(place, state_of(6), 1);
  check_same(*loaded.state, state_of(5));
}

TEST_CASE("Only the newest checkpoints are kept, by number and not by name") {
  const TemporaryFolder folder;
  for (const int64_t step : {8, 9, 10}) save_checkpoint(folder.path(), state_of(step), 2);
  CHECK(files_of(folder.path()) == std::set<std::string>{"step-00000009.json", "step-00000009.safetensors",
                                                         "step-00000010.json", "step-00000010.safetensors"});
  for (const int64_t step : {99'999'999, 100'000'000}) save_checkpoint(folder.path(), state_of(step), 1);
  CHECK(files_of(folder.path()) == std::set<std::string>{"step-100000000.json", "step-100000000.safetensors"});
  CHECK(load(folder.path()).state->step == 100'000'000);
}

TEST_CASE("No checkpoint is no error") {
  const TemporaryFolder folder;
  CHECK_FALSE(load(folder / "missing").state);
  CHECK_FALSE(load(folder.path()).state);
}

TEST_CASE("What is left of a save that was cut short is ignored") {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), state_of(1), 3);
  const std::string data = read_text(folder / "step-00000001.safetensors");
  write_text(folder / "step-00000002.safetensors", data);
  write_text(folder / "step-00000003.safetensors.tmp", data.substr(0, 50));
  write_text(folder / "step-00000003.json.tmp", "{");
  const Loaded loaded = load(folder.path());
  REQUIRE(loaded.state);
  CHECK(loaded.state->step == 1);
  CHECK(loaded.warnings.empty());
  save_checkpoint(folder.path(), state_of(2), 3);
  check_same(*load(folder.path()).state, state_of(2));
}

TEST_CASE("A damaged checkpoint falls back to the one before, with a warning that names the file") {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), state_of(1), 3);
  save_checkpoint(folder.path(), state_of(2), 3);
  const auto data = folder / "step-00000002.safetensors", manifest = folder / "step-00000002.json";
  const auto check_falls_back = [&](const std::string& reason) {
    const Loaded loaded = load(folder.path());
    REQUIRE(loaded.state);
    check_same(*loaded.state, state_of(1));
    REQUIRE(loaded.warnings.size() == 1);
    CHECK_THAT(loaded.warnings[0],
               ContainsSubstring("damaged") && ContainsSubstring("step-00000002") && ContainsSubstring(reason));
    CHECK(loaded.warnings[0].find('\n') == std::string::npos);
  };
  SECTION("a flipped bit, anywhere") {
    const auto size = std::filesystem::file_size(data);
    for (const size_t at : {size_t{0}, size_t{9}, static_cast<size_t>(size) / 2, static_cast<size_t>(size) - 1}) {
      CAPTURE(at);
      flip_bit(data, at);
      check_falls_back("checksum");
      flip_bit(data, at);
    }
    CHECK(load(folder.path()).state->step == 2);
  }
  SECTION("data cut short") {
    const std::string bytes = read_text(data);
    write_text(data, bytes.substr(0, bytes.size() - 1));
    check_falls_back("bytes");
    write_text(data, "");
    check_falls_back("0 bytes");
  }
  SECTION("no data") {
    std::filesystem::remove(data);
    check_falls_back("missing");
  }
  SECTION("a damaged manifest") {
    const std::string good = read_text(manifest);
    for (const std::string bad : {"", "{", "[]", "null", "{\"format\": \"prulong-checkpoint\", \"version\": 2}",
                                  "{\"format\": 3, \"version\": 2, \"bytes\": 3, \"xxh3_64\": \"\"}"}) {
      CAPTURE(bad);
      write_text(manifest, bad);
      check_falls_back("manifest");
    }
    write_text(manifest, R"({"format": "prulong-checkpoint", "version": 2, "bytes": "many", "xxh3_64": []})");
    check_falls_back("manifest");
    write_text(manifest, R"({"format": "prulong-checkpoint", "version": 2, "bytes": 7, "xxh3_64": ""})");
    check_falls_back("its manifest says 7");
    write_text(manifest, R"({"format": "prulong-checkpoint", "version": "2", "bytes": 1, "xxh3_64": ""})");
    check_falls_back("manifest");
    write_text(manifest, good);
    CHECK(load(folder.path()).state->step == 2);
  }
}

TEST_CASE("A new checkpoint is never removed in favour of damaged ones ahead of it") {
  const TemporaryFolder folder;
  for (const int64_t step : {2, 4, 6}) save_checkpoint(folder.path(), state_of(step), 3);
  for (const char* name : {"step-00000004.safetensors", "step-00000006.safetensors"}) flip_bit(folder / name, 60);
  const Loaded loaded = load(folder.path());
  CHECK(loaded.state->step == 2);
  CHECK(loaded.warnings.size() == 2);
  save_checkpoint(folder.path(), state_of(3), 1);
  check_same(*load(folder.path()).state, state_of(3));
}

TEST_CASE("Nothing but damaged checkpoints ends in an error") {
  const TemporaryFolder folder;
  for (const int64_t step : {1, 2}) save_checkpoint(folder.path(), state_of(step), 3);
  for (const char* name : {"step-00000001.safetensors", "step-00000002.safetensors"}) flip_bit(folder / name, 60);
  CHECK_THROWS_WITH(load(folder.path()),
                    ContainsSubstring(folder.path().string()) && ContainsSubstring("all 2 checkpoints are damaged"));
}

TEST_CASE("A run of another version is refused by name, and nothing of it is touched") {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), state_of(1), 3);
  const std::string old = R"({"format": "prulong-checkpoint", "version": 1, "step": 4, "bytes": 9, "fnv1a64": "00"})";
  write_text(folder / "step-00000004.json", old);
  write_text(folder / "step-00000004.safetensors", "123456789");
  const Loaded loaded = load(folder.path());  // one that can be loaded goes first
  CHECK(loaded.state->step == 1);
  std::filesystem::remove(folder / "step-00000001.json");
  const auto names = files_of(folder.path());
  CHECK_THROWS_WITH(
      load(folder.path()),
      ContainsSubstring("step-00000004.json: a checkpoint of version 1, this program reads version 2; let "
                        "the prulong that began the run finish it, or choose another run.dir"));
  CHECK(files_of(folder.path()) == names);
}

TEST_CASE("The checksum is the published hash of the file's bytes") {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), state_of(3), 1);
  const std::string data = read_text(folder / "step-00000003.safetensors");
  CHECK_THAT(read_text(folder / "step-00000003.json"),
             ContainsSubstring("\"xxh3_64\": \"" + hexadecimal(hash64(data)) + "\""));
}

TEST_CASE("A folder that cannot take checkpoints is named") {
  const TemporaryFolder folder;
  write_text(folder / "file", "");
  CHECK_THROWS_WITH(save_checkpoint(folder / "file" / "checkpoints", state_of(1), 1), ContainsSubstring("file"));
}

TEST_CASE("Going on with another identity is refused by the first difference") {
  const std::map<std::string, std::string> saved = {{"a", "1"}, {"b", "2"}};
  check_same_run(saved, saved, "runs/x");
  const auto message = [&](const std::map<std::string, std::string>& now) {
    try {
      check_same_run(saved, now, "runs/x");
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  CHECK(message({{"a", "1"}, {"b", "3"}}) ==
        "runs/x: holds a run with b = '2', this one has '3'; use another run.dir, or put the old value back");
  CHECK_THAT(message({{"b", "2"}}), ContainsSubstring("a = '1', this one has nothing"));
  CHECK_THAT(message({{"a", "1"}, {"b", "2"}, {"c", ""}}), ContainsSubstring("c = nothing, this one has ''"));
}
