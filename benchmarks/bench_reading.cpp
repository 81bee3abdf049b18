// SPDX-License-Identifier: MIT
// bench_reading TYPE PATH SEQ_LEN SEQUENCES: opens a source (tokens, mds, npy, or raw uint16) and reads its first
// sequences in order; prints seconds of processor time (other programs do not count) and tokens as JSON.
// benchmarks/bench_data.py runs it.
#include <cstdio>
#include <ctime>
#include <limits>
#include <string>

#include "common/error.h"
#include "trainer/data/flat_files.h"
#include "trainer/data/mds.h"
#include "trainer/data/token_folder.h"

namespace {

using namespace prulong;

constexpr int64_t kVocab = std::numeric_limits<int32_t>::max();

std::unique_ptr<Source> open(const std::string& type, const std::string& path, int64_t seq_len) {
  if (type == "tokens") return open_token_folder(path, seq_len, 1);
  if (type == "mds") return open_mds({path, {}, kVocab}, seq_len, 1);
  if (type == "npy") return open_flat_files({path, {}, -1, kVocab}, seq_len, 1);
  if (type == "raw") return open_flat_files({path, IntegerType::kUint16, -1, kVocab}, seq_len, 1);
  throw ConfigError("type: tokens, mds, npy or raw expected, " + type + " found");
}

double seconds_since(std::clock_t start) { return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC; }

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 5) throw ConfigError("bench_reading: TYPE PATH SEQ_LEN SEQUENCES expected");
  std::clock_t start = std::clock();
  const auto source = open(argv[1], argv[2], std::stoll(argv[3]));
  const double open_seconds = seconds_since(start);
  start = std::clock();
  int64_t tokens = 0, sum = 0;
  for (int64_t n = 0; n < std::stoll(argv[4]); ++n) {
    const Sequence sequence = source->sequence(n);
    tokens += std::ssize(sequence.tokens);
    sum += sequence.tokens.back();
  }
  std::printf("{\"open_s\": %.6f, \"read_s\": %.6f, \"tokens\": %lld, \"checksum\": %lld}\n", open_seconds,
              seconds_since(start), static_cast<long long>(tokens), static_cast<long long>(sum));
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
