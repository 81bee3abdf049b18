// SPDX-License-Identifier: MIT
// fuzz_readers [COUNT [SEED [READER [FIRST]]]]: gives every reader COUNT damaged inputs (default 2000). Each must be
// read or refused with a one-line Error; this program is built with AddressSanitizer and UndefinedBehaviorSanitizer,
// which stop it at anything else. A failure names SEED, READER and input: "fuzz_readers 1 SEED READER INPUT" repeats
// it.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>

#include "common/error.h"
#include "common/hash.h"
#include "tests/fuzz/mutate.h"
#include "tests/fuzz/reader.h"
#include "tests/trainer/data/data_files.h"

extern "C" void __sanitizer_set_death_callback(void (*callback)());
extern "C" const char* __asan_default_options() { return "max_allocation_size_mb=2048"; }

namespace {

using namespace prulong;
using fuzz::Reader;
namespace fs = std::filesystem;

constexpr unsigned kSecondsPerInput = 20;

char current[256] = "";  // which input is read

void tell_input() {
  std::fputs(current, stderr);
  std::fputc('\n', stderr);
}

void give_up(int) {
  std::fputs("no end in sight: ", stderr);
  tell_input();
  ::_exit(1);
}

/// Whether a message stays on its line and does nothing to a terminal: no control character, ASCII's or (in UTF-8)
/// Unicode's.
bool readable(const std::string& what) {
  for (size_t i = 0; i + 1 < what.size(); ++i) {
    if (what[i] == '\xc2' && static_cast<unsigned char>(what[i + 1]) < 0xA0) return false;
  }
  return !what.empty() && std::ranges::none_of(what, [](char c) { return (c >= 0 && c < ' ') || c == '\x7f'; });
}

/// What is wrong with the outcome of reading, or nothing; counts refusals.
std::string read_once(const Reader& reader, const fs::path& folder, int64_t& refused) {
  try {
    reader.read(folder);
  } catch (const Error& error) {
    ++refused;
    const std::string what = error.what();
    if (!readable(what)) return "a message of more than one line: " + what;
  } catch (const std::exception& error) {
    return std::string("an exception that is no Error: ") + error.what();
  }
  return "";
}

/// @return whether all went well.
bool fuzz_reader(const Reader& reader, int64_t count, uint64_t seed, int64_t first) {
  const test::TemporaryFolder temporary;
  const fs::path folder = temporary.path() / "data";
  for (const auto& [name, content] : reader.files) {
    fs::create_directories((folder / name).parent_path());
    test::write_text(folder / name, content);
  }
  int64_t refused = 0;
  std::snprintf(current, sizeof current, "reader: %s, the undamaged input", reader.name.c_str());
  reader.read(folder);
  for (int64_t input = first; input < first + count; ++input) {
    std::snprintf(current, sizeof current, "repeat with: fuzz_readers 1 %llu '%s' %lld",
                  static_cast<unsigned long long>(seed), reader.name.c_str(), static_cast<long long>(input));
    Random random({seed, hash64(reader.name), static_cast<uint64_t>(input)});
    const auto file = std::next(reader.files.begin(), static_cast<std::ptrdiff_t>(random.below(reader.files.size())));
    const std::string damaged = fuzz::mutate(file->second, random);
    test::write_text(folder / file->first, damaged);
    ::alarm(kSecondsPerInput);
    const std::string wrong = read_once(reader, folder, refused);
    ::alarm(0);
    if (!wrong.empty()) {
      std::fprintf(stderr, "%s\n%s\n", wrong.c_str(), current);
      return false;
    }
    test::write_text(folder / file->first, file->second);
  }
  std::printf("%-20s %lld inputs, %lld refused\n", reader.name.c_str(), static_cast<long long>(count),
              static_cast<long long>(refused));
  std::fflush(stdout);
  return count == 1 ||
         (refused > 0 && refused < count);  // else the damage does not reach the reader, or always at once
}

}  // namespace

int main(int argc, char** argv) try {
  const int64_t count = argc > 1 ? std::stoll(argv[1]) : 2000;
  const uint64_t seed = argc > 2 ? std::stoull(argv[2]) : 1;
  const std::string wanted = argc > 3 ? argv[3] : "";
  const int64_t first = argc > 4 ? std::stoll(argv[4]) : 0;
  ::signal(SIGALRM, give_up);
  __sanitizer_set_death_callback(tell_input);
  std::vector<Reader> readers = fuzz::data_readers(PRULONG_TEST_SOURCE);
  std::ranges::move(fuzz::config_readers(PRULONG_TEST_SOURCE), std::back_inserter(readers));
  std::ranges::move(fuzz::state_readers(), std::back_inserter(readers));
  int64_t tested = 0;
  for (const Reader& reader : readers) {
    if (!wanted.empty() && reader.name != wanted) continue;
    if (!fuzz_reader(reader, count, seed, first)) return 1;
    ++tested;
  }
  if (tested == 0) throw Error("no reader is called " + wanted);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  tell_input();
  return 1;
}
