// SPDX-License-Identifier: MIT
#include "model/pattern.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <limits>
#include <numeric>
#include <sstream>
#include <system_error>

#include "common/atomic_file.h"
#include "common/error.h"
#include "model/pattern_io.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;

constexpr uintmax_t kMaxFileBytes = uintmax_t{64} << 20;

}  // namespace

std::string read_small_file(const fs::path& file) {
  std::error_code error;
  const fs::file_status status = fs::status(file, error);
  if (!fs::exists(status)) throw FileError(ENOENT, file.string() + ": there is no such file; check the path");
  if (!fs::is_regular_file(status))
    throw Error(file.string() + ": expected a regular file, found something else; check the path");
  if (fs::file_size(file, error) > kMaxFileBytes || error) {
    throw Error(file.string() + ": too large for a pattern or a table of heads (more than 64 MiB); check the path");
  }
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  if (!stream) throw FileError(EACCES, file.string() + ": cannot be read; check its permissions");
  return text.str();
}

void Pattern::check(const std::string& what) const {
  const auto refuse = [&](const std::string& message) { throw Error(what + ": " + message); };
  if (model.layers < 1 || model.kv_heads < 1 || model.query_heads < 1 || model.head_dim < 1 || model.type.empty()) {
    refuse("the model's type, layers, kv_heads, query_heads and head_dim must all be given");
  }
  if (model.query_heads % model.kv_heads != 0) {
    refuse("query_heads " + std::to_string(model.query_heads) + " is not a multiple of kv_heads " +
           std::to_string(model.kv_heads));
  }
  const auto has_model_size = [&](size_t size) {  // without forming a product that may overflow
    return size % static_cast<size_t>(model.kv_heads) == 0 &&
           size / static_cast<size_t>(model.kv_heads) == static_cast<size_t>(model.layers);
  };
  const std::string size = std::to_string(model.layers) + " layers x " + std::to_string(model.kv_heads) + " KV heads";
  if (!has_model_size(scores.size())) {
    refuse("expected one score for each of " + size + ", found " + std::to_string(scores.size()));
  }
  for (size_t i = 0; i < scores.size(); ++i) {
    if (!std::isfinite(scores[i])) {
      const size_t heads = static_cast<size_t>(model.kv_heads);
      refuse("the score of layer " + std::to_string(i / heads) + ", head " + std::to_string(i % heads) +
             " is not a finite number");
    }
  }
  if (!has_model_size(mask.size())) {
    refuse("expected one mask value for each of " + size + ", found " + std::to_string(mask.size()));
  }
  if (std::any_of(mask.begin(), mask.end(), [](uint8_t value) { return value > 1; })) {
    refuse("mask values must be 0 or 1");
  }
  if (!(sparsity >= 0 && sparsity <= 1)) {
    refuse("sparsity must be from 0 to 1, found " + std::to_string(sparsity));
  }
  if (sink < 0) refuse("sink must be at least 0, found " + std::to_string(sink));
  if (window < 1) refuse("window must be at least 1, found " + std::to_string(window));
}

int64_t global_heads(double sparsity, int64_t heads) {
  return static_cast<int64_t>(std::round((1.0 - sparsity) * static_cast<double>(heads)));
}

Pattern Pattern::from_scores(const ModelShape& model, std::vector<double> scores, double sparsity, int64_t sink,
                             int64_t window) {
  Pattern pattern{model, sink, window, sparsity, std::move(scores), {}, {}};
  pattern.mask.assign(pattern.scores.size(), 0);
  pattern.check("scores");
  std::vector<size_t> order(pattern.scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return pattern.scores[a] > pattern.scores[b]; });
  order.resize(static_cast<size_t>(global_heads(sparsity, static_cast<int64_t>(order.size()))));
  for (const size_t index : order) pattern.mask[index] = 1;
  return pattern;
}

Pattern Pattern::load(const fs::path& path) {
  std::error_code ignored;
  const fs::path file = fs::is_directory(path, ignored) ? path / "pattern.json" : path;
  const std::string text = read_small_file(file);
  try {
    return pattern_from_json(file, text);
  } catch (const Error& error) {
    throw Error(std::string(error.what()) + "; export the pattern again (prulong-export)");
  }
}

void Pattern::save_json(const fs::path& file) const {
  check(file.string());
  write_file_atomically(file, pattern_to_json(*this));
}

