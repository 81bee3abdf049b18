// SPDX-License-Identifier: MIT
#include "trainer/data/integer_file.h"

#include "common/error.h"
#include "tests/support/catch.h"
#include "tests/trainer/data/data_files.h"

namespace prulong {
namespace {

using namespace test;

TEST_CASE("npy files of every version, type and header layout are read") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "a.npy";
  for (const int version : {1, 2, 3}) {
    write_text(path, npy(header("<u2", 3), bytes_of<uint16_t>({1, 2, 65535}), version));
    const IntegerFile array = IntegerFile::open_npy(path);
    CHECK(array.type() == IntegerType::kUint16);
    CHECK(array.shape() == std::vector<int64_t>{3});
    CHECK(array[2] == 65535);
  }
  write_text(path, npy(header("<u4", 2), bytes_of<uint32_t>({0, 4294967295u})));
  CHECK(IntegerFile::open_npy(path)[1] == 4294967295);
  write_text(path, npy(header("<i4", 2), bytes_of<int32_t>({0, -5})));
  CHECK(IntegerFile::open_npy(path)[1] == -5);
  write_text(path, npy(header("<i8", 2), bytes_of<int64_t>({0, -(int64_t{1} << 40)})));
  CHECK(IntegerFile::open_npy(path)[1] == -(int64_t{1} << 40));

  // Keys in another order, no spaces, an odd length that leaves the elements unaligned.
  write_text(path, npy("{'shape':(2,3),'fortran_order':False,'descr':'<i4'} ", bytes_of<int32_t>({1, 2, 3, 4, 5, 6})));
  const IntegerFile matrix = IntegerFile::open_npy(path);
  CHECK(matrix.shape() == std::vector<int64_t>{2, 3});
  CHECK(matrix.size() == 6);
  CHECK(matrix[5] == 6);

  write_text(path, npy(header("<u2", 0), ""));
  CHECK(IntegerFile::open_npy(path).size() == 0);
  CHECK(std::string(type_name(IntegerType::kInt64)) == "int64");
}

TEST_CASE("bad npy files are refused by name and reason") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "bad.npy";
  const std::string four = bytes_of<uint16_t>({1, 2, 3, 4});
  const auto dictionary = [](const std::string& shape) {
    return "{'descr': '<u2', 'fortran_order': False, 'shape': " + shape + "}";
  };
  std::string wrong_version = npy(header("<u2", 4), four);
  wrong_version[6] = 4;
  std::string long_header = npy(header("<u2", 4), four, 2);
  long_header[11] = 0x7f;
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "the file is empty"},
      {"hello, this is text", "not a .npy file"},
      {std::string("\x93NUMPY\x01", 7), "not a .npy file"},
      {std::string("\x93NUMPY\x01\x00\x10", 9), "ends inside its header"},
      {wrong_version, ".npy version 4.0 found"},
      {long_header, "the header claims"},
      {npy(header("<u2", 4), four).substr(0, 40), "ends inside its header"},
      {npy(header("<f4", 2), four), "'<f4' found"},
      {npy(header(">u2", 4), four), "'>u2' found"},
      {npy(header("|O", 4), four), "'|O' found"},
      {npy(header("<u2", 5), four), "10 bytes of elements expected by the header, 8 found"},
      {npy(header("<u2", 4), four + "x"), "8 bytes of elements expected by the header, 9 found"},
      {npy("{'descr': '<u2', 'fortran_order': True, 'shape': (2, 2)}", four), "Fortran order"},
      {npy("{'descr': '<u2', 'fortran_order': Maybe, 'shape': (4,)}", four), "neither True nor False"},
      {npy("{'descr': '<u2', 'shape': (4,)}", four), "is missing"},
      {npy("{'descr': '<u2', 'descr': '<u2', 'shape': (4,)}", four), "occurs twice"},
      {npy("{'color': '<u2'}", four), "key 'color' is unknown"},
      {npy("{'descr': '<u2", four), "a string has no end"},
      {npy("{'descr': '<\nu2'}", four), "not printable"},
      {npy("[1, 2]", four), "'{' expected"},
      {npy(dictionary("()"), bytes_of<uint16_t>({1})), "0 dimensions found"},
      {npy(dictionary("(1, 2, 2)"), four), "3 dimensions found"},
      {npy(dictionary("(-4,)"), four), "not a number"},
      {npy(dictionary("(99999999999999999999,)"), four), "too large"},
      {npy(dictionary("(4611686018427387904, 4)"), four), "too large"},
      {npy(dictionary("(4,)") + "x", four), "text follows"},
  };
  for (const auto& [bytes, message] : cases) {
    INFO(message);
    write_text(path, bytes);
    CHECK_THROWS_WITH(IntegerFile::open_npy(path), ContainsSubstring(message) && ContainsSubstring("bad.npy"));
  }
  CHECK_THROWS_WITH(IntegerFile::open_npy(folder.path() / "none.npy"), ContainsSubstring("none.npy: cannot open"));
  CHECK_THROWS_WITH(IntegerFile::open_npy(folder.path()), ContainsSubstring("expected a regular file"));
}

TEST_CASE("no truncation and no changed header byte crashes the npy reader") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "fuzz.npy";
  const std::string good = npy(header("<u2", 4), bytes_of<uint16_t>({1, 2, 3, 4}));
  for (size_t length = 0; length < good.size(); ++length) {
    write_text(path, good.substr(0, length));
    CHECK_THROWS_AS(IntegerFile::open_npy(path), Error);
  }
  for (size_t at = 0; at + 8 < good.size(); ++at) {
    for (const char change : {'\x01', '\x80', '\x10'}) {
      std::string bytes = good;
      bytes[at] = static_cast<char>(bytes[at] ^ change);
      write_text(path, bytes);
      try {
        const IntegerFile array = IntegerFile::open_npy(path);
        for (int64_t i = 0; i < array.size(); ++i) CHECK(array[i] >= -32768);
      } catch (const Error&) {
      }
    }
  }
}

}  // namespace
}  // namespace prulong
