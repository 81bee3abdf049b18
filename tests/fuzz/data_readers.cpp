// SPDX-License-Identifier: MIT
#include <nlohmann/json.hpp>

#include "tests/fuzz/reader.h"
#include "tests/trainer/data/data_files.h"
#include "trainer/data/flat_files.h"
#include "trainer/data/mds.h"
#include "trainer/data/recall.h"
#include "trainer/data/token_folder.h"

namespace prulong::fuzz {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kVocab = 40000;

/// Every file of a folder.
std::map<std::string, std::string> files_of(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) files[fs::relative(entry.path(), folder)] = test::read_text(entry.path());
  }
  return files;
}

void read_some(const Source& source) {
  for (int64_t n = 0; n < 12; ++n) source.sequence(n);
  source.sequence(1'000'000);
  source.fingerprint();
}

/// Shards of the real package; without hashes, so that damage reaches what is behind them.
Reader mds(const fs::path& root, const std::string& set, std::optional<IntegerType> type = {}) {
  auto files = files_of(root / "tests/trainer/data/fixtures/mds" / set);
  auto index = nlohmann::json::parse(files.at("index.json"));
  for (auto& shard : index["shards"]) {
    for (const char* const key : {"raw_data", "zip_data"}) {
      if (shard[key].is_object()) shard[key]["hashes"] = nlohmann::json::object();
    }
  }
  files["index.json"] = index.dump();
  return {"mds " + set, std::move(files), [type](const fs::path& folder) {
            read_some(*open_mds({folder, type, kVocab}, 64, 1));
          }};
}

Reader npy() {
  return {"npy",
          {{"a.npy", test::npy(test::header("<u2", 40), test::bytes_of(std::vector<uint16_t>(40, 7)))},
           {"b.npy", test::npy(test::header("<i8", 9), test::bytes_of(std::vector<int64_t>(9, 300)), 2)},
           {"c.npy", test::npy("{'descr': '<u4', 'fortran_order': False, 'shape': (3, 4), }\n",
                               test::bytes_of(std::vector<uint32_t>(12, 9)), 3)}},
          [](const fs::path& folder) {
            read_some(*open_flat_files({folder, {}, 9, kVocab}, 16, 1));
          }};
}

Reader raw() {
  return {"raw",
          {{"a.bin", test::bytes_of(std::vector<uint16_t>(50, 5))}, {"b.bin", std::string(8, '\1')}},
          [](const fs::path& folder) {
            read_some(*open_flat_files({folder, IntegerType::kUint16, 5, kVocab}, 16, 1));
          }};
}

Reader token_folder() {
  const test::TemporaryFolder folder;
  test::write_token_folder(folder.path(), {{1, 2, 3}, {4}, {}, {5, 6, 7, 8, 9}}, 100);
  return {"token folder", files_of(folder.path()),
          [](const fs::path& path) { read_some(*open_token_folder(path, 6, 1)); }};
}

Reader recall_kit() {
  using nlohmann::json;
  std::vector<uint16_t> tokens;
  std::vector<int64_t> offsets = {0};
  json kit = {{"format", "prulong-recall-kit"}, {"version", 2}, {"vocab_size", 500}, {"prefix", {1}}};
  for (const char* const split : {"train", "eval"}) {
    for (const char* const list : {"prose", "adjectives", "nouns", "codes", "passkeys", "labels"}) {
      kit["lists"][split][list] = {offsets.size() - 1, 16};
      for (int i = 0; i < 16; ++i) {
        tokens.insert(tokens.end(), 1 + i % 3, static_cast<uint16_t>(tokens.size() + 10));
        offsets.push_back(static_cast<int64_t>(tokens.size()));
      }
    }
  }
  for (const char* const task : {"codes", "passkey", "key_values", "multi_values", "labels"}) {
    for (const char* const part : {"intro", "before", "middle", "after", "outro", "ask", "question_before",
                                   "question_middle", "separator", "question_after"}) {
      kit["templates"][task][part] = {2, 3};
    }
  }
  kit["tokens"] = tokens.size();
  kit["pieces"] = offsets.size() - 1;
  const test::TemporaryFolder folder;
  test::write_u16(folder.path() / "tokens.npy", tokens);
  test::write_i64(folder.path() / "offsets.npy", offsets);
  test::write_text(folder.path() / "kit.json", kit.dump(1));
  return {"recall kit", files_of(folder.path()), [](const fs::path& path) {
            read_some(*open_recall(
                {path, false, {"codes", "passkey", "key_values", "multi_values", "labels"}, 400, 8, 4, 1}));
          }};
}

}  // namespace

std::vector<Reader> data_readers(const fs::path& root) {
  return {mds(root, "prolong"),
          mds(root, "zstd"),
          mds(root, "self_described"),
          mds(root, "bytes", IntegerType::kInt64),
          npy(),
          raw(),
          token_folder(),
          recall_kit()};
}

}  // namespace prulong::fuzz
