#include "stages/calibrate/samples.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <set>

#include "base/error.h"
#include "kernels/cpu/thread_pool.h"
#include "model/tokenizer/tokenizer.h"
#include "tests/base/packed.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// One token a byte, and 256 in front.
class ByteTokenizer final : public Tokenizer {
 public:
  std::int32_t vocabulary() const override { return 257; }
  std::int32_t bos() const override { return 256; }
  bool may_cut(char32_t, char32_t) const override { return true; }
  std::optional<std::int32_t> id_of_token(const std::string&) const override { return {}; }
  mutable std::atomic<std::size_t> bytes{0};  // tokenized so far

 private:
  void append_part(std::string_view part, PieceStart, WordCache&,
                   std::vector<std::int32_t>& ids) const override {
    bytes += part.size();
    for (const char c : part) ids.push_back(static_cast<unsigned char>(c));
  }
};

class Listener final : public Monitor {
 public:
  void phase(const std::string&) override {}
  void tick() override { ++ticks; }
  void event(const nlohmann::json&) override {}
  void say(const std::string& line) override { lines.push_back(line); }
  bool stop_requested() override { return false; }
  std::vector<std::string> lines;
  int ticks = 0;
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
  static DrawnSamples draw_all(const SampleOptions& options, int threads = 1) {
    ThreadPool pool(threads);
    NullMonitor monitor;
    return draw_samples(options, {}, ByteTokenizer(), pool, monitor);
  }
  static Samples draw(const std::filesystem::path& text, int samples, std::uint64_t seed = 1,
                      int length = 8) {
    return draw_all({.text = text,
                     .samples = samples,
                     .sequence_length = length,
                     .seed = seed,
                     .shards = std::min(2, samples)})
        .samples;
  }
  static std::string error_of(const SampleOptions& options) {
    try {
      draw_all(options);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  }
  static std::string letters_of(std::span<const std::int32_t> ids) {
    std::string text;
    for (const std::int32_t id : ids) text += id == 256 ? '|' : static_cast<char>(id);
    return text;
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
  const Samples samples = draw(text, 4);
  const std::string whole =
      "\xff"
      "0123456789abcdefghijklmnopqrstuvwxyz";
  for (int i = 0; i < 4; ++i) {
    std::string window;
    for (const std::int32_t id : samples.ids(i, 1))
      window += id == 256 ? '\xff' : static_cast<char>(id);
    EXPECT_NE(whole.find(window), std::string::npos) << window;
  }
}

TEST_F(SamplesTest, SkipsDocumentsThatAreTooShort) {
  const auto text = write(
      "mixed.jsonl", "{\"text\": \"short\"}\n\n{\"text\": \"" + std::string(30, 'x') + "\"}\n");
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
  const Samples samples = draw_all(options).samples;
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
  EXPECT_THAT(error_of(options), HasSubstr("make 2 windows by drawing: packed, and "
                                           "calibration.samples: 3 of"))
      << "documents are used twice";
}

// The windows of before texts were read in chunks: bits of finished runs depend on them.
TEST_F(SamplesTest, WindowsOfASeedStayTheSame) {
  const std::string alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  std::string text;
  for (int i = 0; i < 5; ++i)
    text += "{\"text\": \"" + alphabet.substr(static_cast<std::size_t>(i), 20) + "\"}\n";
  const Samples samples = draw(write("few.jsonl", text), 8, 7, 6);
  EXPECT_EQ(letters_of(samples.ids(0, 8)), "nopqrsbcdefgijklmnnopqrscdefghmnopqrlmnopqopqrst");
  EXPECT_EQ(letters_of(draw(write("one.txt", alphabet), 4, 7, 6).ids(0, 4)),
            "MNOPQRlmnopqrstuvwABCDEF");
}

TEST_F(SamplesTest, ConcatenatedWindowsLieSideBySideInOneRow) {
  const auto text = write("row.jsonl",
                          "{\"text\": \"abcd\"}\n{\"text\": \"\"}\n{\"text\": \"efghijklmnop\"}\n"
                          "{\"text\": \"qr\"}\n");
  SampleOptions options{.text = text,
                        .samples = 5,
                        .sequence_length = 4,
                        .seed = 1,
                        .shards = 1,
                        .drawing = Drawing::kConcatenated};
  const std::string row = "|abcd|efghijklmnop|qr";
  std::set<std::string> seen;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    options.seed = seed;
    const Samples samples = draw_all(options).samples;
    std::set<std::size_t> places;
    for (int i = 0; i < 5; ++i) {
      const std::size_t place = row.find(letters_of(samples.ids(i, 1)));
      ASSERT_NE(place, std::string::npos) << letters_of(samples.ids(i, 1));
      places.insert(place);
    }
    ASSERT_EQ(places.size(), 5u) << "no window twice";
    EXPECT_EQ(*places.rbegin() - *places.begin(), 16u) << "21 tokens are 5 windows, side by side";
    seen.insert(letters_of(samples.ids(0, 5)));
  }
  EXPECT_GT(seen.size(), 20u);
  options.samples = 6;
  EXPECT_THAT(
      error_of(options),
      HasSubstr("with 21 tokens (the longest has 13) make 5 windows by drawing: concatenated"));
}

TEST_F(SamplesTest, MoreSamplesThanThereAreTokensAreRefused) {
  const SampleOptions options{
      .text = letters("ab"), .samples = 10, .sequence_length = 8, .shards = 1};
  EXPECT_EQ(draw_all(options).samples.count(), 10) << "80 of 82 tokens";
  SampleOptions more = options;
  more.samples = 11;
  EXPECT_EQ(error_of(more).substr(error_of(more).find("letters.jsonl")),
            "letters.jsonl: 2 documents with 82 tokens (the longest has 41) make 10 windows by "
            "drawing: windows, and calibration.samples: 11 of calibration.sequence_length: 8 need "
            "11 windows, 88 tokens. Use at most 10 samples, a shorter sequence_length, or more "
            "text");
}

TEST_F(SamplesTest, SaysHowManyDocumentsTheWindowsCameFrom) {
  const auto text =
      write("few.jsonl", "{\"text\": \"short\"}\n{\"text\": \"" + std::string(50, 'x') +
                             "\"}\n{\"text\": \"" + std::string(60, 'y') + "\"}\n");
  ThreadPool threads(1);
  Listener listener;
  const DrawnSamples drawn =
      draw_samples({.text = text, .samples = 6, .sequence_length = 8, .shards = 1}, {},
                   ByteTokenizer(), threads, listener);
  ASSERT_EQ(listener.lines.size(), 2u);
  EXPECT_THAT(listener.lines[0], HasSubstr("few.jsonl: JSON lines, 3 documents"));
  EXPECT_THAT(
      listener.lines[1],
      HasSubstr("6 windows of 8 tokens from 2 documents; 1 of 3 looked at were shorter, which "
                "shorter windows or another drawing would use"));
  EXPECT_EQ(drawn.facts["documents"], 3);
  EXPECT_EQ(drawn.facts["documents_used"], 2);
  EXPECT_EQ(drawn.facts["documents_looked_at"], 3);
}

// Larger than a chunk, a batch and what is kept.
TEST_F(SamplesTest, LongTextsAreTokenizedOnceInChunksByAnyNumberOfThreads) {
  std::string book;
  for (int i = 0; book.size() < 18'000'000; ++i)
    book += std::to_string(i) + (i % 9 == 0 ? "\n" : " ");
  const auto text = write("book.txt", book);
  const std::string whole = "|" + book;
  for (const Drawing drawing : {Drawing::kWindows, Drawing::kConcatenated}) {
    const SampleOptions options{.text = text,
                                .samples = 60,
                                .sequence_length = 30'000,
                                .seed = 3,
                                .shards = 1,
                                .drawing = drawing};
    const Samples one = draw_all(options, 1).samples;
    for (int i = 0; i < 60; ++i)
      ASSERT_NE(whole.find(letters_of(one.ids(i, 1))), std::string::npos) << i;
    ThreadPool threads(3);
    Listener listener;
    const ByteTokenizer tokenizer;
    const Samples three = draw_samples(options, {}, tokenizer, threads, listener).samples;
    EXPECT_TRUE(std::ranges::equal(one.ids(0, 60), three.ids(0, 60)));
    EXPECT_LT(tokenizer.bytes, book.size() * 9 / 8) << "what is not kept is tokenized twice";
    EXPECT_GT(listener.ticks, 5);
  }
}

// Each of many documents, cut from anywhere, beyond what is kept.
TEST_F(SamplesTest, ManyDocumentsBeyondWhatIsKept) {
  std::string lines;
  for (int i = 0; i < 900; ++i) {
    lines += "{\"text\": \"" + std::string(20'000, static_cast<char>('a' + i % 26)) +
             std::to_string(i) + "\"}\n";
  }
  const auto text = write("many.jsonl", lines);
  const SampleOptions options{
      .text = text, .samples = 900, .sequence_length = 19'900, .seed = 5, .shards = 1};
  const Samples samples = draw_all(options, 2).samples;
  for (int i = 0; i < 900; ++i) {
    const std::string window = letters_of(samples.ids(i, 1));
    const std::size_t digits = window.find_first_of("0123456789");
    const char letter = window[1];
    ASSERT_EQ(window.find_first_not_of(letter, 1), digits) << i;
    if (digits == std::string::npos) continue;
    ASSERT_LE(window.size() - digits, 3u);
  }
}

TEST_F(SamplesTest, PlainTextIsOneDocument) {
  EXPECT_EQ(draw(write("book.txt", std::string(100, 'y')), 2).count(), 2);
}

// Names do not decide: content does.
TEST_F(SamplesTest, JsonLinesAreRecognisedUnderAnyName) {
  const std::string lines = "\xef\xbb\xbf\r\n{\"text\": \"" + std::string(40, 'a') + "\"}\r\n";
  for (const char* name : {"a.jsonl", "a.ndjson", "a.JSONL", "a.jsonl.txt", "a", "a.txt"}) {
    const Samples samples = draw(write(name, lines), 2);
    EXPECT_EQ(letters_of(samples.ids(0, 2)).find_first_not_of("|a"), std::string::npos) << name;
  }
  const std::string latex = "{\\bf Once} upon a time there was a text.\n{\"text\": \"b\"}";
  EXPECT_THAT(letters_of(draw(write("a.tex", latex), 1, 1, 40).ids(0, 1)),
              HasSubstr("upon a time"));
}

TEST_F(SamplesTest, OtherFormatsAreRefusedByName) {
  const auto error = [&](const char* name, const std::string& bytes) {
    return error_of({.text = write(name, bytes), .samples = 2, .sequence_length = 8, .shards = 1});
  };
  EXPECT_THAT(error("c4.json.gz", "\x1f\x8b\x08 and so on"),
              HasSubstr("c4.json.gz: a damaged gzip file"));
  EXPECT_THAT(error("c4.zst", "\x28\xb5\x2f\xfd and so on"),
              HasSubstr("c4.zst: a damaged zstd file"));
  EXPECT_THAT(error("c4.zst", zstd(gzip(std::string(40, 'a')))), HasSubstr("is a gzip file"));
  EXPECT_THAT(error("c4.xz", std::string("\xfd\x37zXZ\0", 6)), HasSubstr("c4.xz: is an xz file"));
  EXPECT_THAT(error("w.txt",
                    "\xff\xfe"
                    "a"),
              HasSubstr("w.txt: is UTF-16"));
  EXPECT_THAT(error("x.parquet", "PAR1\x15\xff"), HasSubstr("x.parquet: is a Parquet file"));
  EXPECT_THAT(error("latin.txt", "one\ntwo\nth\xe9 end of it"),
              HasSubstr("latin.txt:3: is not UTF-8 at byte 10"));
  EXPECT_THAT(error("one.txt", "{\n \"text\": \"a long enough text\"\n}"),
              HasSubstr("one.txt: is one JSON value"));
  EXPECT_THAT(error("list.txt", "[{\"text\": \"a long enough text\"},\n{}]"),
              HasSubstr("list.txt: is one JSON value"));
  EXPECT_THAT(error("blank.txt", " \n\n"), HasSubstr("blank.txt: holds no text"));
}

TEST_F(SamplesTest, PackedTextsGiveTheWindowsOfTheTexts) {
  std::string lines, blank(3000, ' ');
  for (char c = 'a'; c <= 'z'; ++c) lines += "{\"text\": \"" + std::string(40, c) + "\"}\n" + blank;
  const Samples plain = draw(write("plain.jsonl", lines), 20);
  for (const auto& [name, bytes] : {std::pair("a.jsonl.gz", gzip(lines)),
                                    {"a", gzip(lines)},
                                    {"a.json.zst", zstd(lines)},
                                    {"a.txt", zstd(lines)}}) {
    const Samples samples = draw(write(name, bytes), 20);
    EXPECT_TRUE(std::ranges::equal(samples.ids(0, 20), plain.ids(0, 20))) << name;
  }
  // Its name says what it is, with what is behind it.
  EXPECT_THAT(error_of({.text = write("b.jsonl.gz", gzip("no JSON")), .samples = 1, .shards = 1}),
              HasSubstr("b.jsonl.gz:1: not a JSON object"));
  ThreadPool threads(1);
  Listener listener;
  (void)draw_samples(
      {.text = write("c.jsonl.gz", gzip(lines)), .samples = 1, .sequence_length = 8, .shards = 1},
      {}, ByteTokenizer(), threads, listener);
  EXPECT_THAT(listener.lines.at(0), HasSubstr("c.jsonl.gz: gzip, JSON lines, 26 documents"));
}

TEST_F(SamplesTest, TextsMayHaveAnotherKey) {
  const std::string content = std::string(40, 'c');
  SampleOptions options{
      .text = write("k.jsonl", R"({"id": 1, "content": ")" + content + R"(", "title": "t"})"),
      .samples = 1,
      .sequence_length = 8,
      .shards = 1};
  EXPECT_THAT(error_of(options),
              HasSubstr("k.jsonl:1: no string \"text\": text_key says which key it is, here one of "
                        "\"content\", \"title\""));
  options.text_key = "content";
  EXPECT_THAT(letters_of(draw_all(options).samples.ids(0, 1)), HasSubstr("ccccccc"));
}

TEST_F(SamplesTest, ConversationsAreWrittenDownByTheModelsTemplate) {
  std::string lines;
  for (const char c : std::string("abc")) {
    const std::string text(10, c);
    lines += R"({"messages": [{"role": "user", "content": ")" + text +
             R"("}, {"role": "assistant", "content": "yes"}]})"
             "\n";
  }
  SampleOptions options{.text = write("chat.jsonl", lines),
                        .text_key = "messages",
                        .samples = 3,
                        .sequence_length = 20,
                        .shards = 1};
  ThreadPool threads(2);
  Listener listener;
  const auto drawn = [&] {
    return draw_samples(options, folder_.path(), ByteTokenizer(), threads, listener);
  };
  const auto error = [&] {
    try {
      (void)drawn();
    } catch (const InputError& wrong) {
      return std::string(wrong.what());
    }
    return std::string("no error");
  };
  EXPECT_THAT(error(), HasSubstr("chat_template: there is none"));
  write("chat_template.jinja",
        "<{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.role[0] + ':' + m.content + ';' }}{% endfor %}>");
  const Samples samples = drawn().samples;
  for (int i = 0; i < 3; ++i) {
    const std::string text = letters_of(samples.ids(i, 1));
    const std::string whole = "<u:" + std::string(10, text[8]) + ";a:yes;>";
    EXPECT_NE(whole.find(text), std::string::npos) << text << ": what is around is the template's";
  }
  EXPECT_THAT(
      listener.lines.at(0),
      testing::AllOf(HasSubstr("JSON lines of conversations, 3 documents, written down by "),
                     HasSubstr("chat_template.jinja")));

  write("chat.jsonl", lines + R"({"messages": [{"role": "system", "content": "x"}]})");
  EXPECT_THAT(error(), testing::AllOf(HasSubstr("chat.jsonl:4: the template in "),
                                      HasSubstr("says: no system")));
  write("chat.jsonl", lines + R"({"messages": "x"})");
  EXPECT_THAT(error(), HasSubstr("chat.jsonl:4: no list \"messages\""));
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "[";
  write("chat.jsonl", lines + R"({"messages": )" + deep + std::string(deep.size(), ']') + "}");
  EXPECT_THAT(error(), HasSubstr("chat.jsonl:4: nested deeper"));
  options.text_key = "text";
  write("chat.jsonl", R"({"text": [{"role": "user", "content": "x"}]})");
  EXPECT_THAT(error(), HasSubstr("no string \"text\""));
}

