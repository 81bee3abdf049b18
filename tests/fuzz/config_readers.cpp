// SPDX-License-Identifier: MIT
#include "eval/eval_config.h"
#include "model/model_config.h"
#include "model/pattern.h"
#include "tests/fuzz/reader.h"
#include "tests/trainer/data/data_files.h"
#include "trainer/config.h"

namespace prulong::fuzz {
namespace {

namespace fs = std::filesystem;

const ModelShape kShape = {"llama", 3, 2, 4, 16};

const char* const kModelConfig = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 400, "hidden_size": 64,
  "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
  "rms_norm_eps": 1e-05, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false, "max_position_embeddings": 131072,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "rope_theta": 500000.0,
  "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"}})";

Reader model_config() {
  return {"model config", {{"config.json", kModelConfig}}, [](const fs::path& folder) { read_model_config(folder); }};
}

Reader pattern() {
  const test::TemporaryFolder folder;
  Pattern::from_scores(kShape, {0.5, -1, 2, 3.25, -0.125, 1e-3}, 0.5, 16, 128).save(folder.path() / "p");
  return {"pattern",
          {{"pattern.json", test::read_text(folder.path() / "p" / "pattern.json")}},
          [](const fs::path& path) { Pattern::load(path / "pattern.json").check_fits(kShape); }};
}

Reader head_table() {
  return {"head table",
          {{"full_attention_heads.tsv", "0.5\t-1.0\n2\t3.25\n-0.125\t1e-3\n"},
           {"config.json", "{\"sink_size\": 128, \"recent_size\": 256}"}},
          [](const fs::path& folder) { import_head_table(folder, kShape); }};
}

Reader run_config(const fs::path& root) {
  return {"run config",
          {{"demo.yaml", test::read_text(root / "configs/demo.yaml")},
           {"large.yaml", test::read_text(root / "configs/llama3.1-8b.yaml")}},
          [](const fs::path& folder) {
            to_yaml(load_train_config(folder / "demo.yaml"));
            to_yaml(load_train_config(folder / "large.yaml", {"train.steps=7"}));
          }};
}

Reader eval_config(const fs::path& root) {
  return {"eval config", {{"eval.yaml", test::read_text(root / "configs/demo_eval.yaml")}}, [](const fs::path& folder) {
            load_eval_config(folder / "eval.yaml", {});
          }};
}

}  // namespace

std::vector<Reader> config_readers(const fs::path& root) {
  return {model_config(), pattern(), head_table(), run_config(root), eval_config(root)};
}

}  // namespace prulong::fuzz
