#include "model/checkpoint/safetensors.h"

#include <fstream>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/model_files.h"

namespace roundhouse {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::string read_bytes(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

TEST(SafetensorsTest, ReadsBackWhatWasWritten) {
  const TemporaryFolder directory;
  const std::vector<TensorInfo> tensors = {
      {"wide", DType::kI64, {2}},       {"f32", DType::kF32, {2, 3}},
      {"scalar", DType::kU32, {}},      {"empty", DType::kI32, {0, 7}},
      {"half", DType::kF16, {3}},       {"brain", DType::kBF16, {1, 1, 1}},
      {"name \"x\"\n", DType::kU8, {5}}};
  {
    SafetensorsWriter writer(directory / "a", tensors, {{"format", "pt"}});
    writer.write("wide", as_bytes("0123456789abcdef"));
    writer.write("f32", as_bytes("01234567"));  // in two pieces
    writer.write("f32", as_bytes("89abcdefghijklmn"));
    writer.write("scalar", as_bytes("wxyz"));
    writer.write("half", as_bytes("HALF!!"));  // "empty" needs no call
    writer.write("brain", as_bytes("bf"));
    writer.write("name \"x\"\n", as_bytes("bytes"));
    writer.close();
  }
  const SafetensorsFile file(directory / "a");
  EXPECT_THAT(file.names(),
              ElementsAre("brain", "empty", "f32", "half", "name \"x\"\n", "scalar", "wide"));
  const auto text = [&](const char* name) {
    const HostView view = file.view(name);
    return std::string(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size());
  };
  EXPECT_EQ(text("wide"), "0123456789abcdef");
  EXPECT_EQ(text("f32"), "0123456789abcdefghijklmn");
  EXPECT_EQ(text("scalar"), "wxyz");
  EXPECT_EQ(text("empty"), "");
  EXPECT_EQ(text("half"), "HALF!!");
  EXPECT_EQ(text("brain"), "bf");
  EXPECT_EQ(text("name \"x\"\n"), "bytes");
  EXPECT_EQ(file.view("f32").shape, (Shape{2, 3}));
  EXPECT_EQ(file.view("scalar").shape, Shape{});
  EXPECT_EQ(file.view("empty").shape, (Shape{0, 7}));
  EXPECT_EQ(file.view("half").type, DType::kF16);
}

TEST(SafetensorsTest, WritesTheBytesOfTheFormat) {
  const TemporaryFolder directory;
  SafetensorsWriter writer(directory / "a", {{"w", DType::kU8, {3}}}, {});
  writer.write("w", as_bytes("abc"));
  writer.close();
  // 51 characters of header, padded with spaces to 56 = 0x38.
  EXPECT_EQ(read_bytes(directory / "a"),
            std::string("\x38\0\0\0\0\0\0\0", 8) +
                R"({"w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})"
                "   abc");
}

TEST(SafetensorsTest, FileWithoutTensorsIsValid) {
  const TemporaryFolder directory;
  SafetensorsWriter(directory / "a", {}, {}).close();
  EXPECT_TRUE(SafetensorsFile(directory / "a").names().empty());
}

TEST(SafetensorsTest, ReferenceOrderPutsWideTypesFirstThenNames) {
  std::vector<TensorInfo> tensors = {{"b", DType::kU8, {}},
                                     {"z", DType::kF16, {}},
                                     {"a", DType::kBF16, {}},
                                     {"c", DType::kI64, {}},
                                     {"d", DType::kF32, {}}};
  sort_for_file(tensors);
  std::string order;
  for (const TensorInfo& tensor : tensors) order += tensor.name;
  EXPECT_EQ(order, "cdazb");
}

TEST(SafetensorsTest, WriterRefusesWhatWasNotAnnounced) {
  const TemporaryFolder directory;
  const std::vector<TensorInfo> tensors = {{"a", DType::kU8, {2}}, {"b", DType::kU8, {2}}};
  SafetensorsWriter writer(directory / "a", tensors, {});
  EXPECT_THROW(writer.write("b", as_bytes("xx")), Error);   // before a
  EXPECT_THROW(writer.write("a", as_bytes("xxx")), Error);  // too long
  writer.write("a", as_bytes("x"));
  EXPECT_THROW(writer.close(), Error);  // a is incomplete
  EXPECT_THROW(SafetensorsWriter(directory / "b", {tensors[0], tensors[0]}, {}), Error);
  EXPECT_THROW(SafetensorsWriter(directory / "b", {{"__metadata__", DType::kU8, {}}}, {}), Error);
  EXPECT_THROW(SafetensorsWriter(directory / "no" / "b", tensors, {}), Error);
}

