#include "stages/calibrate/samples.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <set>

#include "base/error.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// One token a byte, and 256 in front.
class ByteTokenizer final : public Tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view text) const override {
    return {text.begin(), text.end()};
  }
  std::int32_t vocabulary() const override { return 257; }
  std::int32_t bos() const override { return 256; }
};

class SamplesTest : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& name, const std::string& text) {
    std::ofstream(folder_.path() / name) << text;
    return folder_.path() / name;
  }
  // Documents of 40 equal letters: a window says which document it comes from.
  std::filesystem::path letters(const std::string& which) {
    std::string text;
    for (const char c : which) text += "{\"text\": \"" + std::string(40, c) + "\"}\n";
    return write("letters.jsonl", text);
  }
  static Samples draw(const std::filesystem::path& text, int samples, std::uint64_t seed = 1,
                      int length = 8) {
    return draw_samples(
        {.text = text, .samples = samples, .sequence_length = length, .seed = seed, .shards = 2},
        ByteTokenizer(), [] {});
  }
  static std::string error_of(const std::filesystem::path& text) {
    try {
      draw(text, 2);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  }

  TemporaryFolder folder_;
};

TEST_F(SamplesTest, SameSeedSameWindows) {
  const auto text = letters("abcdef");
  const Samples one = draw(text, 4), two = draw(text, 4), other = draw(text, 4, 2);
  EXPECT_TRUE(std::ranges::equal(one.ids(0, 4), two.ids(0, 4)));
  EXPECT_FALSE(std::ranges::equal(one.ids(0, 4), other.ids(0, 4)));
}

TEST_F(SamplesTest, UsesEveryDocumentOnceBeforeAnyTwice) {
  const Samples samples = draw(letters("abcd"), 6);
  std::set<std::int32_t> first;
  for (int i = 0; i < 4; ++i) first.insert(samples.ids(i, 1).back());
  EXPECT_EQ(first.size(), 4u);
}

TEST_F(SamplesTest, WindowIsARunOfOneDocument) {
  const auto text = write("digits.jsonl", R"({"text": "0123456789abcdefghijklmnopqrstuvwxyz"})");
  const Samples samples = draw(text, 20);
  const std::string whole =
      "\xff"
      "0123456789abcdefghijklmnopqrstuvwxyz";
  for (int i = 0; i < 20; ++i) {
    std::string window;
    for (const std::int32_t id : samples.ids(i, 1))
      window += id == 256 ? '\xff' : static_cast<char>(id);
    EXPECT_NE(whole.find(window), std::string::npos) << window;
  }
}

TEST_F(SamplesTest, SkipsDocumentsThatAreTooShort) {
  const auto text = write(
      "mixed.jsonl", "{\"text\": \"short\"}\n\n{\"text\": \"" + std::string(20, 'x') + "\"}\n");
  const Samples samples = draw(text, 3);
  for (const std::int32_t id : samples.ids(0, 3)) EXPECT_TRUE(id == 'x' || id == 256) << id;
}

TEST_F(SamplesTest, PacksWholeShortDocumentsOneAfterAnother) {
  const auto text = write("few.jsonl",
                          "{\"text\": \" abc\\n\"}\n{\"text\": \"far too long for a window\"}\n"
                          "{\"text\": \"defgh\"}\n{\"text\": \" \\t \"}\n{\"text\": \"ijk\"}\n");
  SampleOptions options{.text = text,
                        .samples = 2,
                        .sequence_length = 6,
                        .seed = 1,
                        .shards = 1,
                        .drawing = Drawing::kPacked};
  // 4 + 6 + 4 tokens: two windows, and two tokens are left over.
  const Samples samples = draw_samples(options, ByteTokenizer(), [] {});
  std::string drawn;
  for (const std::int32_t id : samples.ids(0, 2)) drawn += id == 256 ? '|' : static_cast<char>(id);
  std::set<std::string> wanted;
  std::vector<std::string> documents = {"|abc", "|defgh", "|ijk"};
  std::ranges::sort(documents);
  do {
    wanted.insert((documents[0] + documents[1] + documents[2]).substr(0, 12));
  } while (std::ranges::next_permutation(documents).found);
  EXPECT_TRUE(wanted.contains(drawn)) << drawn;

  options.samples = 3;
  try {
    draw_samples(options, ByteTokenizer(), [] {});
    FAIL() << "documents were used twice";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), HasSubstr("up to 6 tokens fill 2 windows, and "
                                        "calibration.samples asks for 3"));
  }
}

TEST_F(SamplesTest, PlainTextIsOneDocument) {
  EXPECT_EQ(draw(write("book.txt", std::string(100, 'y')), 2).count(), 2);
}

TEST_F(SamplesTest, NamesFileAndLineOfWhatIsWrong) {
  EXPECT_THAT(error_of("no/such.jsonl"), HasSubstr("no/such.jsonl"));
  EXPECT_THAT(error_of(write("a.jsonl", "{\"text\": \"fine\"}\n{broken\n")),
              HasSubstr("a.jsonl:2: not a JSON object"));
  EXPECT_THAT(error_of(write("b.jsonl", "\n{\"story\": \"x\"}\n")),
              HasSubstr("b.jsonl:2: no string \"text\""));
  EXPECT_THAT(error_of(write("c.jsonl", "{\"text\": 7}\n")), HasSubstr("c.jsonl:1"));
  EXPECT_THAT(error_of(write("d.jsonl", "\n \n")), HasSubstr("holds no text"));
  EXPECT_THAT(error_of(write("e.jsonl", "{\"text\": \"abc\"}\n")), HasSubstr("the longest has 4"));
}

TEST_F(SamplesTest, ShardsCutAllSamplesIntoRuns) {
  const Samples samples(7, 4, 3, std::vector<std::int32_t>(28));
  int next = 0;
  for (int shard = 0; shard < 3; ++shard) {
    const PartRange range = samples.samples_of_shard(shard);
    EXPECT_EQ(range.begin, next);
    EXPECT_GE(range.end - range.begin, 2);
    next = range.end;
  }
  EXPECT_EQ(next, 7);
}

TEST_F(SamplesTest, MicroBatchDependsOnTheLengthAlone) {
  EXPECT_EQ(micro_batch_sequences(512), 4);
  EXPECT_EQ(micro_batch_sequences(2048), 1);
  EXPECT_EQ(micro_batch_sequences(100000), 1);
}

TEST_F(SamplesTest, RecordComesBack) {
  const Samples samples = draw(letters("abc"), 5);
  const Samples back = samples_from_record(to_record(samples));
  EXPECT_EQ(back.shards(), 2);
  EXPECT_TRUE(std::ranges::equal(back.ids(0, 5), samples.ids(0, 5)));
  EXPECT_THROW(samples_from_record({}), Error);
}

}  // namespace
}  // namespace roundhouse
