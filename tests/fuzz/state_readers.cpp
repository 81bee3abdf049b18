// SPDX-License-Identifier: MIT
// Weights and checkpoints, up to where torch comes in.

#include <span>
#include <stdexcept>

#include "common/hash.h"
#include "model/safetensors_header.h"
#include "tests/fuzz/reader.h"
#include "tests/trainer/data/data_files.h"
#include "trainer/checkpoint_manifest.h"

namespace prulong::fuzz {
namespace {

namespace fs = std::filesystem;

std::string safetensors(const std::string& header, size_t data_bytes) {
  return test::bytes_of(std::vector<uint64_t>{header.size()}) + header + std::string(data_bytes, '\x11');
}

const std::string kFirst =
    safetensors(R"({"__metadata__":{"format":"pt"},"a.weight":{"dtype":"BF16","shape":[3,4],"data_offsets":[0,24]},)"
                R"("a.bias":{"dtype":"F32","shape":[4],"data_offsets":[24,40]}}   )",
                40);
const std::string kSecond = safetensors(
    R"({"b.weight":{"dtype":"I64","shape":[2,1,2],"data_offsets":[0,32]},"empty":{"dtype":"U8","shape":[0,7],)"
    R"("data_offsets":[32,32]},"mask":{"dtype":"BOOL","shape":[],"data_offsets":[32,33]}})",
    33);
const std::string kIndex =
    R"({"metadata":{"total_size":73},"weight_map":{"a.weight":"model-1.safetensors","a.bias":"model-1.safetensors",)"
    R"("b.weight":"model-2.safetensors","empty":"model-2.safetensors","mask":"model-2.safetensors"}})";
const std::string kState = safetensors(
    R"({"__metadata__":{"state":"{\"identity\":{\"data.train\":\"tokens:1\",\"model\":\"f00d\"},\"sequences\":4,)"
    R"(\"step\":2}"},"log_alpha":{"dtype":"F64","shape":[6],"data_offsets":[0,48]}})",
    48);

/// Reads header and every tensor's bytes; from memory of its exact size, so that a byte too far is seen.
SafetensorsHeader read_file(const fs::path& file) {
  const std::string content = test::read_text(file);
  const std::vector<char> exact(content.begin(), content.end());
  const auto bytes = std::as_bytes(std::span(exact));
  SafetensorsHeader header = read_safetensors_header(bytes, file);
  volatile int sum = 0;  // so that nothing is left out
  for (const StoredTensor& tensor : header.tensors) {
    uint64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= static_cast<uint64_t>(size);
    if (elements * kStoredTypes[tensor.type].bytes != tensor.end - tensor.begin) throw std::logic_error("sizes differ");
    for (uint64_t i = tensor.begin; i < tensor.end; ++i) sum = sum ^ static_cast<int>(exact[header.data_start + i]);
  }
  return header;
}

Reader weights() {
  return {"safetensors",
          {{"model-1.safetensors", kFirst}, {"model-2.safetensors", kSecond}, {"index.json", kIndex}},
          [](const fs::path& folder) {
            read_weight_map(folder / "index.json");
            for (const char* const name : {"model-1.safetensors", "model-2.safetensors"}) read_file(folder / name);
          }};
}

void read_state(const fs::path& data) { head_of(read_file(data).metadata, data); }

Reader checkpoint() {
  const test::TemporaryFolder folder;
  const fs::path data = folder.path() / "step-00000002.safetensors";
  test::write_text(data, kState);
  write_manifest(data, 2, hash64(kState));
  const std::string manifest = test::read_text(folder.path() / "step-00000002.json");
  return {"checkpoint",
          {{"step-00000002.json", manifest}, {"step-00000002.safetensors", kState}},
          [](const fs::path& path) { read_state(verified_data(path / "step-00000002.json")); }};
}

/// As if the damage had a matching checksum.
Reader training_state() {
  return {"training state", {{"state.safetensors", kState}}, [](const fs::path& folder) {
            read_state(folder / "state.safetensors");
          }};
}

}  // namespace

std::vector<Reader> state_readers() { return {weights(), checkpoint(), training_state()}; }

}  // namespace prulong::fuzz