TEST(SafetensorsTest, FullDiskIsAnErrorAtTheLatestWhenClosing) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  SafetensorsWriter writer("/dev/full", {{"a", DType::kU8, {2}}}, {});
  writer.write("a", as_bytes("xx"));
  try {
    writer.close();
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("/dev/full"), HasSubstr("space")));
  }
}

TEST(SafetensorsTest, TypeThatWeDoNotKnowIsListedButNotRead) {
  const TemporaryFolder directory;
  write_file(directory / "a",
             safetensors_bytes(R"({"d":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},
      "f4":{"dtype":"F4","shape":[2],"data_offsets":[8,9]}})",
                               9));
  const SafetensorsFile file(directory / "a");
  EXPECT_TRUE(file.has("d"));
  EXPECT_THAT(file.names(), ElementsAre("d", "f4"));
  EXPECT_THAT(input_error_of([&] { (void)file.view("d"); }),
              AllOf(HasSubstr("\"d\""), HasSubstr("F64")));
  EXPECT_THAT(input_error_of([&] { (void)file.view("e"); }), HasSubstr("no tensor \"e\""));
}

TEST(SafetensorsTest, HeaderMayBePaddedAndMayNotBeAligned) {
  const TemporaryFolder directory;
  write_file(directory / "a",
             safetensors_bytes("{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"_"
                               "_metadata__\":{\"a\":\"b\"}}  ",
                               8));
  EXPECT_EQ(SafetensorsFile(directory / "a").view("w").bytes.size(), 8u);
}

struct Hostile {
  const char* name;
  std::string header;
  std::size_t data_bytes;
  const char* expected;
};

// The time of a header is linear in its tensors: with a square in it this takes minutes.
TEST(SafetensorsTest, ReadsHundredsOfThousandsOfTensors) {
  constexpr int kTensors = 400'000;
  std::string header = "{";
  for (int i = 0; i < kTensors; ++i) {
    header += (i > 0 ? ",\"" : "\"") + std::to_string(i) +
              R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  }
  const TemporaryFolder directory;
  write_file(directory / "a", safetensors_bytes(header + "}", 0));
  EXPECT_EQ(SafetensorsFile(directory / "a").names().size(), std::size_t{kTensors});
}

class HostileSafetensorsTest : public testing::TestWithParam<Hostile> {};

