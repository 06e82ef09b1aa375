#include "model/quantized/bitstream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/random.h"

namespace roundhouse {
namespace {

using testing::ElementsAre;

constexpr int kAllBits[] = {1, 2, 3, 4, 5, 6, 7, 8};

std::vector<std::uint32_t> packed(const std::vector<std::uint8_t>& values, int bits) {
  std::vector<std::uint32_t> words(packed_words(values.size(), bits));
  pack_bits(values.data(), values.size(), 1, bits, words.data());
  return words;
}

std::vector<std::uint8_t> counting(std::size_t n, int modulus) {
  std::vector<std::uint8_t> values(n);
  for (std::size_t i = 0; i < n; ++i) values[i] = static_cast<std::uint8_t>(i % modulus);
  return values;
}

TEST(BitstreamTest, HasTheWordsOfTheFormat) {
  EXPECT_THAT(packed(counting(16, 4), 2), ElementsAre(0xe4e4e4e4));
  EXPECT_THAT(packed(counting(8, 16), 4), ElementsAre(0x76543210));
  EXPECT_THAT(packed({0, 1, 2, 255}, 8), ElementsAre(0xff020100));
  EXPECT_THAT(packed(counting(32, 8), 3), ElementsAre(0x88fac688, 0xc688fac6, 0xfac688fa));
}

TEST(BitstreamTest, CountsWords) {
  EXPECT_EQ(packed_words(0, 4), 0u);
  EXPECT_EQ(packed_words(1, 4), 1u);
  EXPECT_EQ(packed_words(8, 4), 1u);
  EXPECT_EQ(packed_words(9, 4), 2u);
  EXPECT_EQ(packed_words(32, 3), 3u);
  EXPECT_EQ(packed_words(10, 3), 1u);
  EXPECT_EQ(packed_words(11, 3), 2u);
}

TEST(BitstreamTest, LeavesUnusedBitsZero) {
  EXPECT_THAT(packed({3, 3, 3}, 2), ElementsAre(0x3fu));
  EXPECT_THAT(packed(std::vector<std::uint8_t>(11, 7), 3), ElementsAre(0xffffffffu, 1u));
}

TEST(BitstreamTest, UnpacksWhatItPacked) {
  Random random(1);
  for (const int bits : kAllBits) {
    for (const std::size_t count : {0, 1, 7, 31, 32, 33, 257}) {
      std::vector<std::uint8_t> values(count);
      for (std::uint8_t& value : values)
        value = static_cast<std::uint8_t>(random.below(1u << bits));
      std::vector<std::uint8_t> back(count);
      unpack_bits(packed(values, bits).data(), count, bits, back.data());
      EXPECT_EQ(back, values) << bits << " bits, " << count << " values";
    }
  }
}

TEST(BitstreamTest, PacksEveryStrideThValue) {
  Random random(2);
  constexpr std::size_t kCount = 45, kStride = 7;
  for (const int bits : kAllBits) {
    std::vector<std::uint8_t> spread(kCount * kStride, 0xff), dense(kCount);
    for (std::size_t i = 0; i < kCount; ++i) {
      dense[i] = static_cast<std::uint8_t>(random.below(1u << bits));
      spread[i * kStride] = dense[i];
    }
    std::vector<std::uint32_t> words(packed_words(kCount, bits));
    pack_bits(spread.data(), kCount, kStride, bits, words.data());
    EXPECT_EQ(words, packed(dense, bits)) << bits << " bits";
  }
}

TEST(BitstreamTest, SaysWhetherEveryValueFits) {
  for (const int bits : kAllBits) {
    for (const std::size_t count : {1, 7, 8, 33}) {
      std::vector<std::uint8_t> values(count, static_cast<std::uint8_t>((1 << bits) - 1));
      std::vector<std::uint32_t> words(packed_words(count, bits));
      EXPECT_TRUE(try_pack_bits(values.data(), count, bits, words.data()));
      EXPECT_EQ(words, packed(values, bits));
      for (std::size_t i = 0; i < count && bits < 8; ++i) {
        std::vector<std::uint8_t> wrong = values;
        wrong[i] = static_cast<std::uint8_t>(1 << bits);
        EXPECT_FALSE(try_pack_bits(wrong.data(), count, bits, words.data()))
            << bits << " bits, value " << i << " of " << count;
      }
    }
  }
}

// The definition, one bit at a time.
TEST(BitstreamTest, PutsValueIAtBitIB) {
  Random random(3);
  for (const int bits : kAllBits) {
    std::vector<std::uint8_t> values(100);
    for (std::uint8_t& value : values) value = static_cast<std::uint8_t>(random.below(1u << bits));
    const std::vector<std::uint32_t> words = packed(values, bits);
    for (std::size_t i = 0; i < values.size(); ++i) {
      for (int bit = 0; bit < bits; ++bit) {
        const std::size_t place = i * bits + bit;
        EXPECT_EQ(words[place / 32] >> place % 32 & 1, static_cast<unsigned>(values[i] >> bit & 1));
      }
    }
  }
}

}  // namespace
}  // namespace roundhouse
