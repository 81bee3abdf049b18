// SPDX-License-Identifier: MIT
#include "common/event_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <chrono>
#include <cinttypes>
#include <cstdio>

#include "common/error.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;

// Fields of tensorflow.Event, Summary, Summary.Value and SessionLog that are written here, by number.
namespace event {
constexpr int kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7;
}
namespace summary {
constexpr int kValue = 1, kTag = 1, kSimpleValue = 2;
}
namespace session_log {
constexpr int kStatus = 1;
constexpr uint64_t kStart = 1;
}  // namespace session_log

/// A protocol buffer, field by field.
class Message {
 public:
  Message& integer(int field, uint64_t value) {
    varint(tag(field, 0));
    varint(value);
    return *this;
  }
  Message& number(int field, double value) {
    varint(tag(field, 1));
    return fixed(std::bit_cast<uint64_t>(value));
  }
  Message& number(int field, float value) {
    varint(tag(field, 5));
    return fixed(std::bit_cast<uint32_t>(value));
  }
  Message& text(int field, std::string_view value) {
    varint(tag(field, 2));
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  /// Little-endian, whatever the machine.
  template <class Word>
  Message& fixed(Word word) {
    for (size_t i = 0; i < sizeof word; ++i) bytes_ += static_cast<char>(word >> (8 * i) & 0xff);
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  static uint64_t tag(int field, uint64_t wire_type) { return static_cast<uint64_t>(field) << 3 | wire_type; }
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>((value & 0x7f) | 0x80);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

double seconds_since_epoch() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

Message new_event(int64_t step) {
  return Message().number(event::kWallTime, seconds_since_epoch()).integer(event::kStep, static_cast<uint64_t>(step));
}

/// events.out.tfevents.TIME, later than every other in the folder: TensorBoard reads them in the order of their names.
fs::path next_name(const fs::path& folder) {
  constexpr std::string_view kPrefix = "events.out.tfevents.";
  auto time = static_cast<int64_t>(seconds_since_epoch());
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    int64_t other = 0;
    std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), other);
    time = std::max(time, other + 1);
  }
  char digits[24];
  std::snprintf(digits, sizeof digits, "%010" PRId64, time);
  return folder / (std::string(kPrefix) + digits + ".prulong");
}

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < table.size(); ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0u);
    table[byte] = crc;
  }
  return table;
}

}  // namespace

uint32_t masked_crc32c(std::string_view bytes) {
  static constexpr auto kTable = make_crc_table();
  uint32_t crc = 0xffffffffu;
  for (const char byte : bytes) crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(byte)) & 0xff];
  return std::rotr(~crc, 15) + 0xa282ead8u;
}

EventFile::EventFile(const fs::path& folder, int64_t resume_step)
    : path_(next_name(folder)), out_(path_, std::ios::binary) {
  if (!out_) throw Error(path_.string() + ": cannot be written; check the folder's permissions, or choose another one");
  append(new_event(0).text(event::kFileVersion, "brain.Event:2").bytes());
  // A session's start makes TensorBoard drop what older files hold of this step and later ones.
  const auto start = Message().integer(session_log::kStatus, session_log::kStart);
  append(new_event(resume_step + 1).text(event::kSessionLog, start.bytes()).bytes());
}

void EventFile::write(int64_t step, const Scalars& scalars) {
  Message values;
  for (const auto& [name, value] : scalars) {
    const auto one = Message().text(summary::kTag, name).number(summary::kSimpleValue, static_cast<float>(value));
    values.text(summary::kValue, one.bytes());
  }
  append(new_event(step).text(event::kSummary, values.bytes()).bytes());
}

/// One record: length, its checksum, the bytes, their checksum.
void EventFile::append(std::string_view event) {
  const Message length = Message().fixed(static_cast<uint64_t>(event.size()));
  Message record = length;
  record.fixed(masked_crc32c(length.bytes()));
  out_ << record.bytes() << event << Message().fixed(masked_crc32c(event)).bytes() << std::flush;
  if (!out_)
    throw Error(path_.string() + ": cannot be written (disk full?); free space and run the same command again");
}

}  // namespace prulong
