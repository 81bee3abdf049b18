// SPDX-License-Identifier: MIT
#include "trainer/data/flat_files.h"

#include <algorithm>
#include <numeric>

#include "common/error.h"
#include "tests/support/catch.h"
#include "tests/trainer/data/data_files.h"

namespace prulong {
namespace {

using namespace test;

constexpr int64_t kVocab = 60000;

template <typename T>
std::vector<T> count_from(int first, int count) {
  std::vector<T> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), static_cast<T>(first));
  return values;
}

std::vector<int32_t> read_stream(const Source& source, int64_t sequences) {
  std::vector<int32_t> stream;
  for (int64_t n = 0; n < sequences; ++n) {
    const Sequence sequence = source.sequence(n);
    stream.insert(stream.end(), sequence.tokens.begin(), sequence.tokens.end());
  }
  return stream;
}

/// One epoch of a source whose tokens are 0 to total - 1 is all of them.
void check_epoch(const FlatFileOptions& options, int64_t seq_len, int64_t total) {
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    auto stream = read_stream(*open_flat_files(options, seq_len, 3), 2 * total / seq_len + 1);
    stream = {stream.begin() + epoch * total, stream.begin() + (epoch + 1) * total};
    CHECK(!std::is_sorted(stream.begin(), stream.end()));
    std::sort(stream.begin(), stream.end());
    CHECK(stream == count_from<int32_t>(0, static_cast<int>(total)));
  }
}

TEST_CASE("several files of either kind and of every type are one epoch") {
  const TemporaryFolder folder;
  write_text(folder.path() / "b.bin", bytes_of(count_from<uint16_t>(0, 50)));
  write_text(folder.path() / "a.bin", bytes_of(count_from<uint16_t>(50, 33)));
  write_text(folder.path() / "note.txt", "not data");
  check_epoch({folder.path(), IntegerType::kUint16, -1, kVocab}, 8, 83);
  write_text(folder.path() / "a.bin", bytes_of(count_from<uint32_t>(0, 41)));
  check_epoch({folder.path() / "a.bin", IntegerType::kUint32, -1, kVocab}, 7, 41);

  write_u16(folder.path() / "x.npy", count_from<uint16_t>(0, 30));
  write_i64(folder.path() / "y.npy", count_from<int64_t>(30, 25));
  write_text(folder.path() / "z.npy", npy(header("<i4", 0), ""));  // empty: no sample
  write_text(folder.path() / "zz.npy", npy(header("<u4", 10), bytes_of(count_from<uint32_t>(55, 10))));
  check_epoch({folder.path(), {}, -1, kVocab}, 6, 65);
  CHECK(open_flat_files({folder.path(), {}, -1, kVocab}, 6, 3)->vocab_size() == kVocab);
}

TEST_CASE("samples are whole sequences, and rows of a matrix are documents") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "a.npy";
  write_u16(path, count_from<uint16_t>(0, 64));
  const auto source = open_flat_files({path, {}, -1, kVocab}, 8, 3);
  for (int64_t n = 0; n < 24; ++n) {
    const Sequence sequence = source->sequence(n);
    CHECK(sequence.cu_seqlens == std::vector<int32_t>{0, 8});
    CHECK(sequence.tokens == count_from<int32_t>(sequence.tokens[0] / 8 * 8, 8));
  }
  write_text(path,
             npy("{'descr': '<u2', 'fortran_order': False, 'shape': (16, 4)}", bytes_of(count_from<uint16_t>(0, 64))));
  const auto rows = open_flat_files({path, {}, -1, kVocab}, 8, 3);
  for (int64_t n = 0; n < 8; ++n) {
    const Sequence sequence = rows->sequence(n);
    CHECK(sequence.cu_seqlens == std::vector<int32_t>{0, 4, 8});
    CHECK(sequence.tokens[0] % 4 == 0);
    CHECK(sequence.tokens[4] % 4 == 0);
  }
}

