// SPDX-License-Identifier: MIT
#include "common/run_log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/atomic_file.h"
#include "common/error.h"

namespace prulong {
namespace {

constexpr int kPlainLines = 20;  // progress lines of a whole run when nobody watches a terminal

/// metrics.jsonl without the lines that a resumed run will write again, and without a line cut short by a kill.
/// @returns the keys of the lines of that step.
std::set<std::string> drop_lines_after(const std::filesystem::path& path, int64_t step) {
  std::set<std::string> keys;
  std::ifstream in(path);
  if (!in) return keys;
  std::string kept, line;
  while (std::getline(in, line)) {
    const auto object = nlohmann::json::parse(line, nullptr, false);
    if (object.is_object() && object.contains("step") && object["step"].is_number_integer() &&
        object["step"].get<int64_t>() <= step) {
      kept += line + "\n";
      if (object["step"] != step) continue;
      for (const auto& [key, value] : object.items()) keys.insert(key);
    }
  }
  write_file_atomically(path, kept);
  return keys;
}

/// A line for whoever watches. Nobody may, or nobody any more: that it cannot be written is no error.
void tell(const std::string& line) { std::fputs((line + "\n").c_str(), stderr); }

/// The numbers of an object and of those inside it; not the step that they belong to.
void collect_scalars(const nlohmann::json& object, const std::string& prefix, Scalars& scalars) {
  for (const auto& [key, value] : object.items()) {
    const std::string name = prefix + key;
    if (value.is_object()) collect_scalars(value, name + "/", scalars);
    if (value.is_number() && name != "step") scalars.emplace_back(name, value.get<double>());
  }
}

}  // namespace

std::string format_seconds(double seconds) {
  const auto total = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  char text[32];
  if (total < 60) {
    std::snprintf(text, sizeof text, "%d s", static_cast<int>(total));
  } else if (total < 3600) {
    std::snprintf(text, sizeof text, "%d:%02d", static_cast<int>(total / 60), static_cast<int>(total % 60));
  } else {
    std::snprintf(text, sizeof text, "%lld:%02d:%02d", static_cast<long long>(total / 3600),
                  static_cast<int>(total / 60 % 60), static_cast<int>(total % 60));
  }
  return text;
}

RunLog::RunLog(const std::filesystem::path& folder, int64_t resume_step)
    : metrics_path_(folder / "metrics.jsonl"),
      terminal_(::isatty(STDERR_FILENO) == 1),
      resume_step_(resume_step),
      last_plain_step_(resume_step) {
  resumed_keys_ = drop_lines_after(metrics_path_, resume_step);
  metrics_.open(metrics_path_, std::ios::app);
  if (!metrics_) throw Error(metrics_path_.string() + ": cannot be written; check the folder's permissions");
  const auto log_path = (folder / "log.txt").string();
  const auto fail = [log_path](const std::string& reason) {
    throw Error(log_path + ": cannot be written: " + reason + "; free space or check permissions, and run again");
  };
  try {
    auto file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(log_path);
    file->set_pattern("%Y-%m-%dT%H:%M:%S %l %v");
    auto logger = std::make_shared<spdlog::logger>("prulong", std::move(file));
    logger->set_error_handler(fail);
    spdlog::set_default_logger(std::move(logger));
    spdlog::flush_on(spdlog::level::info);
  } catch (const spdlog::spdlog_ex& error) {
    fail(error.what());
  }
}

RunLog::~RunLog() { end_progress_line(); }

void RunLog::end_progress_line() {
  if (line_open_) std::fputc('\n', stderr);
  line_open_ = false;
}

void RunLog::info(const std::string& message) {
  end_progress_line();
  tell(message);
  spdlog::info("{}", message);
}

void RunLog::warn(const std::string& message) {
  end_progress_line();
  tell("warning: " + message);
  spdlog::warn("{}", message);
}

void RunLog::progress(const Progress& p) {
  const auto each = p.ranks == 1 ? "" : fmt::format(" ({:.0f} a rank)", p.tokens_per_s / static_cast<double>(p.ranks));
  const auto text = fmt::format(
      "step {:>{}}/{}  loss {:.4f}  sparsity {:.3f} (target {:.3f})  lambda {:+.3f} {:+.3f}  {:.0f} tokens/s{}  {} "
      "left",
      p.step, std::to_string(p.steps).size(), p.steps, p.loss_nats, p.sparsity, p.sparsity_target, p.lambda_1,
      p.lambda_2, p.tokens_per_s, each, format_seconds(p.seconds_left));
  if (terminal_) {
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
    line_open_ = true;
    return;
  }
  const int64_t every = std::max<int64_t>(1, p.steps / kPlainLines);
  if (p.step == p.steps || p.step - last_plain_step_ >= every) {
    last_plain_step_ = p.step;
    tell(text);
    spdlog::info("{}", text);
  }
}

void RunLog::metrics(const std::string& json_object) {
  metrics_ << json_object << '\n' << std::flush;
  if (!metrics_) {
    throw Error(metrics_path_.string() + ": cannot be written (disk full?); free space and run the same command again");
  }
  const auto object = nlohmann::json::parse(json_object);
  Scalars scalars;
  collect_scalars(object, "", scalars);
  if (!events_) events_.emplace(metrics_path_.parent_path(), resume_step_);
  events_->write(object.at("step").get<int64_t>(), scalars);
}

}  // namespace prulong
