// SPDX-License-Identifier: MIT
#include "trainer/data/mds.h"

#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "common/error.h"
#include "common/hash.h"
#include "trainer/data/corpus.h"
#include "trainer/data/mds_index.h"
#include "trainer/data/mds_shard.h"
#include "trainer/data/packing.h"

namespace prulong {
namespace {

class Mds final : public Corpus {
 public:
  explicit Mds(MdsOptions options) : options_(std::move(options)) {
    const JsonFile index(options_.folder / "index.json");
    shards_ = read_mds_index(index, options_.type);
    fingerprint_ = "mds:" + std::to_string(hash64(index.content));
    if (options_.type) fingerprint_ += std::string(":") + type_name(*options_.type);
  }

  int64_t blocks() const override { return std::ssize(shards_); }
  std::shared_ptr<const Block> open_block(int64_t index) const override {
    return open_mds_shard(options_.folder, shards_[static_cast<size_t>(index)], options_.vocab_size);
  }
  std::string name() const override { return options_.folder.string(); }
  int64_t vocab_size() const override { return options_.vocab_size; }
  /// Of the index, which has the shards' sizes, and their hashes if they were written with any.
  std::string fingerprint() const override { return fingerprint_; }

 private:
  MdsOptions options_;
  std::vector<MdsShard> shards_;
  std::string fingerprint_;
};

}  // namespace

std::unique_ptr<Source> open_mds(const MdsOptions& options, int64_t seq_len, uint64_t seed) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(options.folder / "index.json", ignored)) {
    throw Error(options.folder.string() + ": no index.json; give the folder of one set of MDS shards");
  }
  return pack_corpus(std::make_unique<Mds>(options), seq_len, seed);
}

}  // namespace prulong
