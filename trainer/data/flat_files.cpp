// SPDX-License-Identifier: MIT
#include "trainer/data/flat_files.h"

#include <algorithm>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "common/error.h"
#include "common/hash.h"
#include "trainer/data/packing.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;

/// Refuses what scripts/prepare_data.py writes: only one of its arrays holds tokens.
void refuse_prepared(const fs::path& folder) {
  std::error_code ignored;
  for (const auto& [offsets, type] : {std::pair("documents.npy", "tokens"), std::pair("offsets.npy", "recall")}) {
    if (fs::exists(folder / "tokens.npy", ignored) && fs::exists(folder / offsets, ignored)) {
      throw Error(folder.string() + ": " + offsets +
                  " beside tokens.npy: a folder of scripts/prepare_data.py; say type: " + type);
    }
  }
}

/// The file, or the folder's files with the extension, sorted by name.
std::vector<fs::path> find_files(const fs::path& path, const std::string& extension) {
  std::error_code error;
  if (fs::is_regular_file(path, error)) return {path};
  std::vector<fs::path> files;
  if (!fs::is_directory(path, error)) throw Error(path.string() + ": no such file or folder; check the data's path");
  if (extension == ".npy") refuse_prepared(path);
  for (const auto& entry : fs::directory_iterator(path, error)) {
    if (entry.path().extension() != extension) continue;
    std::error_code unreadable;
    if (!entry.is_regular_file(unreadable)) {
      throw Error(entry.path().string() + ": a file expected, found a folder or a broken link; remove it");
    }
    files.push_back(entry.path());
  }
  if (error) throw Error(path.string() + ": cannot list the folder: " + error.message() + "; check its permissions");
  if (files.empty())
    throw Error(path.string() + ": *" + extension +
                " files expected in this folder, none found; check the data's path and type");
  std::sort(files.begin(), files.end());
  return files;
}

/// All files as one block.
class FlatFiles final : public Block {
 public:
  FlatFiles(const FlatFileOptions& options, int64_t seq_len) : options_(options) {
    check_seq_len(seq_len);
    if (options.end_token >= options.vocab_size) {
      throw Error(options.path.string() + ": end_token " + std::to_string(options.end_token) +
                  ": a token of the model's expected, below " + std::to_string(options.vocab_size) +
                  "; set it to the token that ends documents, or to -1");
    }
    for (const fs::path& path : find_files(options.path, options.type ? ".bin" : ".npy")) {
      IntegerFile file = options.type ? IntegerFile::open_raw(path, *options.type) : IntegerFile::open_npy(path);
      const int64_t sample_tokens = file.shape().size() == 2 ? file.shape()[1] : seq_len;
      const int64_t samples = sample_tokens == 0 ? 0 : (file.size() + sample_tokens - 1) / sample_tokens;
      const std::string name = path.filename().string();  // hashed: its bytes need not be text
      fingerprint_ += ":" + std::to_string(hash64(name)) + "=" + std::to_string(file.sample_hash());
      files_.push_back({std::move(file), samples_, sample_tokens});
      samples_ += samples;
    }
    if (samples_ == 0) throw Error(options.path.string() + ": tokens expected, none found; give files that have some");
  }

  int64_t samples() const override { return samples_; }

  int64_t tokens(int64_t sample) const override {
    const File& file = file_of(sample);
    return std::min(file.sample_tokens, file.integers.size() - (sample - file.first_sample) * file.sample_tokens);
  }

  void append(int64_t sample, int64_t first, int64_t count, Sequence& sequence) const override {
    const File& file = file_of(sample);
    std::vector<int32_t>& tokens = sequence.tokens;
    const auto start = std::ssize(tokens);
    file.integers.append((sample - file.first_sample) * file.sample_tokens + first, count, options_.vocab_size,
                         "the model", tokens);
    if (options_.end_token >= 0) {
      const auto end_token = static_cast<int32_t>(options_.end_token);
      auto at = tokens.begin() + start;
      while ((at = std::find(at, tokens.end() - 1, end_token)) != tokens.end() - 1) {
        sequence.cu_seqlens.push_back(static_cast<int32_t>(++at - tokens.begin()));
      }
    }
    sequence.cu_seqlens.push_back(static_cast<int32_t>(tokens.size()));
  }

  /// The type decides how the same bytes read.
  std::string fingerprint() const {
    return std::string(options_.type ? type_name(*options_.type) : "npy") + fingerprint_ +
           ":end_token=" + std::to_string(options_.end_token);
  }

 private:
  struct File {
    IntegerFile integers;
    int64_t first_sample;
    int64_t sample_tokens;
  };

  const File& file_of(int64_t sample) const {
    const auto after = std::upper_bound(files_.begin(), files_.end(), sample,
                                        [](int64_t wanted, const File& file) { return wanted < file.first_sample; });
    return *(after - 1);  // the last of those that start there: empty files before it have no sample
  }

  FlatFileOptions options_;
  std::vector<File> files_;
  int64_t samples_ = 0;
  std::string fingerprint_;
};

}  // namespace

std::unique_ptr<Source> open_flat_files(const FlatFileOptions& options, int64_t seq_len, uint64_t seed) {
  const auto block = std::make_shared<const FlatFiles>(options, seq_len);
  auto corpus = std::make_unique<OneBlock>(options.path.string(), block, options.vocab_size, block->fingerprint());
  return pack_corpus(std::move(corpus), seq_len, seed);
}

}  // namespace prulong
