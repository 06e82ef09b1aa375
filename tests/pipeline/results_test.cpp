// Exports beside others: which are taken without being hashed, and who may write.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "pipeline/run/export_note.h"
#include "pipeline/run/output_guard.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/sealed_json.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using testing::IsEmpty;

class ResultsTest : public testing::Test {
 protected:
  ResultsTest() {
    fs::create_directories(directory_);
    write("model.safetensors", "weights");
    write("config.json", "{}");
    write("SHA256SUMS", sha256_hex_of_file(directory_ / "config.json") + "  config.json\n" +
                            sha256_hex_of_file(directory_ / "model.safetensors") +
                            "  model.safetensors\n");
    note({{"SHA256SUMS", fs::file_size(directory_ / "SHA256SUMS")},
          {"config.json", 2},
          {"model.safetensors", 7}});
  }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(directory_ / name) << text;
  }
  void note(const nlohmann::json& bytes) const {
    wait_for_the_clock();
    nlohmann::json object = {
        {"identity", "1"}, {"model", "2"}, {"sums", sha256_hex_of_file(directory_ / "SHA256SUMS")}};
    if (!bytes.is_null()) object["bytes"] = bytes;
    write_sealed_json(export_note_path(directory_), kKey, object);
    wait_for_the_clock();
  }
  // Times of files are those of the kernel's last tick.
  static void wait_for_the_clock() { std::this_thread::sleep_for(std::chrono::milliseconds(30)); }
  // How many files a start hashes; what it finds.
  int look(std::vector<std::string>& faults) const {
    int hashed = 0;
    faults = check_export(directory_, kKey, Hashing::kUnlessUntouched, [&] { ++hashed; }).faults;
    return hashed;
  }

  static constexpr const char* kKey = "export/rtn/dense";
  TemporaryFolder folder_;
  fs::path directory_ = folder_.path() / "rtn" / "dense";
};

TEST_F(ResultsTest, AFinishedExportIsNotHashedAgain) {
  std::vector<std::string> faults;
  EXPECT_EQ(look(faults), 0);
  EXPECT_THAT(faults, IsEmpty());
  int hashed = 0;
  EXPECT_THAT(check_export(directory_, kKey, Hashing::kAll, [&] { ++hashed; }).faults, IsEmpty());
  EXPECT_EQ(hashed, 2) << "verify hashes";
}

TEST_F(ResultsTest, WhatChangedSinceIsSeen) {
  std::vector<std::string> faults;
  write("model.safetensors", "wEights");
  EXPECT_EQ(look(faults), 2);
  EXPECT_THAT(faults, testing::ElementsAre("model.safetensors: damaged"));
  write("model.safetensors", "weights");
  EXPECT_EQ(look(faults), 2) << "touched";
  EXPECT_THAT(faults, IsEmpty());
  wait_for_the_clock();
  EXPECT_EQ(look(faults), 0) << "it was found whole";
  write("model.safetensors", "weight");
  look(faults);
  EXPECT_THAT(faults, testing::ElementsAre("model.safetensors: damaged"));
  write("model.safetensors", "weights");
  write("more", "");
  look(faults);
  EXPECT_THAT(faults, testing::ElementsAre("more: not listed"));
}

TEST_F(ResultsTest, AnExportWithoutLengthsIsHashed) {
  note(nullptr);
  std::vector<std::string> faults;
  EXPECT_EQ(look(faults), 2);
  EXPECT_THAT(faults, IsEmpty());
}

TEST_F(ResultsTest, OneWriterAtATime) {
  const auto go_on = [] { return true; };
  int said = 0;
  const auto say = [&](const std::string&) { ++said; };
  const fs::path lock = directory_.native() + ".lock";
  auto first = std::make_unique<OutputGuard>(directory_, say, go_on);
  EXPECT_TRUE(fs::exists(lock));
  EXPECT_EQ(said, 0);
  int ticks = 0;
  // The second waits; after a few looks the first ends.
  const OutputGuard second(directory_, say, [&] {
    if (++ticks == 3) first.reset();
    return true;
  });
  EXPECT_EQ(said, 1);
  EXPECT_GE(ticks, 3);
  EXPECT_TRUE(fs::exists(lock)) << "the second's own";
}

TEST_F(ResultsTest, WaitingForAnotherWriterEndsWhenAskedTo) {
  const auto say = [](const std::string&) {};
  const OutputGuard first(directory_, say, [] { return true; });
  int looks = 0;
  EXPECT_THROW(OutputGuard(directory_, say, [&] { return ++looks < 3; }), Error);
  EXPECT_TRUE(fs::exists(directory_.native() + ".lock")) << "the first's";
}

TEST_F(ResultsTest, AGuardLeavesNothing) {
  {
    const OutputGuard guard(
        directory_, [](const std::string&) {}, [] { return true; });
  }
  EXPECT_FALSE(fs::exists(directory_.native() + ".lock"));
}

}  // namespace
}  // namespace roundhouse
