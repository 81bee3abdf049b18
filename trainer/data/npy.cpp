// SPDX-License-Identifier: MIT
// IntegerFile::open_npy.
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/error.h"
#include "trainer/data/integer_file.h"

namespace prulong {
namespace {

constexpr size_t kPreamble = 8;  // magic and version, before the header's length
constexpr size_t kMaxHeader = 65536;

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& what) {
  throw Error(path.string() + ": " + what + "; write it again with numpy.save");
}

/// Reads the header's Python dictionary, in any order of its keys.
class HeaderParser {
 public:
  struct Header {
    std::string descr;
    bool fortran_order = false;
    std::vector<int64_t> shape;
  };

  HeaderParser(std::string_view text, const std::filesystem::path& path) : text_(text), path_(path) {}

  Header parse() {
    std::optional<std::string> descr;
    std::optional<bool> fortran_order;
    std::optional<std::vector<int64_t>> shape;
    expect('{');
    while (!accept('}')) {
      const std::string key = quoted();
      expect(':');
      if (key == "descr" && !descr) {
        descr = quoted();
      } else if (key == "fortran_order" && !fortran_order) {
        fortran_order = boolean();
      } else if (key == "shape" && !shape) {
        shape = tuple();
      } else {
        bad("key '" + key + "' is unknown or occurs twice");
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (position_ != text_.size()) bad("text follows the dictionary");
    if (!descr || !fortran_order || !shape) bad("descr, fortran_order or shape is missing");
    return {*descr, *fortran_order, *shape};
  }

 private:
  [[noreturn]] void bad(const std::string& what) const { fail(path_, "damaged .npy header: " + what); }

  void skip_space() {
    while (position_ < text_.size() && (text_[position_] == ' ' || text_[position_] == '\n')) ++position_;
  }

  bool accept(char c) {
    skip_space();
    if (position_ == text_.size() || text_[position_] != c) return false;
    ++position_;
    return true;
  }

  void expect(char c) {
    if (!accept(c)) bad(std::string("'") + c + "' expected at byte " + std::to_string(position_));
  }

  std::string quoted() {
    expect('\'');
    const size_t end = text_.find('\'', position_);
    if (end == std::string_view::npos) bad("a string has no end");
    const std::string value(text_.substr(position_, end - position_));
    for (const char c : value) {
      if (c < ' ' || c > '~') bad("a string holds a byte that is not printable ASCII");
    }
    position_ = end + 1;
    return value;
  }

  bool boolean() {
    skip_space();
    for (const std::string_view word : {"True", "False"}) {
      if (text_.substr(position_, word.size()) == word) {
        position_ += word.size();
        return word == "True";
      }
    }
    bad("fortran_order is neither True nor False");
  }

  std::vector<int64_t> tuple() {
    std::vector<int64_t> values;
    expect('(');
    while (!accept(')')) {
      values.push_back(integer());
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return values;
  }

  int64_t integer() {
    skip_space();
    const size_t start = position_;
    int64_t value = 0;
    while (position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9') {
      if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, text_[position_] - '0', &value)) {
        bad("a length is too large");
      }
      ++position_;
    }
    if (position_ == start) bad("a length is not a number");
    return value;
  }

  std::string_view text_;
  const std::filesystem::path& path_;
  size_t position_ = 0;
};

IntegerType parse_type(const std::string& descr, const std::filesystem::path& path) {
  if (descr == "<u2") return IntegerType::kUint16;
  if (descr == "<u4") return IntegerType::kUint32;
  if (descr == "<i4") return IntegerType::kInt32;
  if (descr == "<i8") return IntegerType::kInt64;
  fail(path, "element type '" + descr + "' found, '<u2', '<u4', '<i4' or '<i8' expected");
}

/// Where the header's dictionary starts and how long it is.
std::pair<size_t, size_t> find_header(std::span<const std::byte> bytes, const std::filesystem::path& path) {
  if (bytes.empty()) fail(path, "the file is empty, a .npy file expected");
  if (bytes.size() < kPreamble || std::memcmp(bytes.data(), "\x93NUMPY", 6) != 0) {
    fail(path, "not a .npy file: wrong first bytes");
  }
  const int version = std::to_integer<int>(bytes[6]), minor = std::to_integer<int>(bytes[7]);
  if (version < 1 || version > 3 || minor != 0) {
    fail(path, ".npy version " + std::to_string(version) + "." + std::to_string(minor) + " found, 1.0 to 3.0 expected");
  }
  const IntegerType length_type = version == 1 ? IntegerType::kUint16 : IntegerType::kUint32;
  const size_t start = kPreamble + static_cast<size_t>(bytes_of(length_type));
  if (bytes.size() < start) fail(path, "the file ends inside its header");
  const auto length = static_cast<size_t>(load_integer(length_type, bytes.data() + kPreamble));
  if (length > kMaxHeader) fail(path, "the header claims " + std::to_string(length) + " bytes");
  if (length > bytes.size() - start) fail(path, "the file ends inside its header");
  return {start, length};
}

}  // namespace

IntegerFile IntegerFile::open_npy(const std::filesystem::path& path) {
  IntegerFile file(path, IntegerType::kUint16);
  const std::span<const std::byte> bytes = file.bytes();
  const auto [start, length] = find_header(bytes, path);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + start, length);
  HeaderParser::Header header = HeaderParser(text, path).parse();
  file.type_ = parse_type(header.descr, path);
  file.shape_ = std::move(header.shape);
  if (file.shape_.empty() || file.shape_.size() > 2) {
    fail(path, std::to_string(file.shape_.size()) + " dimensions found, 1 or 2 expected");
  }
  if (header.fortran_order && file.shape_.size() > 1) fail(path, "Fortran order found, C order expected");
  int64_t expected = bytes_of(file.type_);
  for (const int64_t size : file.shape_) {
    if (__builtin_mul_overflow(expected, size, &expected)) fail(path, "damaged .npy header: the shape is too large");
  }
  const size_t found = bytes.size() - start - length;
  if (static_cast<size_t>(expected) != found) {
    fail(path, std::to_string(expected) + " bytes of elements expected by the header, " + std::to_string(found) +
                   " found: the file is damaged or incomplete");
  }
  file.size_ = expected / bytes_of(file.type_);
  file.data_ = bytes.data() + start + length;
  return file;
}

}  // namespace prulong
