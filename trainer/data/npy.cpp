// SPDX-License-Identifier: MIT
#include "trainer/data/npy.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "model/error.h"

namespace prulong {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are read as they lie in the file");

constexpr size_t kPreamble = 8;  // magic and version, before the header's length
constexpr size_t kMaxHeader = 65536;

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& what) {
  throw Error(path.string() + ": " + what);
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

NpyArray::Type parse_type(const std::string& descr, const std::filesystem::path& path) {
  if (descr == "<u2") return NpyArray::Type::kUint16;
  if (descr == "<u4") return NpyArray::Type::kUint32;
  if (descr == "<i4") return NpyArray::Type::kInt32;
  if (descr == "<i8") return NpyArray::Type::kInt64;
  fail(path, "element type '" + descr + "' found, '<u2', '<u4', '<i4' or '<i8' expected");
}

size_t bytes_of(NpyArray::Type type) {
  switch (type) {
    case NpyArray::Type::kUint16:
      return 2;
    case NpyArray::Type::kInt64:
      return 8;
    default:
      return 4;
  }
}

template <typename T>
int64_t load(const std::byte* address) {
  T value;  // copied: a header of unusual length leaves the elements unaligned
  std::memcpy(&value, address, sizeof(T));
  return static_cast<int64_t>(value);
}

}  // namespace

void NpyArray::Unmap::operator()(const std::byte* address) const { ::munmap(const_cast<std::byte*>(address), length); }

NpyArray::NpyArray(const std::filesystem::path& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(path, std::string("cannot open: ") + std::strerror(errno));
  struct stat status {};
  const bool regular = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  const size_t file_size = regular ? static_cast<size_t>(status.st_size) : 0;
  void* address = file_size > 0 ? ::mmap(nullptr, file_size, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
  const int map_error = errno;
  ::close(fd);
  if (!regular) fail(path, "not a regular file");
  if (file_size == 0) fail(path, "the file is empty, a .npy file expected");
  if (address == MAP_FAILED) fail(path, std::string("cannot map into memory: ") + std::strerror(map_error));
  const auto* bytes = static_cast<const std::byte*>(address);
  mapping_ = {bytes, Unmap{file_size}};

  if (file_size < kPreamble || std::memcmp(bytes, "\x93NUMPY", 6) != 0)
    fail(path, "not a .npy file: wrong first bytes");
  const int version = std::to_integer<int>(bytes[6]);
  if (version < 1 || version > 3 || bytes[7] != std::byte{0}) {
    fail(path, ".npy version " + std::to_string(version) + "." + std::to_string(std::to_integer<int>(bytes[7])) +
                   " found, 1.0 to 3.0 expected");
  }
  const size_t length_bytes = version == 1 ? 2 : 4;
  if (file_size < kPreamble + length_bytes) fail(path, "the file ends inside its header");
  const auto header_size = static_cast<size_t>(version == 1 ? load<uint16_t>(bytes + kPreamble)  //
                                                            : load<uint32_t>(bytes + kPreamble));
  const size_t header_start = kPreamble + length_bytes;
  if (header_size > kMaxHeader) fail(path, "the header claims " + std::to_string(header_size) + " bytes");
  if (header_size > file_size - header_start) fail(path, "the file ends inside its header");

  const std::string_view text(reinterpret_cast<const char*>(bytes) + header_start, header_size);
  HeaderParser::Header header = HeaderParser(text, path).parse();
  type_ = parse_type(header.descr, path);
  shape_ = std::move(header.shape);
  if (shape_.empty() || shape_.size() > 2) {
    fail(path, std::to_string(shape_.size()) + " dimensions found, 1 or 2 expected");
  }
  if (header.fortran_order && shape_.size() > 1) fail(path, "Fortran order found, C order expected");
  int64_t expected = static_cast<int64_t>(bytes_of(type_));
  size_ = 1;
  for (const int64_t length : shape_) {
    if (__builtin_mul_overflow(expected, length, &expected)) fail(path, "damaged .npy header: the shape is too large");
    size_ *= length;
  }
  const size_t found = file_size - header_start - header_size;
  if (static_cast<size_t>(expected) != found) {
    fail(path, std::to_string(expected) + " bytes of elements expected by the header, " + std::to_string(found) +
                   " found: the file is damaged or incomplete");
  }
  data_ = bytes + header_start + header_size;
}

int64_t NpyArray::operator[](int64_t index) const {
  const std::byte* address = data_ + static_cast<size_t>(index) * bytes_of(type_);
  switch (type_) {
    case Type::kUint16:
      return load<uint16_t>(address);
    case Type::kUint32:
      return load<uint32_t>(address);
    case Type::kInt32:
      return load<int32_t>(address);
    case Type::kInt64:
      break;
  }
  return load<int64_t>(address);
}

const char* type_name(NpyArray::Type type) {
  switch (type) {
    case NpyArray::Type::kUint16:
      return "uint16";
    case NpyArray::Type::kUint32:
      return "uint32";
    case NpyArray::Type::kInt32:
      return "int32";
    case NpyArray::Type::kInt64:
      break;
  }
  return "int64";
}

}  // namespace prulong
