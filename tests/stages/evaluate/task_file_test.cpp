#include "stages/evaluate/task_file.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "tests/base/packed.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

class TaskFileTest : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_.path() / name, std::ios::binary) << text;
    return folder_.path() / name;
  }
  // What is wrong, without the folder.
  std::string error_of(const std::string& name, const std::string& text,
                       const std::vector<std::string>& columns = {}) const {
    const std::filesystem::path file = write(name, text);
    try {
      (void)read_task_file(file, columns);
    } catch (const InputError& error) {
      const std::string what = error.what();
      const std::string folder = folder_.path().string() + "/";
      return what.starts_with(folder) ? what.substr(folder.size()) : what;
    }
    return "none";
  }

  TemporaryFolder folder_;
};

TEST_F(TaskFileTest, JsonLinesAndArraysAreObjectsInTheirOrder) {
  const auto lines =
      read_task_file(write("a.jsonl", "\xef\xbb\xbf{\"b\": 1, \"a\": \"x\"}\r\n\n{}"));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].fields.dump(), R"({"b":1,"a":"x"})");
  EXPECT_TRUE(lines[1].where.ends_with("a.jsonl:3"));
  const auto array = read_task_file(write("a.json", "[{\"a\": 1},\n{\"a\": 2}]"));
  ASSERT_EQ(array.size(), 2u);
  EXPECT_EQ(array[1].fields["a"], 2);
  EXPECT_TRUE(array[1].where.ends_with("a.json: entry 2"));
}

TEST_F(TaskFileTest, TablesHaveQuotesAndColumns) {
  const auto table = read_task_file(
      write("a.csv", "question,answer\r\n\"one, \"\"two\"\"\nthree\",B\r\nfour,\"\"\n"));
  ASSERT_EQ(table.size(), 2u);
  EXPECT_EQ(table[0].text("question"), "one, \"two\"\nthree");
  EXPECT_EQ(table[0].text("answer"), "B");
  EXPECT_TRUE(table[1].where.ends_with("a.csv:4"));
  EXPECT_EQ(table[1].text("answer"), "");
  // Without a row of names, as MMLU was published.
  const auto plain = read_task_file(write("b.csv", "x,A\ny,B\n"), {"question", "answer"});
  ASSERT_EQ(plain.size(), 2u);
  EXPECT_EQ(plain[0].text("question"), "x");
  const auto tabs = read_task_file(write("a.tsv", "a\tb\n\"1\t2\n"));
  ASSERT_EQ(tabs.size(), 1u);
  EXPECT_EQ(tabs[0].text("a"), "\"1");
  EXPECT_EQ(tabs[0].text("b"), "2");
}

// Its name says what is in it, without what stands for the packing.
TEST_F(TaskFileTest, FilesMayBePacked) {
  const std::string lines = "{\"a\": 1}\n{\"a\": 2}\n", table = "a,b\n1,2\n";
  for (const auto& [name, bytes] :
       {std::pair("a.jsonl.gz", gzip(lines)), {"a.jsonl", zstd(lines)}, {"a.zst", zstd(lines)}}) {
    const auto records = read_task_file(write(name, bytes));
    ASSERT_EQ(records.size(), 2u) << name;
    EXPECT_EQ(records[1].fields["a"], 2);
    EXPECT_TRUE(records[1].where.ends_with(std::string(name) + ":2"));
  }
  for (const auto& [name, bytes] :
       {std::pair("a.csv.gz", gzip(table)), {"a.csv.zst", zstd(table)}, {"a.csv", gzip(table)}})
    EXPECT_EQ(read_task_file(write(name, bytes))[0].text("b"), "2") << name;
  EXPECT_EQ(error_of("a.jsonl.gz", gzip("{}\n{")), "a.jsonl.gz:2: not JSON (byte 2)");
  EXPECT_EQ(error_of("a.jsonl.gz", gzip(lines).substr(0, gzip(lines).size() - 9)),
            "a.jsonl.gz: a gzip file that is cut short");
  EXPECT_EQ(error_of("a.jsonl", gzip(zstd(lines))),
            "a.jsonl: is a zstd file, not JSON or a table in UTF-8");
}

TEST_F(TaskFileTest, WhatIsWrongIsNamedWithItsLine) {
  EXPECT_EQ(error_of("a.jsonl", ""), "a.jsonl: there is no document in it");
  EXPECT_EQ(error_of("a.jsonl", "{}\n{"), "a.jsonl:2: not JSON (byte 2)");
  EXPECT_EQ(error_of("a.jsonl", "{}\n\n[1]x"), "a.jsonl:3: not JSON (byte 4)");
  EXPECT_EQ(error_of("a.jsonl", "{}\n3\n"), "a.jsonl:2: is not a JSON object, {...}");
  EXPECT_EQ(error_of("a.jsonl", "{}\n{\"a\": \"\xff\"}"), "a.jsonl:2: is not UTF-8");
  EXPECT_EQ(error_of("a.jsonl", std::string("{}\0{}", 5)), "a.jsonl:1: not JSON: a NUL byte");
  EXPECT_EQ(
      error_of("a.jsonl", "{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}"),
      "a.jsonl:1: JSON nested too deeply");
  EXPECT_EQ(error_of("a.jsonl", "{}\n{\"a\": 1, \"a\": 2}"),
            "a.jsonl:2: the key \"a\" stands twice");
  EXPECT_EQ(error_of("a.json", "[{}, 1]"), "a.json: entry 2: is not a JSON object, {...}");
  EXPECT_EQ(error_of("a.jsonl", "{}\n{\"a\": 1, \"b\": {\"a\": 2}, \"a\": 1}"),
            "a.jsonl:2: the key \"a\" stands twice");
  EXPECT_EQ(error_of("a.jsonl", "[{\"b\": [{\"a\": 1}, {\"a\": 2}]}]"), "none");
  std::string many = "{\"k0\": 0";
  for (int i = 1; i <= 200000; ++i) many += ", \"k" + std::to_string(i) + "\": 0";
  EXPECT_EQ(error_of("a.jsonl", many + "}"), "a.jsonl:1: an object has more than 1000 keys");
  for (const char* name : {"a.jsonl", "a.csv", "a.tsv"}) {
    EXPECT_EQ(error_of(name, std::string("\xfd\x37zXZ\0", 6)),
              std::string(name) + ": is an xz file, not JSON or a table in UTF-8");
    EXPECT_EQ(error_of(name, std::string("\xff\xfe{\0}\0", 6)),
              std::string(name) + ": is UTF-16, not JSON or a table in UTF-8");
  }
  EXPECT_EQ(error_of("a.csv", "a,b\n1\n"), "a.csv:2: has 1 fields instead of 2");
  EXPECT_EQ(error_of("a.csv", "a,b\n1,\"2\n"), "a.csv:2: a quoted field does not end");
  EXPECT_EQ(error_of("a.csv", "a,b\n1,\"2\"3\n"), "a.csv:2: text behind a quoted field");
}

TEST_F(TaskFileTest, TextsAreTexts) {
  const auto record =
      read_task_file(write("a.jsonl", R"({"t": "x", "l": ["a", 1], "z": "\u0000"})"))[0];
  EXPECT_EQ(record.text("t"), "x");
  EXPECT_THROW((void)record.text("missing"), InputError);
  EXPECT_THROW((void)record.text("l"), InputError);
  EXPECT_THROW((void)record.text("z"), InputError);
}

}  // namespace
}  // namespace roundhouse
