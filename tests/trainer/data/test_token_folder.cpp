// SPDX-License-Identifier: MIT
#include "trainer/data/token_folder.h"

#include <algorithm>
#include <future>

#include "common/error.h"
#include "tests/support/catch.h"
#include "tests/trainer/data/data_files.h"

namespace prulong {
namespace {

using namespace test;

using Documents = std::vector<std::vector<uint16_t>>;

/// Documents of growing length (an empty one among them) whose tokens are all different.
Documents make_documents(size_t count) {
  Documents documents(count);
  uint16_t next = 0;
  for (size_t i = 0; i < count; ++i) {
    for (size_t k = 0; k < i % 7; ++k) documents[i].push_back(next++);
  }
  return documents;
}

size_t count_tokens(const Documents& documents) {
  size_t count = 0;
  for (const auto& document : documents) count += document.size();
  return count;
}

/// The first `count` tokens of the stream.
std::vector<int32_t> read_stream(const Source& source, size_t count) {
  std::vector<int32_t> stream;
  for (int64_t n = 0; stream.size() < count; ++n) {
    const Sequence sequence = source.sequence(n);
    stream.insert(stream.end(), sequence.tokens.begin(), sequence.tokens.end());
  }
  stream.resize(count);
  return stream;
}

TEST_CASE("every epoch holds each token once, in another order of whole documents") {
  const TemporaryFolder folder;
  const Documents documents = make_documents(50);
  const size_t total = count_tokens(documents);
  write_token_folder(folder.path(), documents, 1000);
  for (const int64_t seq_len : {1, 5, 64, 1000}) {
    const auto source = open_token_folder(folder.path(), seq_len, 3);
    const std::vector<int32_t> stream = read_stream(*source, 3 * total);
    std::vector<std::vector<int32_t>> epochs;
    for (size_t e = 0; e < 3; ++e) {
      std::vector<int32_t> epoch(stream.begin() + e * total, stream.begin() + (e + 1) * total);
      epochs.push_back(epoch);
      // A document's tokens are consecutive numbers: wherever it begins, the rest follows.
      for (const auto& document : documents) {
        if (document.empty()) continue;
        const auto at = std::find(epoch.begin(), epoch.end(), document.front());
        REQUIRE(epoch.end() - at >= std::ssize(document));
        CHECK(std::equal(document.begin(), document.end(), at));
      }
      std::sort(epoch.begin(), epoch.end());
      for (size_t i = 0; i < total; ++i) CHECK(epoch[i] == static_cast<int32_t>(i));
    }
    CHECK(epochs[0] != epochs[1]);
    CHECK(epochs[1] != epochs[2]);
  }
}

TEST_CASE("a sequence's boundaries are those of its documents") {
  const TemporaryFolder folder;
  const Documents documents = make_documents(40);
  write_token_folder(folder.path(), documents, 1000);
  std::vector<int32_t> document_of(count_tokens(documents));
  for (size_t d = 0; d < documents.size(); ++d) {
    for (const uint16_t token : documents[d]) document_of[token] = static_cast<int32_t>(d);
  }
  const auto source = open_token_folder(folder.path(), 13, 3);
  CHECK(source->vocab_size() == 1000);
  for (int64_t n = 0; n < 40; ++n) {
    const Sequence sequence = source->sequence(n);
    CHECK(sequence.tokens.size() == 13);
    CHECK(sequence.is_answer.empty());
    std::vector<int32_t> expected = {0};
    for (size_t i = 1; i < 13; ++i) {
      const bool follows = sequence.tokens[i] == sequence.tokens[i - 1] + 1;  // else the same document, one epoch later
      if (!follows || document_of[sequence.tokens[i]] != document_of[sequence.tokens[i - 1]]) {
        expected.push_back(static_cast<int32_t>(i));
      }
    }
    expected.push_back(13);
    CHECK(sequence.cu_seqlens == expected);
  }
}

TEST_CASE("what occurs is held against the model's vocabulary, not what the tokenizer knows") {
  const TemporaryFolder folder;
  const auto refused = [&](int64_t vocab_size) {
    CHECK_THROWS_WITH(open_token_folder(folder.path(), 5, 1, vocab_size),
                      ContainsSubstring(folder.path().string() +
                                        ": token 5 occurs, made for a vocabulary of 9 tokens, the model has " +
                                        std::to_string(vocab_size)));
  };
  for (const int recorded : {5, -1}) {  // as written today, and before
    INFO(recorded);
    write_token_folder(folder.path(), {{1, 2, 5}, {4, 0}}, 9, recorded);
    refused(5);
    refused(1);
    for (const int64_t vocab_size : {6, 8, 9, 10, 1 << 20}) {
      const auto source = open_token_folder(folder.path(), 5, 1, vocab_size);
      CHECK(source->sequence(0).tokens.size() == 5);
      CHECK(source->vocab_size() == std::min<int64_t>(9, vocab_size));
    }
  }
  // A record that is wrong does not reach the model.
  write_token_folder(folder.path(), {{1, 2, 5}, {4, 0}}, 9, 4);
  CHECK_THROWS_WITH(open_token_folder(folder.path(), 5, 1, 5)->sequence(0),
                    ContainsSubstring("tokens.npy: token 5 at position 2 is beyond the vocabulary of 5 in the model"));
}

TEST_CASE("the stream depends on folder, length and seed alone, whatever is read in between and by whom") {
  const TemporaryFolder folder;
  write_token_folder(folder.path(), make_documents(50), 1000);
  const auto source = open_token_folder(folder.path(), 16, 3);
  std::vector<Sequence> expected;
  for (int64_t n = 0; n < 100; ++n) expected.push_back(source->sequence(n));

  const auto shared = open_token_folder(folder.path(), 16, 3);
  const auto read = [&](int64_t step) {  // forwards or backwards: the readers fight for the cached epochs
    int64_t wrong = 0;
    for (int64_t i = 0; i < 5000; ++i) {
      const int64_t n = step > 0 ? i % 100 : 99 - i % 100;
      const Sequence sequence = shared->sequence(n);
      wrong += sequence.tokens != expected[n].tokens || sequence.cu_seqlens != expected[n].cu_seqlens;
    }
    return wrong;
  };
  auto forwards = std::async(std::launch::async, read, 1);
  auto backwards = std::async(std::launch::async, read, -1);
  CHECK(forwards.get() == 0);
  CHECK(backwards.get() == 0);

  CHECK(open_token_folder(folder.path(), 16, 4)->sequence(0).tokens != expected[0].tokens);
  CHECK(source->fingerprint() == shared->fingerprint());
  CHECK(source->fingerprint() != open_token_folder(folder.path(), 16, 4)->fingerprint());
  CHECK(source->fingerprint() != open_token_folder(folder.path(), 17, 3)->fingerprint());
  std::string bytes = read_text(folder.path() / "tokens.npy");
  bytes.back() ^= 1;
  write_text(folder.path() / "tokens.npy", bytes);  // data.json stays as it is
  CHECK(source->fingerprint() != open_token_folder(folder.path(), 16, 3)->fingerprint());
  write_token_folder(folder.path(), make_documents(49), 1000);
  CHECK(source->fingerprint() != open_token_folder(folder.path(), 16, 3)->fingerprint());
}

TEST_CASE("the order of documents never changes between versions") {
  const TemporaryFolder folder;
  write_token_folder(folder.path(), {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}}, 8);
  CHECK(open_token_folder(folder.path(), 8, 42)->sequence(0).tokens == std::vector<int32_t>{4, 7, 3, 0, 2, 6, 5, 1});
}

TEST_CASE("damaged token folders are refused by file and reason") {
  const TemporaryFolder temporary;
  const auto folder = temporary.path() / "tokens";
  const auto open = [&] { return open_token_folder(folder, 4, 1); };
  CHECK_THROWS_WITH(open(), ContainsSubstring("tokens: no such folder"));
  std::filesystem::create_directories(folder);
  CHECK_THROWS_WITH(open(), ContainsSubstring("tokens: this folder has no data.json; write it with"));

  write_token_folder(folder, {{1, 2, 3}, {4, 5}}, 6);
  CHECK_NOTHROW(open());
  CHECK_THROWS_WITH(open_token_folder(folder, 0, 1), ContainsSubstring("seq_len: 1 to 2147483647 expected, 0 found"));
  CHECK_THROWS_AS(open_token_folder(folder, int64_t{1} << 31, 1), ConfigError);
  CHECK_THROWS_WITH(open()->sequence(-1), ContainsSubstring("out of range"));
  CHECK_THROWS_WITH(open()->sequence(std::numeric_limits<int64_t>::max()), ContainsSubstring("out of range"));

  SECTION("missing arrays") {
    std::filesystem::remove(folder / "tokens.npy");
    CHECK_THROWS_WITH(open(), ContainsSubstring("tokens.npy: cannot open"));
  }
  SECTION("another number of tokens") {
    write_u16(folder / "tokens.npy", {1, 2, 3, 4});
    CHECK_THROWS_WITH(open(), ContainsSubstring("tokens.npy: 5 tokens expected by data.json, 4 found"));
  }
  SECTION("a truncated file") {
    std::filesystem::resize_file(folder / "tokens.npy", std::filesystem::file_size(folder / "tokens.npy") - 1);
    CHECK_THROWS_WITH(open(), ContainsSubstring("damaged or incomplete"));
  }
  SECTION("wrong types") {
    write_i64(folder / "tokens.npy", {1, 2, 3, 4, 5});
    CHECK_THROWS_WITH(open(), ContainsSubstring("uint16 or uint32 expected, 1-D array of int64 found"));
    write_token_folder(folder, {{1, 2, 3}, {4, 5}}, 6);
    write_u16(folder / "documents.npy", {0, 3, 5});
    CHECK_THROWS_WITH(open(), ContainsSubstring("int64 expected, 1-D array of uint16 found"));
  }
  SECTION("wrong offsets") {
    write_i64(folder / "documents.npy", {0, 3});
    CHECK_THROWS_WITH(open(), ContainsSubstring("documents.npy: 3 offsets expected by data.json, 2 found"));
    write_i64(folder / "documents.npy", {1, 3, 5});
    CHECK_THROWS_WITH(open(), ContainsSubstring("first offset 0 expected, 1 found"));
    write_i64(folder / "documents.npy", {0, 6, 5});
    CHECK_THROWS_WITH(open(), ContainsSubstring("offset 2 is 5, smaller than the one before it"));
    write_i64(folder / "documents.npy", {0, 3, 4});
    CHECK_THROWS_WITH(open(), ContainsSubstring("last offset 5 (the token count) expected, 4 found"));
  }
  SECTION("a token beyond the vocabulary") {
    write_token_folder(folder, {{1, 2, 3}, {4, 5}}, 5);
    CHECK_THROWS_WITH(open()->sequence(0).tokens.size() + open()->sequence(1).tokens.size(),
                      ContainsSubstring("tokens.npy: token 5 at position 4 is beyond the vocabulary of 5"));
  }
  SECTION("a largest token that is none of the vocabulary's") {
    write_token_folder(folder, {{1, 2, 3}, {4, 5}}, 6, 6);
    CHECK_THROWS_WITH(open(), ContainsSubstring("data.json: \"largest_token\" is 6; expected an integer from 0 to 5"));
  }
  SECTION("no tokens") {
    write_token_folder(folder, {{}}, 5);
    CHECK_THROWS_WITH(open(), ContainsSubstring("no tokens"));
  }
  SECTION("a bad data.json") {
    const std::vector<std::pair<std::string, std::string>> cases = {
        {"{", "data.json: not valid JSON at byte"},
        {"[]", "expected a JSON object, found []"},
        {"{}", "\"format\" is missing"},
        {R"({"format": "parquet"})", "\"format\" is \"parquet\"; expected \"prulong-tokens\""},
        {R"({"format": "prulong-tokens", "version": 2})", "\"version\" is 2; expected version 1 of prulong-tokens"},
        {R"({"format": "prulong-tokens", "version": 1})", "\"vocab_size\" is missing"},
        {R"({"format": "prulong-tokens", "version": 1, "vocab_size": "x"})",
         "\"vocab_size\" is \"x\"; expected an integer from 1"},
        {R"({"format": "prulong-tokens", "version": 1, "vocab_size": 18446744073709551615})", "\"vocab_size\" is"},
        {R"({"format": "prulong-tokens", "version": 1, "vocab_size": 6.5})", "\"vocab_size\" is 6.5"},
    };
    for (const auto& [content, message] : cases) {
      write_text(folder / "data.json", content);
      CHECK_THROWS_WITH(open(), ContainsSubstring(message));
    }
  }
}

}  // namespace
}  // namespace prulong