void Pattern::save(const fs::path& folder) const {
  check(folder.string());
  std::error_code error;
  fs::path target = folder.lexically_normal();
  if (!target.has_filename() && target.has_parent_path()) target = target.parent_path();  // "out/" names out
  if (!fs::exists(target, error)) {
    if (target.has_parent_path()) fs::create_directories(target.parent_path(), error);
    if (error) {
      throw FileError(error.value(), folder.string() + ": cannot create this folder: " + error.message() +
                                         "; choose another one, or free space");
    }
    const bool made = make_folder_atomically(target, [&](const fs::path& unfinished) {
      write_file_atomically(unfinished / "masks.tsv", mask_table(*this));
      write_file_atomically(unfinished / "pattern.json", pattern_to_json(*this));
    });
    if (made) return;
  }
  if (!fs::is_directory(target, error)) throw Error(folder.string() + ": not a folder; name another one");
  const FolderLock lock(
      target);  // two that save at once must not leave the table of one beside the pattern of the other
  // Without a table for a moment rather than with one that disagrees.
  fs::remove(target / "masks.tsv", error);
  if (error) {
    throw FileError(error.value(), (target / "masks.tsv").string() + ": cannot replace: " + error.message() +
                                       "; make its folder writable");
  }
  write_file_atomically(target / "pattern.json", pattern_to_json(*this));
  write_file_atomically(target / "masks.tsv", mask_table(*this));
}

void Pattern::check_fits(const ModelShape& other, const std::string& name) const {
  const auto refuse = [&](const std::string& what, const std::string& ours, const std::string& theirs) {
    throw Error(name + ": does not fit the model: " + what + " " + ours + " in the pattern, " + theirs +
                " in the model; use a pattern made for this model");
  };
  const auto compare = [&](const char* what, int64_t ours, int64_t theirs) {
    if (ours != theirs) refuse(what, std::to_string(ours), std::to_string(theirs));
  };
  if (model.type != other.type) refuse("type", model.type, other.type);
  compare("layers", model.layers, other.layers);
  compare("kv_heads", model.kv_heads, other.kv_heads);
  compare("query_heads", model.query_heads, other.query_heads);
  compare("head_dim", model.head_dim, other.head_dim);
}

double Pattern::local_fraction() const {
  if (mask.empty()) return 0;
  return static_cast<double>(std::count(mask.begin(), mask.end(), uint8_t{0})) / static_cast<double>(mask.size());
}

bool Pattern::scores_are_a_mask() const {
  return std::all_of(scores.begin(), scores.end(), [](double score) { return score == 0.0 || score == 1.0; });
}

std::optional<Pattern::Tie> Pattern::tie() const {
  double lowest_global = std::numeric_limits<double>::infinity(), highest_local = -lowest_global;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (mask[i]) lowest_global = std::min(lowest_global, scores[i]);
    if (!mask[i]) highest_local = std::max(highest_local, scores[i]);
  }
  if (lowest_global != highest_local) return std::nullopt;
  Tie tie{highest_local, 0, 0};
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] != tie.score) continue;
    ++tie.heads;
    tie.global += mask[i];
  }
  return tie;
}

Pattern Pattern::rounded(double other_sparsity, const std::string& name) const {
  Pattern result = from_scores(model, scores, other_sparsity, sink, window);
  result.provenance = provenance;
  if (!result.tie()) return result;
  const auto [least, most] = std::minmax_element(scores.begin(), scores.end());
  const auto is_either = [&](double score) { return score == *least || score == *most; };
  if (!std::all_of(scores.begin(), scores.end(), is_either)) return result;
  std::ostringstream message;
  message << name << ": a mask, not a ranking: it tells " << std::count(scores.begin(), scores.end(), *most) << " of "
          << scores.size() << " heads from the others, and sparsity " << other_sparsity << " keeps "
          << std::count(result.mask.begin(), result.mask.end(), uint8_t{1})
          << "; leave the sparsity out to take the mask as it is";
  throw Error(message.str());
}

std::string mask_table(const Pattern& pattern) {
  std::string out;
  const size_t width = static_cast<size_t>(pattern.model.kv_heads);
  for (size_t i = 0; i < pattern.mask.size(); ++i) {
    out += pattern.mask[i] ? "1.0" : "0.0";
    out += i % width == width - 1 ? '\n' : '\t';
  }
  return out;
}

std::string mask_map(const Pattern& pattern) {
  std::string map = "layer  KV head 0 on the left; # global, . local\n";
  const int64_t heads = pattern.model.kv_heads;
  for (int64_t layer = pattern.model.layers - 1; layer >= 0; --layer) {
    const std::string number = std::to_string(layer);
    map += std::string(number.size() < 5 ? 5 - number.size() : 0, ' ') + number + "  ";
    for (int64_t head = 0; head < heads; ++head) {
      map += pattern.mask[static_cast<size_t>(layer * heads + head)] ? '#' : '.';
    }
    map += '\n';
  }
  return map;
}

}  // namespace prulong
