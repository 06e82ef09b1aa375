#include "base/hash.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/file.h"

namespace roundhouse {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

TEST(Xxh3Test, KnownAnswers) {
  // XXH128 with seed 0, digits in canonical (big-endian) order.
  EXPECT_EQ(xxh3_hex(""), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(xxh3_hex("abc"), "06b05ab6733a618578af5f94892f3950");
}

TEST(Xxh3Test, PiecesGiveTheHashOfTheWhole) {
  std::string text;
  for (int i = 0; i < 10000; ++i) text += static_cast<char>(i * 7);
  Xxh3 hash;
  hash.update(bytes_of(std::string_view(text).substr(0, 1)));
  hash.update({});
  hash.update(bytes_of(std::string_view(text).substr(1, 5000)));
  hash.update(bytes_of(std::string_view(text).substr(5001)));
  EXPECT_EQ(hash.hex(), xxh3_hex(text));
  EXPECT_EQ(hash.hex(), hash.hex()) << "asking does not change the state";
}

TEST(Xxh3Test, AFileHasTheHashOfItsContent) {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "roundhouse_xxh3";
  for (const char* text : {"", "abc"}) {
    write_text_atomically(path, text);
    EXPECT_EQ(xxh3_hex_of_file(path), xxh3_hex(text));
  }
  EXPECT_THROW((void)xxh3_hex_of_file(path.parent_path() / "nowhere"), InputError);
}

TEST(Sha256Test, KnownAnswers) {
  const std::filesystem::path path =
      std::filesystem::path(testing::TempDir()) / "roundhouse_sha256";
  write_text_atomically(path, "abc");  // FIPS 180-4, example 1
  EXPECT_EQ(sha256_hex_of_file(path),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  write_text_atomically(path, "");
  EXPECT_EQ(sha256_hex_of_file(path),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  std::filesystem::remove(path);
  EXPECT_THROW(sha256_hex_of_file(path), Error);
}

}  // namespace
}  // namespace roundhouse
