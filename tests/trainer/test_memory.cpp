// SPDX-License-Identifier: MIT
#include "trainer/memory.h"

#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>

#include "common/error.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"
#include "tests/support/files.h"
#include "trainer/adamw.h"
#include "trainer/weights_optimizer.h"

namespace prulong {
namespace {

/// Counts the bytes of all CPU tensors made while it lives.
class CountedMemory : public c10::Allocator {
 public:
  CountedMemory() { c10::SetCPUAllocator(this, kPriority); }
  CountedMemory(const CountedMemory&) = delete;
  CountedMemory& operator=(const CountedMemory&) = delete;
  ~CountedMemory() override { c10::SetCPUAllocator(c10::GetDefaultCPUAllocator(), kPriority); }

  c10::DataPtr allocate(size_t bytes) override {
    struct Block {
      c10::DataPtr data;
      int64_t bytes;
    };
    auto* block = new Block{c10::GetDefaultCPUAllocator()->allocate(bytes), static_cast<int64_t>(bytes)};
    now += block->bytes;
    most = std::max(most.load(), now.load());
    const auto free = [](void* context) {
      now -= static_cast<Block*>(context)->bytes;
      delete static_cast<Block*>(context);
    };
    return {block->data.get(), block, free, at::Device(at::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  static inline std::atomic<int64_t> now = 0, most = 0;

 private:
  static constexpr uint8_t kPriority = 255;
};

/// Large enough for the estimate's terms to stand out from what it leaves out.
ModelConfig config_of(bool extended) {
  ModelConfig config = extended ? test::extended_config() : test::tiny_config();
  config.vocab_size = 600;
  config.hidden_size = 96;
  config.intermediate_size = 256;
  config.layers = 4;
  config.head_dim = 32;
  return config;
}

TEST_CASE("memory: a training step needs what is said") {
  const bool extended = GENERATE(false, true);
  const RecomputePolicy policy = GENERATE(RecomputePolicy{}, RecomputePolicy{true}, RecomputePolicy{true, 3});
  const TrainMode mode = GENERATE(TrainMode::kMasks, TrainMode::kBoth);
  TrainConfig config;
  config.train.seq_len = 1500;
  config.train.loss_chunk = 200;
  config.train.mode = mode;
  INFO("extended " << extended << ", inputs only " << policy.inputs_only << ", results of " << policy.attention_results
                   << ", trained weights " << (mode == TrainMode::kBoth));

  const CountedMemory memory;
  const int64_t before = memory.now;
  Llama model(config_of(extended), test::tiny_weights(config_of(extended), at::kFloat));
  std::optional<WeightsOptimizer> optimizer;
  if (mode == TrainMode::kBoth) optimizer.emplace(model, AdamWOptions{});
  const PackedTokens input = PackedTokens::single(test::random_tokens(config.train.seq_len, 600));
  const at::Tensor labels = test::random_tokens(config.train.seq_len, 600);
  const at::Tensor gates = at::full({4, 2}, 0.5).set_requires_grad(true);

  const MemoryNeed need = memory_need(model, config, policy);
  const int64_t start = memory.now;
  memory.most = start;
  at::Tensor hidden = model.forward(input, {gates, 16, 64}, policy);
  CHECK(static_cast<double>(memory.now - start) == Approx(static_cast<double>(need.activations)).epsilon(0.05));
  at::Tensor loss = next_token_loss(hidden, model.head_weight(), labels, config.train.loss_chunk);
  loss.backward();
  loss = hidden = at::Tensor();
  if (optimizer) optimizer->step(1e-3, 1.0);
  // Never more than said; less where the gradients of all weights do not exist yet when the most else does.
  CHECK(memory.most - before <= need.total());
  CHECK(memory.most - before >= need.total() * 3 / 4);
}

TEST_CASE("memory: what is kept follows what is free") {
  const Llama model = Llama::without_values(config_of(false), at::kFloat);
  TrainConfig config;
  config.train.seq_len = 1500;
  const auto plan = [&](int64_t available) { return plan_recompute(model, config, available); };
  const int64_t all = activation_bytes(model.config(), 1500, 4, false);
  CHECK_FALSE(plan(2 * all).inputs_only);
  CHECK(plan(2 * all - 1).inputs_only);
  CHECK(plan(2 * all - 1).attention_results == 4);
  CHECK(plan(0).inputs_only);
  CHECK(plan(0).attention_results == 0);
  // Exactly enough for two layers' results, and one byte less.
  const MemoryNeed need = memory_need(model, config, {true, 2});
  const int64_t enough = (need.activations + need.work + 8) / 9 * 10;
  CHECK(plan(enough).attention_results == 2);
  CHECK(plan(enough - 20).attention_results == 1);
}

TEST_CASE("memory: the report of a large model needs its config.json only") {
  const test::TemporaryFolder folder;
  test::write_text(folder / "config.json", R"({"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192}, "attention_bias": false, "tie_word_embeddings": false})");
  TrainConfig config;
  config.model = {folder.path().string(), ModelDtype::kBfloat16, ModelDevice::kCuda};
  const std::string report = memory_report(config);
  // What the model's card says, 8.03 billion, and two bytes each.
  CHECK_THAT(report, ContainsSubstring("llama, 8,030,261,248 weights, 32 layers of 8 KV heads"));
  CHECK_THAT(report, ContainsSubstring("sequences of 65,536 tokens in bfloat16, one at a time; 256 gates"));
  CHECK_THAT(report, ContainsSubstring("weights                              14.96 GiB       14.96 GiB\n"));
  CHECK_THAT(report, !ContainsSubstring("moments"));
  config.train.mode = TrainMode::kBoth;
  // 2 bytes of gradients, 4 of masters, 8 of moments.
  CHECK_THAT(memory_report(config), ContainsSubstring("gradients, masters, moments         104.70 GiB"));
  config.model.path += "/no";
  CHECK_THROWS_AS(memory_report(config), Error);
}

}  // namespace
}  // namespace prulong
