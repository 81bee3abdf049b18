// SPDX-License-Identifier: MIT
// When a training reads from the device, and what it computes once.
#include "trainer/run.h"

#include <ATen/record_function.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "model/safetensors.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"
#include "tests/support/files.h"
#include "tests/trainer/data/data_files.h"

using namespace prulong;

namespace {

/// The names of all operators that run while it lives, in order; those inside attention come from several threads.
class Recorded {
 public:
  Recorded() {
    names().clear();
    const auto note = [](const at::RecordFunction& call) -> std::unique_ptr<at::ObserverContext> {
      static std::mutex mutex;
      const std::lock_guard lock(mutex);
      names().emplace_back(call.name());
      return nullptr;
    };
    handle_ = at::addGlobalCallback(at::RecordFunctionCallback(note).scopes({at::RecordScope::FUNCTION}));
  }
  ~Recorded() { at::removeCallback(handle_); }
  static std::vector<std::string>& names() {
    static std::vector<std::string> all;
    return all;
  }
  static int64_t count(const std::string& name) { return std::ranges::count(names(), name); }

 private:
  at::CallbackHandle handle_;
};

/// A tiny model, data and a configuration of two sequences a step.
TrainConfig world(const test::TemporaryFolder& folder, TrainMode mode) {
  test::write_text(folder / "model/config.json", test::tiny_config_json());
  save_safetensors(folder / "model/model.safetensors", test::tiny_weights(test::tiny_config(), at::kFloat));
  std::vector<std::vector<uint16_t>> documents(3);
  for (size_t d = 0; d < documents.size(); ++d) {
    for (size_t t = 0; t < 24; ++t) documents[d].push_back(static_cast<uint16_t>((7 * t + d) % 37));
  }
  test::write_token_folder(folder / "data", documents, 37);
  TrainConfig config;
  config.model = {(folder / "model").string(), ModelDtype::kFloat32, ModelDevice::kCpu};
  config.attention = {2, 4};
  config.train.mode = mode;
  config.train.steps = 4;
  config.train.seq_len = 16;
  config.train.sequences_per_step = 2;
  config.eval.sequences = 2;
  config.run.dir = (folder / "run").string();
  for (auto* sources : {&config.data.train, &config.data.eval}) {
    sources->emplace_back();
    sources->back().path = (folder / "data").string();
  }
  return config;
}

}  // namespace

TEST_CASE("A step reads its losses when every backward pass is under way") {
  const test::TemporaryFolder folder;
  Mesh mesh;
  Run run(world(folder, TrainMode::kMasks), mesh);
  const Recorded recorded;
  REQUIRE(run.step().run());
  const auto& names = Recorded::names();
  const auto first_read = std::ranges::find(names, "aten::item");
  CHECK(std::count(first_read, std::ranges::find(names, "aten::_fused_adamw_"), "aten::item") == 2);  // one a sequence
  const auto backward = [](const std::string& name) { return name == "prulong::gated_attention_backward"; };
  CHECK(std::count_if(names.begin(), first_read, backward) == 2 * test::tiny_config().layers);
  CHECK(std::none_of(first_read, names.end(), backward));
}

TEST_CASE("The norm of all weights' gradients is read at once") {
  const test::TemporaryFolder folder;
  Mesh mesh;
  Run run(world(folder, TrainMode::kBoth), mesh);
  const Recorded recorded;
  REQUIRE(run.step().run());
  const auto& names = Recorded::names();
  const auto update = std::ranges::find(names, "aten::_fused_adamw_");
  CHECK(std::count(names.begin(), update, "aten::item") == 2);  // the losses; the weights are 21
}

TEST_CASE("Full attention under frozen weights is measured once, under trained ones every time") {
  for (const TrainMode mode : {TrainMode::kMasks, TrainMode::kBoth}) {
    CAPTURE(mode == TrainMode::kMasks);
    const test::TemporaryFolder folder;
    Mesh mesh;
    Run run(world(folder, mode), mesh);
    std::vector<int64_t> full, masked;
    for (int evaluation = 0; evaluation < 2; ++evaluation) {
      const Recorded recorded;
      run.evaluate();
      full.push_back(Recorded::count("prulong::gated_attention"));
      masked.push_back(Recorded::count("prulong::masked_attention"));
    }
    const int64_t passes = 2 * test::tiny_config().layers;
    CHECK(full == std::vector<int64_t>{passes, mode == TrainMode::kMasks ? 0 : passes});
    CHECK(masked == std::vector<int64_t>{passes, passes});
  }
}
