// SPDX-License-Identifier: MIT
#include "trainer/data/digest.h"

#include <openssl/evp.h>
#include <xxhash.h>

#include <array>
#include <map>
#include <string_view>

namespace prulong {
namespace {

std::string to_hex(std::span<const unsigned char> bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

/// OpenSSL's name of one of hashlib's algorithms.
const char* openssl_name(const std::string& algorithm) {
  static const std::map<std::string, const char*> kNames = {
      {"md5", "MD5"},           {"sha1", "SHA1"},         {"sha224", "SHA224"},      {"sha256", "SHA256"},
      {"sha384", "SHA384"},     {"sha512", "SHA512"},     {"sha3_224", "SHA3-224"},  {"sha3_256", "SHA3-256"},
      {"sha3_384", "SHA3-384"}, {"sha3_512", "SHA3-512"}, {"blake2b", "BLAKE2b512"}, {"blake2s", "BLAKE2s256"}};
  const auto found = kNames.find(algorithm);
  return found == kNames.end() ? nullptr : found->second;
}

}  // namespace

std::optional<std::string> digest(const std::string& algorithm, std::span<const std::byte> bytes) {
  if (algorithm == "xxh32") {
    XXH32_canonical_t canonical;
    XXH32_canonicalFromHash(&canonical, XXH32(bytes.data(), bytes.size(), 0));
    return to_hex(canonical.digest);
  }
  if (algorithm == "xxh64" || algorithm == "xxh3_64") {
    XXH64_canonical_t canonical;
    XXH64_canonicalFromHash(&canonical, algorithm == "xxh64" ? XXH64(bytes.data(), bytes.size(), 0)
                                                             : XXH3_64bits(bytes.data(), bytes.size()));
    return to_hex(canonical.digest);
  }
  if (algorithm == "xxh128" || algorithm == "xxh3_128") {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
    return to_hex(canonical.digest);
  }
  const char* const name = openssl_name(algorithm);
  const EVP_MD* const method = name == nullptr ? nullptr : EVP_get_digestbyname(name);
  if (method == nullptr) return std::nullopt;
  std::array<unsigned char, EVP_MAX_MD_SIZE> result{};
  unsigned int length = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), result.data(), &length, method, nullptr) != 1) return std::nullopt;
  return to_hex({result.data(), length});
}

}  // namespace prulong
