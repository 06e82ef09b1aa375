#include "base/hash.h"

#include <openssl/evp.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "base/file.h"

namespace roundhouse {
namespace {

std::string hex_of(std::span<const unsigned char> digest) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const unsigned byte : digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15u];
  }
  return text;
}

std::string hex_of(const XXH128_hash_t& hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  return hex_of(std::span<const unsigned char>(canonical.digest));
}

struct FreeXxh3 {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};
struct FreeDigest {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};

}  // namespace

struct Xxh3::State {
  std::unique_ptr<XXH3_state_t, FreeXxh3> xxh{XXH3_createState()};
};

Xxh3::Xxh3() : state_(std::make_unique<State>()) {
  if (!state_->xxh || XXH3_128bits_reset(state_->xxh.get()) != XXH_OK) {
    throw Error("cannot start an XXH3 hash");
  }
}

Xxh3::~Xxh3() = default;

void Xxh3::update(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  if (XXH3_128bits_update(state_->xxh.get(), bytes.data(), bytes.size()) != XXH_OK) {
    throw Error("cannot go on with an XXH3 hash");
  }
}

std::string Xxh3::hex() const { return hex_of(XXH3_128bits_digest(state_->xxh.get())); }

std::string xxh3_hex(std::string_view text) {
  return hex_of(XXH3_128bits(text.data(), text.size()));
}

std::string xxh3_hex_of_file(const std::filesystem::path& path) {
  InputFile file(path);
  Xxh3 hash;
  std::vector<std::byte> part(std::size_t{4} << 20);
  while (const std::size_t bytes = file.read(part)) hash.update(std::span(part).first(bytes));
  return hash.hex();
}

std::string sha256_hex_of_file(const std::filesystem::path& path) {
  InputFile file(path);
  const std::unique_ptr<EVP_MD_CTX, FreeDigest> context(EVP_MD_CTX_new());
  bool ok = context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  std::vector<std::byte> part(std::size_t{4} << 20);
  while (const std::size_t bytes = ok ? file.read(part) : 0) {
    ok = EVP_DigestUpdate(context.get(), part.data(), bytes) == 1;
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  ok = ok && EVP_DigestFinal_ex(context.get(), digest.data(), &size) == 1;
  if (!ok) throw Error("cannot compute the SHA-256 of " + path.string());
  return hex_of(std::span<const unsigned char>(digest).first(size));
}

}  // namespace roundhouse