TEST_F(SamplesTest, NamesFileAndLineOfWhatIsWrong) {
  const auto error_of = [](const std::filesystem::path& file) {
    return SamplesTest::error_of({.text = file, .samples = 2, .sequence_length = 8, .shards = 2});
  };
  EXPECT_THAT(error_of("no/such.jsonl"), HasSubstr("no/such.jsonl"));
  EXPECT_THAT(error_of(write("a.jsonl", "{\"text\": \"fine\"}\n{broken\n")),
              HasSubstr("a.jsonl:2: not a JSON object"));
  EXPECT_THAT(error_of(write("b.jsonl", "\n{\"story\": \"x\"}\n")),
              HasSubstr("b.jsonl:2: no string \"text\""));
  EXPECT_THAT(error_of(write("c.jsonl", "{\"text\": 7}\n")), HasSubstr("c.jsonl:1"));
  EXPECT_THAT(error_of(write("d.jsonl", "\n \n")), HasSubstr("holds no text"));
  // What there is, what is needed, and what to change.
  EXPECT_THAT(error_of(write("e.jsonl", "{\"text\": \"abc\"}\n")),
              HasSubstr("e.jsonl: 1 document with 4 tokens (the longest has 4) make 0 windows by "
                        "drawing: windows, and calibration.samples: 2 of "
                        "calibration.sequence_length: 8 need 2 windows, 16 tokens. Use a shorter "
                        "sequence_length, or more text"));
  const std::string line = "{\"text\": \"abcd\"}\n";
  EXPECT_THAT(error_of(write("f.jsonl", line + line + line)),
              HasSubstr("15 tokens (the longest has 5) make 0 windows by drawing: windows, and "
                        "calibration.samples: 2 of calibration.sequence_length: 8 need 2 windows, "
                        "16 tokens. Use drawing: concatenated with at most 1 sample, a shorter"));
  EXPECT_THAT(error_of(write("g.jsonl", line + line + line + line)),
              testing::EndsWith("16 tokens. Use drawing: concatenated"));
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
