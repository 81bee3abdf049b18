// SPDX-License-Identifier: MIT
#include "model/save_model.h"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>

#include "common/atomic_file.h"
#include "common/error.h"
#include "common/json_text.h"
#include "model/safetensors.h"

namespace prulong {
namespace {

constexpr const char* kCopied[] = {"generation_config.json",
                                   "tokenizer.json",
                                   "tokenizer_config.json",
                                   "tokenizer.model",
                                   "special_tokens_map.json",
                                   "added_tokens.json",
                                   "vocab.json",
                                   "merges.txt",
                                   "chat_template.jinja"};

const char* hugging_face_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return "float64";
    case at::kHalf:
      return "float16";
    case at::kBFloat16:
      return "bfloat16";
    default:
      return "float32";
  }
}

/// config.json with the dtype of the weights beside it: transformers converts what it loads to the dtype it says.
std::string config_text(const std::filesystem::path& file, at::ScalarType dtype) {
  std::ifstream in(file);
  const std::string text{std::istreambuf_iterator<char>(in), {}}, quoted = quote_numbers(text);
  nlohmann::ordered_json config;
  try {
    config = nlohmann::ordered_json::parse(quoted);
  } catch (const nlohmann::json::exception&) {
    throw Error(file.string() + ": expected JSON, found something else; download the model again");
  }
  // transformers 5.x says dtype, 4.x torch_dtype and reads both.
  config[config.contains("torch_dtype") ? "torch_dtype" : "dtype"] = hugging_face_name(dtype);
  const std::string written = config.dump(2);
  return (quoted == text ? written : unquote_numbers(written)) + "\n";
}

}  // namespace

void save_model(const std::filesystem::path& folder, const Llama& model, const std::filesystem::path& config_from) {
  const std::string config = config_text(config_from / "config.json", model.dtype());
  std::error_code problem;
  std::filesystem::create_directories(folder, problem);
  if (problem)
    throw Error(folder.string() + ": cannot create the folder: " + problem.message() + "; make its parent writable");
  write_file_atomically(folder / "config.json", config);
  for (const char* name : kCopied) {
    const std::filesystem::path from = config_from / name, to = folder / name;
    if (!std::filesystem::exists(from) || std::filesystem::equivalent(config_from, folder)) continue;
    std::filesystem::copy_file(from, to, std::filesystem::copy_options::overwrite_existing, problem);
    if (problem)
      throw Error(to.string() + ": cannot copy from " + from.string() + ": " + problem.message() +
                  "; free space, or mend permissions, and run again");
  }
  save_safetensors(folder / "model.safetensors", model.weights(), {{"format", "pt"}});
}

}  // namespace prulong
