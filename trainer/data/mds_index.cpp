// SPDX-License-Identifier: MIT
#include "trainer/data/mds_index.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <limits>
#include <string_view>

#include "common/error.h"

namespace prulong {
namespace {

constexpr int64_t kMaxShardBytes = std::numeric_limits<uint32_t>::max();  // offsets in a shard have 32 bits

[[noreturn]] void fail(const JsonFile& index, const std::string& what) {
  throw Error(index.path.string() + ": " + what);
}

/// Reads "ndarray:TYPE:D0,D1" or "bytes"; none for anything else.
std::optional<MdsArrayEncoding> parse_encoding(std::string_view text) {
  MdsArrayEncoding encoding;
  encoding.bytes = text == "bytes";
  if (encoding.bytes) return encoding;
  constexpr std::string_view kArray = "ndarray";
  if (!text.starts_with(kArray)) return std::nullopt;
  text.remove_prefix(kArray.size());
  if (text.empty()) return encoding;
  if (text[0] != ':') return std::nullopt;
  text.remove_prefix(1);
  const size_t colon = std::min(text.find(':'), text.size());
  encoding.type = integer_type(std::string(text.substr(0, colon)));
  if (!encoding.type) return std::nullopt;
  text.remove_prefix(colon);
  while (!text.empty()) {  // ":64,2": each length after a colon or comma
    int64_t length = 0;
    const auto [end, error] = std::from_chars(text.data() + 1, text.data() + text.size(), length);
    if (error != std::errc{} || length < 1 || length > kMaxShardBytes) return std::nullopt;
    encoding.shape.push_back(length);
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    if (encoding.shape.size() > 2 || (!text.empty() && (text[0] != ',' || text.size() == 1))) return std::nullopt;
  }
  return encoding;
}

std::vector<std::string> texts_of(const JsonValue& list) {
  std::vector<std::string> texts;
  for (const JsonValue& value : list.list()) texts.push_back(value.text());
  return texts;
}

class IndexReader {
 public:
  IndexReader(const JsonFile& index, std::optional<IntegerType> bytes_type) : index_(index), bytes_type_(bytes_type) {}

  std::vector<MdsShard> read() {
    index_.root.at("version").integer(2, 2);
    const auto list = index_.root.at("shards").list();
    if (list.empty()) fail(index_, "no shards; give a folder that has some");
    std::vector<MdsShard> shards;
    shards.reserve(list.size());
    for (size_t i = 0; i < list.size(); ++i) shards.push_back(read_shard(list[i], "shard " + std::to_string(i)));
    return shards;
  }

 private:
  MdsShard read_shard(const JsonValue& shard_json, const std::string& at) {
    if (shard_json.at("format").text() != "mds") {
      shard_json.at("format").refuse("expected \"mds\", as MDSWriter writes");
    }
    shard_json.at("version").integer(2, 2);
    MdsShard shard;
    // The real writer leaves shards without samples behind.
    shard.samples = shard_json.at("samples").integer(0, kMaxShardBytes / 4 - 2);
    shard.raw = read_file(shard_json.at("raw_data"));
    if (const JsonValue named = shard_json.at("compression"); named.has_value()) {
      const std::string compression = named.text();
      if (compression != "zstd" && !compression.starts_with("zstd:")) named.refuse("expected zstd or none");
      shard.zip = read_file(shard_json.at("zip_data"));
    }
    shard.columns = read_columns(shard_json, at);
    return shard;
  }

  static MdsFile read_file(const JsonValue& described) {
    MdsFile file;
    file.name = described.at("basename").text();
    file.bytes = described.at("bytes").integer(1, kMaxShardBytes);
    if (const JsonValue hashes = described.at("hashes"); hashes.has_value()) {
      for (const auto& [algorithm, digest] : hashes.members()) file.hashes[algorithm] = digest.text();
    }
    const std::filesystem::path path(file.name);
    const bool leaves = path.is_absolute() || std::ranges::any_of(path, [](const auto& part) { return part == ".."; });
    if (!path.has_filename() || leaves) {
      described.at("basename").refuse("expected a file below the index's folder");
    }
    return file;
  }

  std::shared_ptr<const MdsColumns> read_columns(const JsonValue& shard_json, const std::string& at) {
    auto names = texts_of(shard_json.at("column_names")), encodings = texts_of(shard_json.at("column_encodings"));
    std::vector<int64_t> sizes;
    for (const JsonValue& size : shard_json.at("column_sizes").list()) {
      sizes.push_back(size.has_value() ? size.integer(1, kMaxShardBytes) : -1);
    }
    if (columns_ != nullptr && names == names_ && encodings == encodings_ && sizes == columns_->sizes) return columns_;
    if (names.size() != encodings.size() || names.size() != sizes.size()) {
      fail(index_, at + ": as many column_encodings and column_sizes as column_names expected, " +
                       std::to_string(encodings.size()) + " and " + std::to_string(sizes.size()) + " for " +
                       std::to_string(names.size()) + " found; write the shards again");
    }
    const auto find = [&](const char* name) {
      const auto found = std::ranges::find(names, name);
      return found == names.end() ? std::nullopt : std::optional<size_t>(found - names.begin());
    };
    auto columns = std::make_shared<MdsColumns>();
    auto tokens = find("input_ids");
    if (!tokens) tokens = find("tokens");
    if (!tokens) fail(index_, at + ": no column input_ids or tokens; write the shards with their token ids");
    columns->tokens = *tokens;
    columns->tokens_encoding = read_encoding(at, names[*tokens], encodings[*tokens]);
    columns->spans = find("indices");
    if (columns->spans) {
      columns->spans_encoding = read_encoding(at, names[*columns->spans], encodings[*columns->spans]);
    }
    columns->sizes = std::move(sizes);
    names_ = std::move(names);
    encodings_ = std::move(encodings);
    return columns_ = std::move(columns);
  }

  MdsArrayEncoding read_encoding(const std::string& at, const std::string& name, const std::string& text) const {
    auto encoding = parse_encoding(text);
    if (!encoding) {
      fail(index_, at + ": column " + name +
                       ": encoding bytes or an ndarray of uint16, int32, uint32, int64 or uint64 " + "expected, " +
                       text + " found; write the shards again with one of them");
    }
    if (encoding->bytes) {
      if (!bytes_type_) {
        fail(index_, at + ": column " + name +
                         " holds bytes, whose type is not known; say it with dtype: uint16, uint32, int32 or int64");
      }
      encoding->type = bytes_type_;
    }
    return *encoding;
  }

  const JsonFile& index_;
  std::optional<IntegerType> bytes_type_;
  std::vector<std::string> names_, encodings_;  ///< of columns_
  std::shared_ptr<const MdsColumns> columns_;   ///< those of the shard before
};

}  // namespace

std::optional<IntegerType> integer_type(const std::string& name) {
  if (name == "uint16") return IntegerType::kUint16;
  if (name == "uint32") return IntegerType::kUint32;
  if (name == "int32") return IntegerType::kInt32;
  if (name == "int64" || name == "uint64") return IntegerType::kInt64;
  return std::nullopt;
}

std::vector<MdsShard> read_mds_index(const JsonFile& index, std::optional<IntegerType> bytes_type) {
  return IndexReader(index, bytes_type).read();
}

}  // namespace prulong