TEST_P(HostileSafetensorsTest, IsAnInputErrorThatNamesTheFile) {
  const TemporaryFolder directory;
  write_file(directory / "hostile", safetensors_bytes(GetParam().header, GetParam().data_bytes));
  const std::string message = input_error_of([&] { SafetensorsFile file(directory / "hostile"); });
  EXPECT_THAT(message,
              AllOf(HasSubstr((directory / "hostile").string()), HasSubstr(GetParam().expected)));
  EXPECT_EQ(message.find('\n'), message.npos) << "one line, please: " << message;
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":" + dtype + ",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

std::vector<Hostile> hostile_files() {
  const std::string u8 = "\"U8\"";
  const std::string deep(1'000'000, '[');
  return {
      {"EmptyHeader", "", 0, "does not start"},
      {"HeaderIsAList", "[]", 0, "does not start"},
      {"SpaceBeforeTheBrace", " {}", 0, "does not start"},
      {"NotJson", "{nope}", 0, "line 1"},
      {"NulAfterTheObject", std::string("{}\0{", 4), 0, "NUL"},
      {"TrailingGarbage", "{} x", 0, "not JSON"},
      {"InvalidUtf8", "{\"\xff\xfe\":1}", 0, "not JSON"},
      {"NumberTooLargeForADouble", "{\"a\":1e999}", 0, "number out of range"},
      {"MillionNestedArrays", "{\"a\":" + deep, 0, "nested too deeply"},
      {"MillionNestedObjects",
       [] {
         std::string text;
         for (int i = 0; i < 200'000; ++i) text += "{\"a\":";
         return text;
       }(),
       0, "nested too deeply"},
      {"DuplicateTensor",
       "{" + tensor("a", u8, "[1]", "[0,1]") + "," + tensor("a", u8, "[1]", "[0,1]") + "}", 1,
       "\"a\" stands twice"},
      {"DuplicateKeyInATensor",
       R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
       "\"dtype\" stands twice"},
      {"TensorIsANumber", "{\"a\":1}", 0, "tensor \"a\": not a JSON object"},
      {"NoType", R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1, "tensor \"a\": no dtype"},
      {"NoShape", R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1, "tensor \"a\": no shape"},
      {"NoOffsets", R"({"a":{"dtype":"U8","shape":[1]}})", 1, "tensor \"a\": no data_offsets"},
      {"TypeIsANumber", "{" + tensor("a", "8", "[1]", "[0,1]") + "}", 1,
       "\"a\": dtype is not a string"},
      {"UnknownType", "{" + tensor("a", "\"F17\"", "[1]", "[0,1]") + "}", 1,
       "\"a\": unknown dtype \"F17\""},
      {"ShapeIsANumber", "{" + tensor("a", u8, "1", "[0,1]") + "}", 1,
       "\"a\": shape is not a list"},
      {"NegativeSize", "{" + tensor("a", u8, "[-1]", "[0,1]") + "}", 1, "\"a\": shape holds"},
      {"FractionalSize", "{" + tensor("a", u8, "[1.0]", "[0,1]") + "}", 1, "\"a\": shape holds"},
      {"SizeWithExponent", "{" + tensor("a", u8, "[1e0]", "[0,1]") + "}", 1, "\"a\": shape holds"},
      {"SizeIsAString", "{" + tensor("a", u8, "[\"1\"]", "[0,1]") + "}", 1, "\"a\": shape holds"},
      {"SizeBeyond63Bits", "{" + tensor("a", u8, "[9223372036854775808]", "[0,1]") + "}", 1,
       "\"a\": shape is too large"},
      {"SizeBeyond64Bits", "{" + tensor("a", u8, "[18446744073709551617]", "[0,1]") + "}", 1,
       "\"a\": shape holds"},
      {"ProductWrapsTo1", "{" + tensor("a", u8, "[4294967297,4294967297,1]", "[0,1]") + "}", 1,
       "\"a\": shape is too large"},
      {"ProductWrapsTo0", "{" + tensor("a", u8, "[4294967296,4294967296]", "[0,0]") + "}", 0,
       "\"a\": shape is too large"},
      {"BitsWrap", "{" + tensor("a", "\"F32\"", "[576460752303423488]", "[0,0]") + "}", 0,
       "\"a\": shape is too large"},
      {"OffsetsOfThree", "{" + tensor("a", u8, "[1]", "[0,1,2]") + "}", 1,
       "\"a\": data_offsets is not a pair"},
      {"OffsetsReversed", "{" + tensor("a", u8, "[1]", "[1,0]") + "}", 1,
       "\"a\": data_offsets end before"},
      {"NegativeOffset", "{" + tensor("a", u8, "[1]", "[-1,0]") + "}", 1,
       "\"a\": data_offsets holds"},
      {"FractionalOffset", "{" + tensor("a", u8, "[1]", "[0,1.5]") + "}", 1,
       "\"a\": data_offsets holds"},
      {"HugeOffset",
       "{" + tensor("a", u8, "[18446744073709551615]", "[0,18446744073709551615]") + "}", 1,
       "\"a\": shape is too large"},
      {"OffsetsDoNotFit", "{" + tensor("a", "\"F16\"", "[3]", "[0,5]") + "}", 5,
       "\"a\": shape and dtype do not fill"},
      {"HalfAByte", "{" + tensor("a", "\"F4\"", "[3]", "[0,2]") + "}", 2,
       "\"a\": shape and dtype do not fill"},
      {"HoleAtTheStart", "{" + tensor("a", u8, "[1]", "[1,2]") + "}", 2,
       "\"a\": data_offsets leave a hole"},
      {"Hole", "{" + tensor("a", u8, "[1]", "[0,1]") + "," + tensor("b", u8, "[1]", "[2,3]") + "}",
       3, "\"b\": data_offsets leave a hole"},
      {"Overlap",
       "{" + tensor("a", u8, "[2]", "[0,2]") + "," + tensor("b", u8, "[2]", "[1,3]") + "}", 3,
       "\"b\": data_offsets leave a hole or overlap"},
      {"SamePlaceTwice",
       "{" + tensor("a", u8, "[1]", "[0,1]") + "," + tensor("b", u8, "[1]", "[0,1]") + "}", 1,
       "overlap"},
      {"EmptyTensorInsideAnother",
       "{" + tensor("a", u8, "[4]", "[0,4]") + "," + tensor("b", u8, "[0]", "[2,2]") + "}", 4,
       "overlap"},
      {"DataTooShort", "{" + tensor("a", u8, "[4]", "[0,4]") + "}", 3,
       "\"a\": data beyond the end"},
      {"DataTooLong", "{" + tensor("a", u8, "[4]", "[0,4]") + "}", 5,
       "1 bytes after the last tensor"},
      {"DataWithoutTensors", "{}", 1, "1 bytes after the last tensor"},
      {"MetadataIsAList", "{\"__metadata__\":[]}", 0, "\"__metadata__\": not a JSON object"},
      {"MetadataHoldsANumber", "{\"__metadata__\":{\"k\":1}}", 0,
       "the value of \"k\" is not a string"},
      {"MetadataIsATensor", "{" + tensor("__metadata__", u8, "[1]", "[0,1]") + "}", 1,
       "\"__metadata__\""},
      {"NameWithALineBreak", "{\"a\\nb\":1}", 0, "\"a\\nb\""},
      {"VeryLongName", "{\"" + std::string(100'000, 'x') + "\":1}", 0,
       "xxx ... 100000 bytes ... xxx"},
  };
}

INSTANTIATE_TEST_SUITE_P(Files, HostileSafetensorsTest, testing::ValuesIn(hostile_files()),
                         [](const auto& instance) { return instance.param.name; });

TEST(SafetensorsTest, HeaderLengthIsCheckedAgainstTheFile) {
  const TemporaryFolder directory;
  const auto error_of = [&](const std::string& bytes) {
    write_file(directory / "a", bytes);
    return input_error_of([&] { SafetensorsFile file(directory / "a"); });
  };
  EXPECT_THAT(error_of("1234567"), HasSubstr("shorter than 8 bytes"));
  EXPECT_THAT(error_of(std::string("\x03\0\0\0\0\0\0\0{}", 10)), HasSubstr("truncated"));
  EXPECT_THAT(error_of(std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10)),
              HasSubstr("header of 18446744073709551615"));
  EXPECT_THAT(error_of(std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10)),
              HasSubstr("header of 100000001"));
  EXPECT_THAT(input_error_of([&] { SafetensorsFile file(directory.path()); }),
              HasSubstr(directory.path().string()));
  EXPECT_THAT(input_error_of([&] { SafetensorsFile file(directory / "absent"); }),
              HasSubstr("absent"));
}

// A small valid file to damage.
std::string valid_file() {
  return safetensors_bytes("{\"__metadata__\":{\"format\":\"pt\"}," +
                               tensor("a", "\"F16\"", "[2,3]", "[0,12]") + "," +
                               tensor("b.c", "\"I32\"", "[2]", "[12,20]") + "," +
                               tensor("e", "\"U8\"", "[0]", "[20,20]") + "}",
                           20);
}

TEST(SafetensorsTest, EveryTruncationIsAnInputError) {
  const TemporaryFolder directory;
  const std::string valid = valid_file();
  write_file(directory / "a", valid);
  EXPECT_EQ(SafetensorsFile(directory / "a").names().size(), 3u);
  for (std::size_t length = 0; length < valid.size(); ++length) {
    write_file(directory / "a", valid.substr(0, length));
    EXPECT_THAT(input_error_of([&] { SafetensorsFile file(directory / "a"); }),
                HasSubstr(directory.path().string()))
        << length << " bytes";
  }
}

TEST(SafetensorsTest, AnyChangedByteGivesAValidFileOrAnInputError) {
  const TemporaryFolder directory;
  const std::string valid = valid_file();
  int still_valid = 0, errors = 0;
  for (std::size_t i = 0; i < valid.size() - 20; ++i) {
    for (const int mask : {1, 2, 4, 8, 16, 32, 64, 128, 255}) {
      std::string bytes = valid;
      bytes[i] = static_cast<char>(bytes[i] ^ mask);
      write_file(directory / "a", bytes);
      try {
        const SafetensorsFile file(directory / "a");
        for (const std::string& name : file.names()) {
          try {
            const HostView view = file.view(name);
            EXPECT_EQ(static_cast<std::size_t>(element_count(view.shape)) * size_of(view.type),
                      view.bytes.size());
          } catch (const InputError&) {  // a type that we do not read
          }
        }
        ++still_valid;
      } catch (const InputError&) {
        ++errors;
      }
    }
  }
  EXPECT_GT(still_valid, 0);  // another name, say
  EXPECT_GT(errors, 500);
}

}  // namespace
}  // namespace roundhouse
