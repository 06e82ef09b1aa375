#include "pipeline/run/record_seal.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"

namespace roundhouse {
namespace {

constexpr std::string_view kMagic = "roundhouse-record 2";
constexpr std::string_view kEarlierMagic = "roundhouse-record 1\n";  // did not hold the key
constexpr std::string_view kNoIdentity = "none";

std::string hash_of(const Seal& seal, std::span<const std::byte> content) {
  Xxh3 hash;
  const std::string head = seal.head();
  hash.update(std::as_bytes(std::span(head)));
  hash.update(content);
  return hash.hex();
}

// Throws Damage unless the block is exactly what text() gives.
Seal parse_seal(const std::string& block) {
  std::string_view rest = block;
  const auto take = [&rest](std::string_view label) -> std::string {
    const std::size_t end = rest.find('\n');
    if (!rest.starts_with(label) || end == std::string_view::npos) throw Damage{"it has no seal"};
    const std::string value(rest.substr(label.size(), end - label.size()));
    rest.remove_prefix(end + 1);
    return value;
  };
  Seal seal;
  if (block.starts_with(kEarlierMagic)) throw Damage{kEarlierRecord};
  if (block.size() != kSealBytes || !take(kMagic).empty()) throw Damage{"it has no seal"};
  seal.key = take("key ");
  seal.identity = take("identity ");
  const std::string bytes = take("bytes ");
  std::from_chars(bytes.data(), bytes.data() + bytes.size(), seal.bytes);
  seal.hash = take("xxh3-128 ");
  if (seal.text() != block) throw Damage{"its seal is damaged"};
  return seal;
}

// The seal at the front of a file of this many bytes that is to hold this record. Throws Damage.
Seal front_seal(std::span<const std::byte> front, std::uint64_t file_bytes,
                const std::string& key) {
  Seal seal = parse_seal({reinterpret_cast<const char*>(front.data()), front.size()});
  if (file_bytes - front.size() < seal.bytes) throw Damage{"it is cut short"};
  if (file_bytes - front.size() > seal.bytes) throw Damage{"it has bytes after its end"};
  if (seal.key != key) throw Damage{"it is a copy of " + seal.key};
  return seal;
}

}  // namespace

std::string Seal::head() const {
  return fmt::format("{}\nkey {}\nidentity {}\nbytes {}\n", kMagic, key, identity, bytes);
}

std::string Seal::text() const {
  std::string block = head() + "xxh3-128 " + hash + "\n";
  require(block.size() <= kSealBytes, "the seal of a record fits into its block");
  block.resize(kSealBytes, '\0');
  return block;
}

Seal make_seal(const std::string& key, const std::string& identity,
               std::span<const std::byte> content) {
  Seal seal{.key = key,
            .identity = identity.empty() ? std::string(kNoIdentity) : identity,
            .bytes = content.size(),
            .hash = ""};
  seal.hash = hash_of(seal, content);
  return seal;
}

Seal quick_seal(const std::filesystem::path& path, const std::string& key) {
  InputFile file(path);
  std::vector<std::byte> front(std::min<std::uint64_t>(kSealBytes, file.size()));
  front.resize(file.read(front));
  return front_seal(front, file.size(), key);
}

Seal checked_seal(const std::filesystem::path& path, const std::string& key,
                  std::vector<std::byte>& image) {
  InputFile file(path);
  image.resize(file.size());
  image.resize(file.read(image));
  const std::span<const std::byte> bytes(image);
  const std::span<const std::byte> front = bytes.first(std::min(kSealBytes, bytes.size()));
  Seal seal = front_seal(front, bytes.size(), key);
  if (hash_of(seal, bytes.subspan(front.size())) != seal.hash)
    throw Damage{"its content does not match its hash"};
  return seal;
}

}  // namespace roundhouse
