#include "model/checkpoint/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "base/file.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string u32(unsigned value) {
  std::string bytes;
  for (int i = 0; i < 4; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xff);
  return bytes;
}
std::string u64(unsigned value) { return u32(value) + std::string(4, '\0'); }
std::string text(const std::string& value) {
  return u64(static_cast<unsigned>(value.size())) + value;
}

class GgufFileTest : public testing::Test {
 protected:
  std::string read(const std::string& bytes) {
    std::ofstream(file_) << bytes;
    try {
      (void)GgufFile(file_);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  }
  TemporaryFolder folder_;
  std::filesystem::path file_ = folder_.path() / "m.gguf";
};

// Two keys and two tensors, byte by byte as the format says.
std::string by_hand() {
  std::string bytes = "GGUF" + u32(3) + u64(2) + u64(2);
  bytes +=
      text("a") + u32(8) + text("x\0y") + text("l") + u32(9) + u32(5) + u64(2) + u32(7) + u32(8);
  bytes += text("n") + u32(1) + u64(3) + u32(0) + u64(0);
  bytes += text("w") + u32(2) + u64(64) + u64(2) + u32(2) + u64(32);  // 64 columns, 2 rows
  bytes.resize((bytes.size() + 31) / 32 * 32, '\0');
  bytes += u32(0x3f800000) + u32(0) + u32(0) + std::string(20, '\0');
  return bytes + std::string(72, 'q') + std::string(24, '\0');
}

TEST_F(GgufFileTest, IsWrittenAsTheFormatSays) {
  GgufKeys keys;
  keys.add("a", std::string_view("x\0y"));
  keys.add("l", std::vector<std::int32_t>{7, 8});
  GgufWriter writer(file_, keys, {{"n", GgmlType::kF32, {3}}, {"w", GgmlType::kQ4_0, {2, 64}}});
  const std::vector<float> norm = {1, 0, 0};
  writer.write("n", std::as_bytes(std::span(norm)));
  const std::string blocks(72, 'q');
  writer.write("w", std::as_bytes(std::span(blocks)).first(30));
  writer.write("w", std::as_bytes(std::span(blocks)).subspan(30));
  writer.close();
  EXPECT_EQ(read_text_file(file_), by_hand());
}

TEST_F(GgufFileTest, IsRead) {
  ASSERT_EQ(read(by_hand()), "");
  const GgufFile file(file_);
  EXPECT_THAT(file.names(), ElementsAre("n", "w"));
  EXPECT_EQ(file.view("n").type, DType::kF32);
  EXPECT_EQ(file.view("w").type, DType::kU8);
  EXPECT_EQ(file.view("w").shape, (Shape{2, 36}));
  EXPECT_EQ(file.view("w").bytes.front(), std::byte{'q'});
  EXPECT_EQ(file.header().size() + 128, by_hand().size());
}

TEST_F(GgufFileTest, EveryShortenedFileIsRefused) {
  const std::string whole = by_hand();
  for (std::size_t n = 0; n < whole.size() - 24; ++n)
    EXPECT_THAT(read(whole.substr(0, n)), HasSubstr("m.gguf: ")) << n;
}

TEST_F(GgufFileTest, LiesAreRefused) {
  const auto changed = [](const std::string& from, const std::string& to) {
    std::string bytes = by_hand();
    bytes.replace(bytes.find(from), from.size(), to);
    return bytes;
  };
  EXPECT_THAT(read(changed("GGUF", "GGML")), HasSubstr("not a GGUF file"));
  EXPECT_THAT(read(changed(u32(3) + u64(2), u32(2) + u64(2))), HasSubstr("version 2"));
  const std::string w = text("w");
  EXPECT_THAT(read(changed(w + u32(2), w + u32(9))), HasSubstr("tensor \"w\": 9 dimensions"));
  EXPECT_THAT(read(changed(w + u32(2) + u64(64), w + u32(2) + u64(65))), HasSubstr("whole blocks"));
  EXPECT_THAT(read(changed(u64(64) + u64(2), u64(64) + std::string(7, '\0') + "\x80")),
              HasSubstr("larger than the file"));
  EXPECT_THAT(read(changed(u32(2) + u64(32), u32(2) + u64(31))), HasSubstr("not aligned"));
  EXPECT_THAT(read(changed(u32(2) + u64(32), u32(2) + u64(96))), HasSubstr("beyond the end"));
  EXPECT_THAT(read(changed(w, text("n"))), HasSubstr("twice"));
  EXPECT_THAT(read(changed(u32(9) + u32(5) + u64(2), u32(9) + u32(5) + u64(1u << 31))),
              HasSubstr("cut off"));
  EXPECT_THAT(read(changed(u32(9) + u32(5), u32(9) + u32(9))), HasSubstr("key \"l\""));
  EXPECT_EQ(read(changed(u32(2) + u64(32), u32(99) + u64(32))), "") << "a type of others";
  EXPECT_THROW((void)GgufFile(file_).view("w"), InputError);
}

// 2^62 values of four bytes are none, modulo 2^64.
TEST_F(GgufFileTest, ASizeThatWrapsAroundIsRefused) {
  std::string bytes = "GGUF" + u32(3) + u64(1) + u64(0) + text("a") + u32(4);
  bytes += u64(1 << 16) + u64(1 << 16) + u64(1 << 16) + u64(1 << 14) + u32(0) + u64(0);
  EXPECT_THAT(read(bytes + std::string(256, '\0')),
              HasSubstr("tensor \"a\": larger than the file"));
}

TEST_F(GgufFileTest, ANameThatReadersCannotHoldIsRefused) {
  EXPECT_THROW(gguf_header({}, {{std::string(64, 'x'), GgmlType::kF32, {1}}}), Error);
  EXPECT_THROW(gguf_header({}, {{"x", GgmlType::kF32, {1}}, {"x", GgmlType::kF32, {1}}}), Error);
}

}  // namespace
}  // namespace roundhouse
