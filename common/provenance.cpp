// SPDX-License-Identifier: MIT
#include "common/provenance.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string_view>

#include "common/error.h"
#include "common/hash.h"
#include "common/mapped_file.h"
#include "prulong_commit.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;

constexpr size_t kSamples = 64;
constexpr size_t kSampleBytes = 4096;

/// Lines, each of which counts, in order.
class Fingerprint {
 public:
  void add(std::string_view bytes) { text_ += hexadecimal(hash64(bytes)); }
  std::string text() const { return hexadecimal(hash64(text_)); }

 private:
  std::string text_;
};

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

/// The first bytes of a safetensors file: the length of its header, and the header.
std::string_view header_of(std::string_view file) {
  uint64_t length = 0;
  if (file.size() < sizeof length) return file;
  std::memcpy(&length, file.data(), sizeof length);
  return file.substr(0, sizeof length + std::min<uint64_t>(length, file.size() - sizeof length));
}

void add_weights(const fs::path& path, Fingerprint& fingerprint) {
  const MappedFile file(path);
  const std::string_view bytes = text_of(file), header = header_of(bytes), data = bytes.substr(header.size());
  fingerprint.add(path.filename().string());
  fingerprint.add(std::to_string(bytes.size()));
  fingerprint.add(header);
  if (data.size() <= kSamples * kSampleBytes) return fingerprint.add(data);
  for (size_t i = 0; i < kSamples; ++i) {  // evenly, the first and the last bytes among them
    const size_t room = data.size() - kSampleBytes;
    fingerprint.add(data.substr(room / (kSamples - 1) * i + room % (kSamples - 1) * i / (kSamples - 1), kSampleBytes));
  }
}

}  // namespace

std::map<std::string, std::string> versions() {
  return {{"prulong", PRULONG_VERSION},
          {"commit", PRULONG_COMMIT},
          {"torch", PRULONG_TORCH_VERSION},
          {"cuda", PRULONG_CUDA_VERSION},
          {"compiler", __VERSION__}};
}

std::string model_fingerprint(const fs::path& model) {
  std::set<fs::path> weights;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(model, error)) {
    if (entry.path().extension() == ".safetensors") weights.insert(entry.path());
  }
  if (error)
    throw Error(model.string() + ": cannot be listed: " + error.message() + "; check the folder's permissions");
  Fingerprint fingerprint;
  fingerprint.add(text_of(MappedFile(model / "config.json")));
  for (const fs::path& path : weights) add_weights(path, fingerprint);
  return fingerprint.text();
}

std::string mask_fingerprint(const std::vector<uint8_t>& mask) {
  return "mask:" + hexadecimal(hash64({reinterpret_cast<const char*>(mask.data()), mask.size()}));
}

std::string fingerprint(const std::map<std::string, std::string>& values) {
  Fingerprint fingerprint;
  for (const auto& [key, value] : values) {
    fingerprint.add(key);
    fingerprint.add(value);
  }
  return fingerprint.text();
}

}  // namespace prulong