TEST_CASE("an end token closes a document, wherever it stands") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "a.bin";
  const auto bounds = [&](const std::vector<uint16_t>& tokens) {
    write_text(path, bytes_of(tokens));
    return open_flat_files({path, IntegerType::kUint16, 9, kVocab}, std::ssize(tokens), 3)->sequence(0).cu_seqlens;
  };
  CHECK(bounds({1, 2, 9, 3, 4}) == std::vector<int32_t>{0, 3, 5});
  CHECK(bounds({9, 2, 3, 4}) == std::vector<int32_t>{0, 1, 4});
  CHECK(bounds({1, 2, 3, 9}) == std::vector<int32_t>{0, 4});
  CHECK(bounds({9, 9, 9}) == std::vector<int32_t>{0, 1, 2, 3});
  CHECK(bounds({1, 2, 3}) == std::vector<int32_t>{0, 3});
  CHECK(bounds({9}) == std::vector<int32_t>{0, 1});
  write_text(path, bytes_of<uint16_t>({1, 9, 2, 3}));
  CHECK(open_flat_files({path, IntegerType::kUint16, 0, kVocab}, 4, 3)->sequence(0).cu_seqlens.size() == 2);
  CHECK(open_flat_files({path, IntegerType::kUint16, -1, kVocab}, 4, 3)->sequence(0).cu_seqlens.size() == 2);
}

TEST_CASE("the fingerprint follows names, sizes, bytes and how they are read") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "a.bin";
  const std::string large(1 << 20, '\1');
  write_text(path, large);
  const auto of = [&](IntegerType type, int64_t end_token) {
    return open_flat_files({folder.path(), type, end_token, kVocab}, 16, 3)->fingerprint();
  };
  const std::string first = of(IntegerType::kUint16, -1);
  CHECK(of(IntegerType::kUint16, -1) == first);
  CHECK(of(IntegerType::kUint32, -1) != first);
  CHECK(of(IntegerType::kUint16, 5) != first);
  for (const size_t at : {size_t{0}, large.size() - 1}) {
    std::string changed = large;
    changed[at] = 2;
    write_text(path, changed);
    CHECK(of(IntegerType::kUint16, -1) != first);
  }
  write_text(path, large + "\1\1");
  CHECK(of(IntegerType::kUint16, -1) != first);
  write_text(path, large);
  CHECK(of(IntegerType::kUint16, -1) == first);
  std::filesystem::rename(path, folder.path() / "b.bin");
  CHECK(of(IntegerType::kUint16, -1) != first);
}

TEST_CASE("bad flat files are refused by file and reason") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "a.bin";
  const auto open = [&](const std::filesystem::path& what, std::optional<IntegerType> type) {
    return open_flat_files({what, type, -1, 100}, 4, 3);
  };
  CHECK_THROWS_WITH(open(path, IntegerType::kUint16), ContainsSubstring("a.bin: no such file or folder"));
  CHECK_THROWS_WITH(open(folder.path(), {}), ContainsSubstring("*.npy files expected in this folder, none found"));
  CHECK_THROWS_WITH(open(folder.path(), IntegerType::kUint16), ContainsSubstring("*.bin files expected"));
  write_text(path, "");
  CHECK_THROWS_WITH(open(path, IntegerType::kUint16), ContainsSubstring("a.bin: the file is empty"));
  write_text(path, "12345");
  CHECK_THROWS_WITH(open(path, IntegerType::kUint16),
                    ContainsSubstring("a.bin: whole uint16 integers of 2 bytes expected, 5 bytes found"));
  CHECK_THROWS_WITH(open(path, {}), ContainsSubstring("a.bin: not a .npy file"));
  for (const char* name : {"tokens.npy", "documents.npy"}) write_text(folder.path() / name, "");
  CHECK_THROWS_WITH(open(folder.path(), {}),
                    ContainsSubstring("a folder of scripts/prepare_data.py; say type: tokens"));
  for (const char* name : {"tokens.npy", "documents.npy"}) std::filesystem::remove(folder.path() / name);
  write_text(path, bytes_of<uint16_t>({1, 99, 100, 3}));
  CHECK_THROWS_WITH(open(path, IntegerType::kUint16)->sequence(0),
                    ContainsSubstring("a.bin: token 100 at position 2 is beyond the vocabulary of 100"));
  write_i64(folder.path() / "n.npy", {5, -1});
  CHECK_THROWS_WITH(open(folder.path() / "n.npy", {})->sequence(0), ContainsSubstring("n.npy: token -1 at position 1"));
  write_i64(folder.path() / "n.npy", {});
  CHECK_THROWS_WITH(open(folder.path(), {}), ContainsSubstring("tokens expected, none found"));
  CHECK_THROWS_WITH(open_flat_files({path, IntegerType::kUint16, -1, 100}, 0, 3), ContainsSubstring("seq_len: 1 to"));
}

}  // namespace
}  // namespace prulong
