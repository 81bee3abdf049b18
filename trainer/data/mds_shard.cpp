// SPDX-License-Identifier: MIT
#include "trainer/data/mds_shard.h"

#include <zstd.h>

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/error.h"
#include "common/mapped_file.h"
#include "trainer/data/digest.h"
#include "trainer/data/integer_file.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;
using Bytes = std::span<const std::byte>;

constexpr int64_t kWord = 4;  // offsets and sizes are uint32

[[noreturn]] void fail(const fs::path& path, const std::string& what) { throw Error(path.string() + ": " + what); }

/// Holds a file against its entry in the index.
void check_file(const fs::path& path, Bytes bytes, const MdsFile& expected) {
  if (static_cast<int64_t>(bytes.size()) != expected.bytes) {
    fail(path, std::to_string(expected.bytes) + " bytes expected by index.json, " + std::to_string(bytes.size()) +
                   " found: the shard is incomplete or of another data set; copy it again");
  }
  for (const auto& [algorithm, hash] : expected.hashes) {
    const auto found = digest(algorithm, bytes);
    if (!found)
      fail(path, "index.json has a hash of unknown kind, \"" + algorithm +
                     "\"; known: sha1, xxh3_64 and such; write the shards again with one of them");
    if (*found != hash) {
      fail(path, algorithm + " " + hash.substr(0, 16) + "... expected by index.json, " + found->substr(0, 16) +
                     "... found: the shard is damaged; copy it again");
    }
  }
}

/// An array inside a sample.
struct Array {
  IntegerType type;
  std::vector<int64_t> shape;
  Bytes values;
};

class Shard final : public Block {
 public:
  Shard(const fs::path& folder, const MdsShard& info, int64_t vocab_size) : info_(info), vocab_size_(vocab_size) {
    path_ = folder / info.raw.name;
    std::error_code ignored;
    if (!info.zip || fs::exists(path_, ignored)) {
      file_ = std::make_unique<MappedFile>(path_);
      bytes_ = file_->bytes();
    } else {
      path_ = folder / info.zip->name;
      decompress();
    }
    check_file(path_, bytes_, info.raw);
    find_samples();
  }

  int64_t samples() const override { return info_.samples; }

  int64_t tokens(int64_t sample) const override {
    int64_t sum = 0;
    for (const Document& document : documents_of(sample)) sum += document.tokens;
    return sum;
  }

  void append(int64_t sample, int64_t first, int64_t count, Sequence& sequence) const override {
    for (const Document& document : documents_of(sample)) {
      const int64_t here = std::min(document.tokens - first, count);
      if (here <= 0) {
        if (count == 0) break;
        first -= document.tokens;
        continue;
      }
      const int64_t bad = append_tokens(document.type, document.data + first * bytes_of(document.type), here,
                                        vocab_size_, sequence.tokens);
      if (bad >= 0) {
        fail_sample(sample, "token " +
                                std::to_string(load_integer(document.type,
                                                            document.data + (first + bad) * bytes_of(document.type))) +
                                " is beyond the vocabulary of " + std::to_string(vocab_size_) +
                                "; prepare the data with the model's own tokenizer");
      }
      sequence.cu_seqlens.push_back(static_cast<int32_t>(sequence.tokens.size()));
      count -= here;
      first = 0;
    }
  }

 private:
  struct Document {
    const std::byte* data;
    int64_t tokens;
    IntegerType type;
  };

  [[noreturn]] void fail_sample(int64_t sample, const std::string& what) const {
    fail(path_, "sample " + std::to_string(sample) + ": " + what);
  }

  std::span<const Document> documents_of(int64_t sample) const {
    const size_t first = first_document_[static_cast<size_t>(sample)];
    return std::span(documents_).subspan(first, first_document_[static_cast<size_t>(sample) + 1] - first);
  }

  void decompress() {
    const MappedFile file(path_);
    check_file(path_, file.bytes(), *info_.zip);
    const auto size = static_cast<size_t>(info_.raw.bytes);
    const auto content = ZSTD_getFrameContentSize(file.bytes().data(), file.bytes().size());
    if (content == ZSTD_CONTENTSIZE_ERROR) fail(path_, "not a zstd file: the shard is damaged; copy it again");
    if (content == ZSTD_CONTENTSIZE_UNKNOWN) {  // the real writer always says it
      fail(path_, "a zstd file that says the size of its content expected, none said; compress the shard again");
    }
    if (content != size) wrong_content(std::to_string(content));
    decompressed_ = std::make_unique_for_overwrite<std::byte[]>(size);
    const size_t result = ZSTD_decompress(decompressed_.get(), size, file.bytes().data(), file.bytes().size());
    if (ZSTD_isError(result)) {
      fail(path_,
           std::string("cannot decompress: ") + ZSTD_getErrorName(result) + ": the shard is damaged; copy it again");
    }
    if (result != size) wrong_content(std::to_string(result));
    bytes_ = {decompressed_.get(), size};
  }

