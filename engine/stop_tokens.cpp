// SPDX-License-Identifier: MIT
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "common/json_value.h"
#include "engine/engine.h"

namespace prulong {

std::vector<int64_t> stop_tokens_of(const std::filesystem::path& model_folder) {
  for (const char* name : {"generation_config.json", "config.json"}) {
    const std::filesystem::path file = model_folder / name;
    if (!std::filesystem::exists(file)) continue;
    std::ifstream stream(file, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    const JsonValue ids = JsonValue::parse(text, file.string(), "; copy the file again").at("eos_token_id");
    if (!ids.has_value()) continue;
    if (ids.raw().is_array()) {
      std::vector<int64_t> result;
      for (const JsonValue& id : ids.list()) result.push_back(id.integer(0));
      return result;
    }
    return {ids.integer(0)};
  }
  return {};
}

}  // namespace prulong
