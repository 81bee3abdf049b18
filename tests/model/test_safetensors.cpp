// SPDX-License-Identifier: MIT
#include "model/safetensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>

#include "common/error.h"
#include "tests/model/tiny_llama.h"
#include "tests/support/catch.h"
#include "tests/support/files.h"

namespace prulong {
namespace {

using test::read_text;
using test::TemporaryFolder;
using test::write_text;

std::string file_bytes(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + header + data;
}

/// A header of one tensor "a" of 2 floats, with one part replaced.
std::string header_of(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

TEST_CASE("safetensors: what is saved loads again, every dtype, with metadata") {
  const TemporaryFolder folder;
  TensorMap tensors;
  for (const at::ScalarType dtype :
       {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kByte}) {
    tensors[std::string("t.") + c10::toString(dtype)] = at::randn({3, 5}).mul(50).abs().to(dtype);
  }
  tensors["flags"] = at::randn({7}).gt(0);
  tensors["scalar"] = at::tensor(2.5);
  tensors["empty"] = at::empty({0, 4});
  tensors["transposed"] = at::randn({4, 3}).t();
  save_safetensors(folder / "a.safetensors", tensors, {{"format", "pt"}});

  std::map<std::string, std::string> metadata;
  const TensorMap loaded = load_safetensors(folder / "a.safetensors", &metadata);
  CHECK(metadata == std::map<std::string, std::string>{{"format", "pt"}});
  REQUIRE(loaded.size() == tensors.size());
  for (const auto& [name, tensor] : tensors) {
    INFO(name);
    REQUIRE(loaded.contains(name));
    CHECK(loaded.at(name).scalar_type() == tensor.scalar_type());
    CHECK(at::equal(loaded.at(name), tensor));
  }
  uint64_t header_size = 0;
  std::memcpy(&header_size, read_text(folder / "a.safetensors").data(), sizeof(header_size));
  CHECK(header_size % 8 == 0);
}

TEST_CASE("safetensors: writing to a loaded tensor leaves the file alone, and tensors outlive the map") {
  const TemporaryFolder folder;
  save_safetensors(folder / "a.safetensors", {{"a", at::tensor({1.0F, 2.0F})}});
  at::Tensor a = load_safetensors(folder / "a.safetensors").at("a");
  a.add_(1);
  CHECK(at::equal(a, at::tensor({2.0F, 3.0F})));
  CHECK(at::equal(load_safetensors(folder / "a.safetensors").at("a"), at::tensor({1.0F, 2.0F})));
}

TEST_CASE("safetensors: data that is not aligned to its elements") {
  const TemporaryFolder folder;
  const float values[] = {1.5F, -2.0F};
  const std::string data(reinterpret_cast<const char*>(values), sizeof(values));
  for (int spaces = 0; spaces < 4; ++spaces) {
    write_text(folder / "a.safetensors",
               file_bytes(header_of("\"F32\"", "[2]", "[0,8]") + std::string(spaces, ' '), data));
    CHECK(at::equal(load_safetensors(folder / "a.safetensors").at("a"), at::tensor({1.5F, -2.0F})));
  }
}

TEST_CASE("safetensors: a bool that is neither 0 nor 1 counts as true") {
  const TemporaryFolder folder;
  write_text(folder / "a.safetensors",
             file_bytes(header_of("\"BOOL\"", "[3]", "[0,3]"), std::string("\x00\x01\x7f", 3)));
  CHECK(at::equal(load_safetensors(folder / "a.safetensors").at("a"), at::tensor({0, 1, 1}).to(at::kBool)));
}

TEST_CASE("safetensors: malformed files are refused by name") {
  const TemporaryFolder folder;
  const auto refused = [&](const std::string& content, const std::string& message) {
    INFO(content.substr(0, 200));
    write_text(folder / "bad.safetensors", content);
    CHECK_THROWS_WITH(load_safetensors(folder / "bad.safetensors"),
                      ContainsSubstring("bad.safetensors") && ContainsSubstring(message) && !ContainsSubstring("\n"));
    CHECK_THROWS_AS(load_safetensors(folder / "bad.safetensors"), Error);
  };
  const std::string eight(8, '\0');
  SECTION("the file") {
    CHECK_THROWS_WITH(load_safetensors(folder / "absent.safetensors"),
                      ContainsSubstring("absent.safetensors: cannot open"));
    CHECK_THROWS_WITH(load_safetensors(folder.path()), ContainsSubstring("expected a regular file"));
    refused("", "at least 8 bytes");
    refused("1234567", "at least 8 bytes");
    refused(std::string(8, '\xff'), "ask for a header of 18446744073709551615 bytes");
    refused(file_bytes("{}", "").substr(0, 9), "ask for a header of 2 bytes");
    refused(file_bytes("{}", "x"), "the header describes 0 bytes of data, the file has 1");
  }
  SECTION("the JSON") {
    refused(file_bytes("", ""), "not valid JSON");
    refused(file_bytes("{\"a\":", ""), "not valid JSON");
    refused(file_bytes("{} {}", ""), "not valid JSON");
    refused(file_bytes(std::string("{\"a\0\":1}", 8), ""), "not valid JSON");
    refused(file_bytes("{\"\xff\xfe\":1}", ""), "not valid JSON");
    refused(file_bytes("[]", ""), "expected a JSON object");
    refused(file_bytes("3", ""), "expected a JSON object");
    refused(file_bytes("{\"a\":1e999}", ""), "number out of range");
    refused(file_bytes(std::string(200000, '['), ""), "nested deeper than 32 levels");
    std::string nested;
    for (int i = 0; i < 50000; ++i) nested += "{\"a\":";
    refused(file_bytes(nested, ""), "nested deeper than 32 levels");
    refused(file_bytes("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F64\"}}", ""), "key \"dtype\" stands there twice");
    refused(file_bytes("{\"a\\n\":1,\"a\\n\":1}", ""), "key \"a\\n\" stands there twice");
  }
  SECTION("one tensor") {
    for (const char* value : {"1", "null", "[]", "{}", "\"F32\""}) {
      refused(file_bytes(std::string("{\"a\":") + value + "}", ""), "tensor \"a\" has no \"dtype\"");
    }
    refused(file_bytes(R"({"a":{"dtype":"F32"}})", ""), "has no \"shape\"");
    refused(file_bytes(R"({"a":{"dtype":"F32","shape":[2]}})", eight), "has no \"data_offsets\"");
    refused(file_bytes(header_of("\"F8_E4M3\"", "[8]", "[0,8]"), eight), "has dtype \"F8_E4M3\"; supported are");
    refused(file_bytes(header_of("7", "[8]", "[0,8]"), eight), "has dtype \"7\"");
    for (const char* shape : {"2", "{}", "\"2\"", "[[2]]", "[-2]", "[2.0]", "[\"2\"]", "[null]",
                              "[18446744073709551615]", "[99999999999999999999999]", "[4611686018427387904,4]",
                              "[0,4611686018427387904,8]", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2]"}) {
      refused(file_bytes(header_of("\"F32\"", shape, "[0,8]"), eight), "tensor \"a\" has a \"shape\"");
    }
    for (const char* offsets :
         {"8", "[]", "[8]", "[0,8,8]", "[8,0]", "[-8,0]", "[0,8.0]", "[\"0\",\"8\"]", "[0,1e30]"}) {
      refused(file_bytes(header_of("\"F32\"", "[2]", offsets), eight), "tensor \"a\" has \"data_offsets\"");
    }
    refused(file_bytes(header_of("\"F32\"", "[3]", "[0,8]"), eight), "takes 8 bytes, but its shape and dtype need 12");
    refused(file_bytes(header_of("\"F64\"", "[2]", "[0,8]"), eight), "takes 8 bytes, but its shape and dtype need 16");
    refused(file_bytes(header_of("\"F32\"", "[2]", "[0,8]"), eight.substr(1)),
            "describes 8 bytes of data, the file has 7");
    refused(file_bytes(header_of("\"F32\"", "[2]", "[4,12]"), eight + eight), "a hole between tensors");
  }
  SECTION("several tensors") {
    const auto two = [](const std::string& first, const std::string& second) {
      return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
             R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
    };
    refused(file_bytes(two("[0,4]", "[0,4]"), "1234"), "tensors overlap");
    refused(file_bytes(two("[0,4]", "[2,6]"), "123456"), "tensors overlap");
    refused(file_bytes(two("[0,4]", "[5,9]"), "123456789"), "a hole between tensors");
    refused(file_bytes(two("[0,4]", "[4,8]"), "123456789"), "describes 8 bytes of data, the file has 9");
    refused(file_bytes(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}})", ""),
            "key \"a\" stands there twice");
  }
  SECTION("metadata") {
    refused(file_bytes(R"({"__metadata__":[]})", ""), "\"__metadata__\" is not an object");
    refused(file_bytes(R"({"__metadata__":{"a":1}})", ""), "something other than text");
  }
}

TEST_CASE("safetensors: no random damage crashes the reader") {
  const TemporaryFolder folder;
  save_safetensors(folder / "a.safetensors", {{"a", at::randn({3})}, {"b", at::randn({2, 2}).to(at::kBFloat16)}});
  const std::string good = read_text(folder / "a.safetensors");
  std::mt19937 random(7);
  for (int trial = 0; trial < 2000; ++trial) {
    std::string bad = good;
    for (unsigned i = random() % 4 + 1; i > 0; --i) bad[random() % bad.size()] = static_cast<char>(random());
    if (trial % 4 == 0) bad.resize(random() % bad.size());
    write_text(folder / "a.safetensors", bad);
    try {
      for (const auto& [name, tensor] : load_safetensors(folder / "a.safetensors")) tensor.sum();
    } catch (const Error&) {
    }
  }
}

TEST_CASE("safetensors: shards of an index") {
  const TemporaryFolder folder;
  const at::Tensor a = at::randn({2, 3}), b = at::randn({4});
  save_safetensors(folder / "model-1.safetensors", {{"a", a}});
  save_safetensors(folder / "model-2.safetensors", {{"b", b}});
  const auto index = [&](const std::string& map) {
    write_text(folder / "model.safetensors.index.json", R"({"metadata":{"total_size":40},"weight_map":)" + map + "}");
  };
  const auto refused = [&](const std::string& message) {
    CHECK_THROWS_WITH(load_sharded_safetensors(folder.path()), ContainsSubstring(message));
  };
  refused("has neither model.safetensors nor model.safetensors.index.json");
  index(R"({"a":"model-1.safetensors","b":"model-2.safetensors"})");
  const TensorMap loaded = load_sharded_safetensors(folder.path());
  CHECK(loaded.size() == 2);
  CHECK(at::equal(loaded.at("a"), a));
  CHECK(at::equal(loaded.at("b"), b));

  index(R"({"a":"model-1.safetensors","b":"model-3.safetensors"})");
  refused("names the shard \"model-3.safetensors\", which is not there");
  // What the index says beyond the shards' names is not asked: transformers does not either.
  for (const char* map : {R"({"a":"model-1.safetensors","b":"model-2.safetensors","c":"model-2.safetensors"})",
                          R"({"a":"model-2.safetensors","b":"model-1.safetensors"})",
                          R"({"a":"model-1.safetensors","c":"./model-2.safetensors"})"}) {
    CAPTURE(map);
    index(map);
    CHECK(load_sharded_safetensors(folder.path()).size() == 2);
  }
  std::filesystem::create_directory(folder / "part");
  save_safetensors(folder.path() / "part" / "x.safetensors", {{"c", a}});
  index(R"({"a":"model-1.safetensors","c":"part/x.safetensors"})");
  CHECK(load_sharded_safetensors(folder.path()).count("c") == 1);
  index(R"({"a":"model-1.safetensors","a":"model-2.safetensors"})");
  refused("key \"a\" stands there twice");
  index(R"({"a":"../model-1.safetensors"})");
  refused("gives tensor \"a\" the shard \"../model-1.safetensors\", which is not a file below this folder");
  for (const char* bad : {"7", "\"\"", "\"/x.safetensors\"", "\"part/\"", "\"part/../../x\"", "null"}) {
    index(std::string("{\"a\":") + bad + "}");
    refused("not a file below this folder");
  }
  index("[]");
  refused("has no object \"weight_map\"");
  save_safetensors(folder / "model-2.safetensors", {{"a", b}, {"b", b}});
  index(R"({"a":"model-1.safetensors","b":"model-2.safetensors"})");
  refused("tensor \"a\" is in another shard");
}

TEST_CASE("safetensors: what cannot be written") {
  const TemporaryFolder folder;
  CHECK_THROWS_WITH(save_safetensors(folder / "a.safetensors", {{"a", at::tensor({1, 2}).to(at::kShort)}}),
                    ContainsSubstring("cannot store tensor \"a\" of dtype Short"));
  CHECK_THROWS_WITH(save_safetensors(folder.path() / "no" / "a.safetensors", {{"a", at::randn({1})}}),
                    ContainsSubstring("a.safetensors"));
}

}  // namespace
}  // namespace prulong