  [[noreturn]] void wrong_content(const std::string& found) const {
    fail(path_, std::to_string(info_.raw.bytes) + " bytes of content expected by index.json, " + found +
                    " found: the shard or the index is damaged; copy them again");
  }

  int64_t word(Bytes bytes, int64_t index) const {
    return load_integer(IntegerType::kUint32, bytes.data() + index * kWord);
  }

  /// Finds and checks every sample's documents.
  void find_samples() {
    const auto size = static_cast<int64_t>(bytes_.size());
    const int64_t header = kWord * (info_.samples + 2);  // the count and samples + 1 offsets
    if (size < header) fail(path_, "the file ends inside its offsets: the shard is damaged; copy it again");
    if (const int64_t found = word(bytes_, 0); found != info_.samples) {
      fail(path_, std::to_string(info_.samples) + " samples expected by index.json, " + std::to_string(found) +
                      " found: the shard is of another data set; copy it again");
    }
    int64_t begin = word(bytes_, 1);
    if (begin < header) fail(path_, "sample 0 starts inside the offsets: the shard is damaged; copy it again");
    first_document_.reserve(static_cast<size_t>(info_.samples) + 1);
    for (int64_t sample = 0; sample < info_.samples; ++sample) {
      const int64_t end = word(bytes_, sample + 2);
      if (end < begin || end > size) {
        fail_sample(sample, "lies from byte " + std::to_string(begin) + " to " + std::to_string(end) + " of " +
                                std::to_string(size) + ": the shard is damaged; copy it again");
      }
      first_document_.push_back(documents_.size());
      find_documents(sample, bytes_.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
      begin = end;
    }
    first_document_.push_back(documents_.size());
    if (begin != size) {
      fail(path_, "the samples end at byte " + std::to_string(begin) + " of " + std::to_string(size) +
                      ": the shard is damaged; copy it again");
    }
  }

  void find_documents(int64_t sample, Bytes bytes) {
    // The sizes of the columns that vary, then all columns.
    const MdsColumns& columns = *info_.columns;
    const auto varying = std::ranges::count(columns.sizes, -1);
    const auto found = static_cast<int64_t>(bytes.size());
    int64_t at = kWord * varying, next_size = 0;
    if (found < at) fail_sample(sample, "too short for the sizes of its columns: the shard is damaged; copy it again");
    Bytes tokens_cell, spans_cell;
    for (size_t i = 0; i < columns.sizes.size(); ++i) {
      const int64_t size = columns.sizes[i] >= 0 ? columns.sizes[i] : word(bytes, next_size++);
      if (size > found - at) {
        fail_sample(sample, "column " + std::to_string(i) + " has " + std::to_string(size) + " bytes, " +
                                std::to_string(found - at) +
                                " are left: the shard or the index is damaged; copy them again");
      }
      const Bytes cell = bytes.subspan(static_cast<size_t>(at), static_cast<size_t>(size));
      if (i == columns.tokens) tokens_cell = cell;
      if (columns.spans == i) spans_cell = cell;
      at += size;
    }
    if (at != found) {
      fail_sample(sample, std::to_string(at) + " bytes in its columns, " + std::to_string(found) +
                              " found: the shard or the index is damaged; copy them again");
    }
    const Array tokens = read_array(sample, columns.tokens_encoding, tokens_cell);
    if (tokens.shape.size() != 1) {
      fail_sample(sample, "1-D array of tokens expected, " + std::to_string(tokens.shape.size()) +
                              "-D found; write the shards with one list of tokens a sample");
    }
    if (!columns.spans) return add_document(tokens, 0, tokens.shape[0]);
    const Array spans = read_array(sample, columns.spans_encoding, spans_cell);
    const bool pairs = spans.shape.size() == 2 && spans.shape[1] == 2;
    if (!pairs)
      fail_sample(sample, "indices: array of [start, end) rows expected, another shape found; write the shards again");
    int64_t before = 0;
    for (int64_t i = 0; i < spans.shape[0]; ++i) {
      const std::byte* const row = spans.values.data() + 2 * i * bytes_of(spans.type);
      const int64_t begin = load_integer(spans.type, row), end = load_integer(spans.type, row + bytes_of(spans.type));
      if (begin < before || end < begin || end > tokens.shape[0]) {
        fail_sample(sample, "indices: document " + std::to_string(i) + " goes from token " + std::to_string(begin) +
                                " to " + std::to_string(end) + ", expected from " + std::to_string(before) +
                                " or later to at most " + std::to_string(tokens.shape[0]) + "; write the shards again");
      }
      add_document(tokens, begin, end);
      before = end;
    }
  }

  void add_document(const Array& tokens, int64_t begin, int64_t end) {
    if (end > begin) {
      documents_.push_back({tokens.values.data() + begin * bytes_of(tokens.type), end - begin, tokens.type});
    }
  }

  /// [dtype code, unless the index fixes it] [dimensions and width of the lengths, lengths, unless fixed] values.
  Array read_array(int64_t sample, const MdsArrayEncoding& encoding, Bytes cell) const {
    const auto take = [&](size_t count) {
      if (count > cell.size())
        fail_sample(sample, "an array ends inside its header: the shard is damaged; copy it again");
      const Bytes taken = cell.first(count);
      cell = cell.subspan(count);
      return taken;
    };
    const IntegerType type = encoding.type ? *encoding.type : type_of_code(sample, take(1)[0]);
    const auto width = static_cast<size_t>(bytes_of(type));
    if (encoding.bytes) {
      if (cell.size() % width != 0) {
        fail_sample(sample, std::to_string(cell.size()) + " bytes are not whole " + type_name(type) +
                                " integers; give the right dtype");
      }
      return {type, {static_cast<int64_t>(cell.size() / width)}, cell};
    }
    std::vector<int64_t> shape = encoding.shape;
    if (shape.empty()) {
      const auto layout = std::to_integer<size_t>(take(1)[0]);
      const size_t dimensions = layout >> 2, length_bytes = size_t{1} << (layout & 3);
      if (dimensions < 1 || dimensions > 2) {
        fail_sample(sample, "array of 1 or 2 dimensions expected, " + std::to_string(dimensions) +
                                " found; write the shards again");
      }
      for (size_t i = 0; i < dimensions; ++i) {
        uint64_t length = 0;
        const Bytes word = take(length_bytes);
        for (size_t k = length_bytes; k-- > 0;) length = (length << 8) | std::to_integer<uint64_t>(word[k]);
        shape.push_back(static_cast<int64_t>(std::min(length, uint64_t{cell.size()} + 1)));  // more cannot be there
      }
    }
    int64_t expected = static_cast<int64_t>(width);
    bool fits = true;
    for (const int64_t length : shape) fits = fits && !__builtin_mul_overflow(expected, length, &expected);
    if (!fits || static_cast<size_t>(expected) != cell.size()) {
      fail_sample(sample, "an array's lengths do not fit its " + std::to_string(cell.size()) +
                              " bytes of values: the shard or the index is damaged; copy them again");
    }
    return {type, std::move(shape), cell};
  }

  IntegerType type_of_code(int64_t sample, std::byte code) const {
    switch (std::to_integer<int>(code)) {
      case 16:
        return IntegerType::kUint16;
      case 32:
        return IntegerType::kUint32;
      case 33:
        return IntegerType::kInt32;
      case 64:
      case 65:
        return IntegerType::kInt64;
      default:
        fail_sample(sample, "an array of uint16, int32, uint32, int64 or uint64 expected, dtype code " +
                                std::to_string(std::to_integer<int>(code)) + " found; write the shards again");
    }
  }

  MdsShard info_;
  int64_t vocab_size_;
  fs::path path_;  ///< of the file that was read
  std::unique_ptr<const MappedFile> file_;
  std::unique_ptr<std::byte[]> decompressed_;
  Bytes bytes_;  ///< of the uncompressed shard
  std::vector<Document> documents_;
  std::vector<size_t> first_document_;  ///< [samples + 1]
};

}  // namespace

std::shared_ptr<const Block> open_mds_shard(const fs::path& folder, const MdsShard& shard, int64_t vocab_size) {
  return std::make_shared<const Shard>(folder, shard, vocab_size);
}

}  // namespace prulong
