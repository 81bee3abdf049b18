// SPDX-License-Identifier: MIT
// TensorBoard itself reads these files in tests/python/test_train.py; here is what it would not notice.
#include "common/event_file.h"

#include <cstring>
#include <set>

#include "tests/support/catch.h"
#include "tests/support/files.h"

using namespace prulong;
using test::read_text;
using test::TemporaryFolder;
using test::write_text;

namespace {

std::vector<std::string> files_of(const std::filesystem::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.insert(entry.path().string());
  return {names.begin(), names.end()};
}

template <class Word>
Word word_at(const std::string& bytes, size_t at) {
  Word word{};
  REQUIRE(at + sizeof word <= bytes.size());
  std::memcpy(&word, bytes.data() + at, sizeof word);
  return word;
}

/// The payloads of a file's records, their checksums held against the bytes.
std::vector<std::string> records_of(const std::string& file) {
  const std::string bytes = read_text(file);
  std::vector<std::string> records;
  for (size_t at = 0; at < bytes.size();) {
    const auto length = static_cast<size_t>(word_at<uint64_t>(bytes, at));
    CHECK(word_at<uint32_t>(bytes, at + 8) == masked_crc32c(bytes.substr(at, 8)));
    records.push_back(bytes.substr(at + 12, length));
    CHECK(word_at<uint32_t>(bytes, at + 12 + length) == masked_crc32c(records.back()));
    at += 16 + length;
  }
  return records;
}

}  // namespace

TEST_CASE("The checksum is CRC-32C, masked") {
  // RFC 3720, B.4: the plain checksums of 32 zero bytes, 32 bytes of ones, and "123456789" of the polynomial's
  // catalogue.
  const auto masked = [](uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; };
  CHECK(masked_crc32c(std::string(32, '\0')) == masked(0x8a9136aau));
  CHECK(masked_crc32c(std::string(32, '\xff')) == masked(0x62a8ab43u));
  CHECK(masked_crc32c("123456789") == masked(0xe3069283u));
  CHECK(masked_crc32c("") == masked(0));
}

TEST_CASE("A step's scalars are one record with the bytes of the format") {
  const TemporaryFolder folder;
  EventFile file(folder.path(), 0);
  file.write(300, {{"a", 0.5}, {"bc", -2.0}});
  const auto files = files_of(folder.path());
  REQUIRE(files.size() == 1);
  const auto records = records_of(files[0]);
  REQUIRE(records.size() == 3);
  CHECK_THAT(records[0], ContainsSubstring("brain.Event:2"));
  const auto without_time = [](const std::string& record) { return record.substr(9); };  // 1 byte of tag, 8 of double
  CHECK(without_time(records[1]) == std::string("\x10\x01\x3a\x02\x08\x01", 6));         // step 1: session_log {status}
  const std::string a(
      "\x0a\x08\x0a\x01"
      "a\x15\x00\x00\x00\x3f",
      10);
  const std::string bc(
      "\x0a\x09\x0a\x02"
      "bc\x15\x00\x00\x00\xc0",
      11);
  CHECK(without_time(records[2]) == std::string("\x10\xac\x02\x2a\x15", 5) + a + bc);
}

TEST_CASE("Every start of a run has a file of its own, later in name") {
  const TemporaryFolder folder;
  write_text(folder / "events.out.tfevents.9000000000.other", "x");
  write_text(folder / "events.out.tfevents.nonsense", "x");
  { const EventFile first(folder.path(), 0); }
  { const EventFile second(folder.path(), 7); }
  const auto files = files_of(folder.path());
  REQUIRE(files.size() == 4);
  CHECK_THAT(files[1], ContainsSubstring("tfevents.9000000001"));
  CHECK_THAT(files[2], ContainsSubstring("tfevents.9000000002"));
  CHECK(records_of(files[2])[1].substr(9) == std::string("\x10\x08\x3a\x02\x08\x01", 6));  // from step 8 on
}
