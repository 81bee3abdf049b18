// SPDX-License-Identifier: MIT
#include "common/launch.h"

#include <charconv>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "common/error.h"

namespace prulong {
namespace {

constexpr const char* kRemedy = "; start this program by torchrun, which sets it, or unset WORLD_SIZE";

std::string text_of(const char* name) {
  const char* const value = std::getenv(name);
  return value ? value : "";
}

int64_t number_of(const char* name, int64_t min, int64_t max) {
  const std::string text = text_of(name);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < min || value > max) {
    throw ConfigError(std::string("environment variable ") + name + ": expected a whole number from " +
                      std::to_string(min) + " to " + std::to_string(max) + ", found " +
                      (text.empty() ? "nothing" : "'" + text + "'") + kRemedy);
  }
  return value;
}

}  // namespace

std::optional<Launch> read_launch() {
  if (text_of("WORLD_SIZE").empty()) return std::nullopt;
  constexpr int64_t kMany = 1 << 20;
  Launch launch;
  launch.size = number_of("WORLD_SIZE", 1, kMany);
  launch.rank = number_of("RANK", 0, launch.size - 1);
  launch.local_size = text_of("LOCAL_WORLD_SIZE").empty() ? 1 : number_of("LOCAL_WORLD_SIZE", 1, launch.size);
  launch.local_rank = text_of("LOCAL_RANK").empty() ? 0 : number_of("LOCAL_RANK", 0, kMany);
  if (launch.size == 1) return launch;
  launch.address = text_of("MASTER_ADDR");
  if (launch.address.empty()) {
    throw ConfigError(
        std::string("environment variable MASTER_ADDR: expected the first machine's address, found nothing") + kRemedy);
  }
  launch.port = static_cast<uint16_t>(number_of("MASTER_PORT", 1, std::numeric_limits<uint16_t>::max()));
  launch.launcher_serves = text_of("TORCHELASTIC_USE_AGENT_STORE") == "True";
  launch.run = text_of("TORCHELASTIC_RUN_ID");
  return launch;
}

void leave_reason(const std::string& message) {
  const std::string path = text_of("TORCHELASTIC_ERROR_FILE");
  if (path.empty()) return;
  const nlohmann::json reason = {{"message", message},
                                 {"extraInfo", {{"timestamp", std::to_string(std::time(nullptr))}}}};
  std::ofstream(path) << nlohmann::json{{"message", reason}}.dump(-1, ' ', false,
                                                                  nlohmann::json::error_handler_t::replace);
}

}  // namespace prulong
