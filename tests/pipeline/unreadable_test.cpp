// The program on files that cannot be read: they are named, nobody waits for them, and finished work stays.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <fstream>

#include "base/file.h"
#include "base/hash.h"
#include "pipeline/run/hdf5_store.h"
#include "tests/base/temporary_folder.h"
#include "tests/pipeline/program.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

// A run of one recipe that needs no calibration, on a copy of the bundled model.
class UnreadableTest : public testing::Test {
 protected:
  UnreadableTest() {
    const fs::path bundled = source_folder() / "tests/data/tiny-world";
    fs::create_directory(model());
    for (const char* name : {"config.json", "model.safetensors", "tokenizer.model",
                             "tokenizer_config.json", "generation_config.json", "test.txt"}) {
      fs::create_symlink(bundled / name, model() / name);
    }
    write_text_atomically(folder_.path() / "text.jsonl", "{\"text\": \"once\"}\n");
    write_text_atomically(folder_.path() / "config.yaml",
                          "model: " + model().string() + "\nrun: " + run_.string() +
                              "\nrecipes: [{method: rtn}]\ndevice: cpu\nthreads: 1\n"
                              "export: {formats: [compressed-tensors]}\n"
                              "evaluate: {original: false, perplexity: [{name: test, text: " +
                              (model() / "test.txt").string() + ", window: 64, limit: 1}]}\n");
  }
  fs::path model() const { return folder_.path() / "model"; }
  fs::path record() const { return run_ / "recipes/rtn-w4g128/block-0003.h5"; }

  // Nobody waits longer than a minute.
  Outcome run(const std::string& failures = "", const std::string& more = "") const {
    return command("run " + (folder_.path() / "config.yaml").string() + " " + more, failures);
  }
  Outcome command(const std::string& arguments, const std::string& failures = "") const {
    return run_program(folder_.path(), arguments,
                       failures.empty() ? "timeout 60"
                                        : "timeout 60 env FAIL_CALLS='" + failures +
                                              "' LD_PRELOAD=" ROUNDHOUSE_FAILING_CALLS);
  }
  std::string journal() const { return read_text_file(run_ / "journal.jsonl"); }
  int blocks_made() const {
    const std::string text = journal();
    int count = 0;
    for (std::size_t at = 0; (at = text.find("\"event\":\"block\"", at)) != text.npos; ++at)
      ++count;
    return count;
  }

  // The finished run goes on although these calls fail, and makes nothing again.
  void expect_no_matter(const std::string& failures) const {
    const Outcome again = run(failures);
    EXPECT_EQ(again.exit_code, 0) << failures << "\n" << again.err;
    EXPECT_THAT(again.err, Not(HasSubstr("damaged"))) << failures;
    EXPECT_EQ(blocks_made(), 6) << failures;
  }
  // It stops, says why in these words, and makes nothing again.
  void expect_stop(const std::string& failures, const std::string& why) const {
    const std::string before = sha256_hex_of_file(record());
    const Outcome again = run(failures);
    EXPECT_NE(again.exit_code, 0) << failures;
    EXPECT_THAT(again.err, HasSubstr(record().string() + ": " + why)) << failures;
    EXPECT_THAT(again.err, Not(HasSubstr("made again"))) << failures;
    EXPECT_EQ(blocks_made(), 6) << failures;
    EXPECT_EQ(sha256_hex_of_file(record()), before) << failures;
  }

  TemporaryFolder folder_;
  fs::path run_ = folder_.path() / "run";
};

#ifdef ROUNDHOUSE_FAILING_CALLS

TEST_F(UnreadableTest, RecordsNeedNoLocks) {
  ASSERT_EQ(run().exit_code, 0);
  for (const int error : {ENOLCK, EAGAIN, ENOSYS, 524 /* NFS: ENOTSUPP */}) {
    expect_no_matter("flock " + std::to_string(error) + " .h5 -1");
  }
}

TEST_F(UnreadableTest, ARecordThatCannotBeReadIsNotDamaged) {
  ASSERT_EQ(run().exit_code, 0);
  expect_stop("pread 5 block-0003.h5 -1", "Input/output error (errno 5)");
  expect_stop("open 116 block-0003.h5 -1", "Stale file handle (errno 116)");
  expect_stop("open 37 block-0003.h5 -1", "No locks available (errno 37)");
  expect_stop("open 13 block-0003.h5 -1", "Permission denied");
}

TEST_F(UnreadableTest, WhatPassesByItselfIsTriedAgain) {
  ASSERT_EQ(run().exit_code, 0);
  expect_no_matter("pread 5 block-0003.h5 2;open 116 block-0004.h5 1;pread 116 block-0001.h5 1");
  expect_no_matter("open 11 block-0000.h5 3;pread 110 SHA256SUMS 1;pread 5 tokenizer.model 1");
}

// As on NFS, where a client remembers for a while that a file was not there.
TEST_F(UnreadableTest, WhatItsFolderListsIsLookedForUntilItIsThere) {
  ASSERT_EQ(run().exit_code, 0);
  expect_no_matter("open 2 block-0003.h5 4;open 2 results/rtn-w4g128.json 3");
  expect_no_matter("open 2 compressed-tensors.json 5;open 2 block-0000.h5 2");
}

// Whatever file it is: never a wrong result.
TEST_F(UnreadableTest, EveryFileThatCannotBeReadIsNamed) {
  ASSERT_EQ(run().exit_code, 0);
  for (const char* name :
       {"config.yaml", "/config.json", "tokenizer_config.json", "tokenizer.model", "identity.json",
        "journal.jsonl", "SHA256SUMS", "compressed-tensors.json", "results/rtn-w4g128.json"}) {
    const Outcome again = run("pread 5 " + std::string(name) + " -1");
    EXPECT_EQ(again.exit_code, 1) << name << ": " << again.err;
    EXPECT_THAT(again.err, HasSubstr(name));
    EXPECT_THAT(again.err, HasSubstr("Input/output error (errno 5)")) << name;
    EXPECT_EQ(blocks_made(), 6) << name;
  }
}

// They would be missed only by the export, after all blocks.
TEST_F(UnreadableTest, ASideFileThatCannotBeReadIsNamedBeforeTheFirstBlock) {
  write_text_atomically(model() / "LICENSE", "free");
  const Outcome outcome = run("open 13 /LICENSE -1");
  EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr((model() / "LICENSE").string() + ": Permission denied"));
  EXPECT_FALSE(fs::exists(run_ / "recipes")) << "blocks were quantized";
}

#endif

// Each of these waited for somebody to write into the pipe.
TEST_F(UnreadableTest, APipeInPlaceOfAFileIsRefused) {
  ASSERT_EQ(run().exit_code, 0);
  const auto refusal = [&](const fs::path& file, const std::string& arguments) {
    const fs::path aside = folder_.path() / "aside";
    const bool there = fs::exists(fs::symlink_status(file));
    if (there) fs::rename(file, aside);
    ASSERT_EQ(::mkfifo(file.c_str(), 0666), 0) << file;
    const Outcome outcome = command(arguments);
    fs::remove(file);
    if (there) fs::rename(aside, file);
    EXPECT_EQ(outcome.exit_code, 2) << file << ": " << outcome.out << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(file.string()));
    EXPECT_THAT(outcome.err, testing::AnyOf(HasSubstr("not a regular file"),
                                            HasSubstr("not a file"), HasSubstr("there is no file")))
        << file;
  };
  const std::string run = "run " + (folder_.path() / "config.yaml").string();
  refusal(folder_.path() / "config.yaml", run);
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.model",
                           "tokenizer_config.json", "test.txt"}) {
    refusal(model() / name, run);
  }
  for (const char* name : {"lease", "journal.jsonl"}) refusal(run_ / name, run);
  refusal(run_ / "journal.jsonl", "status " + run_.string());
  refusal(run_ / "journal.jsonl", "report " + run_.string());
  refusal(run_ / "config.yaml", "report " + run_.string());
  refusal(folder_.path() / "none.txt", "evaluate " + model().string() + " --window 64 --text " +
                                           (folder_.path() / "none.txt").string());
  refusal(folder_.path() / "text.jsonl",
          run + " --set run=" + (folder_.path() / "other").string() +
              " --set calibration.text=" + (folder_.path() / "text.jsonl").string());

  // The other kinds of weights and tokenizers.
  fs::rename(model() / "model.safetensors", folder_.path() / "weights");
  for (const char* name :
       {"model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    refusal(model() / name, run);
  }
  write_text_atomically(model() / "model.safetensors.index.json",
                        "{\"weight_map\": {\"a\": \"part.safetensors\"}}");
  refusal(model() / "part.safetensors", run);
  fs::remove(model() / "model.safetensors.index.json");
  fs::rename(folder_.path() / "weights", model() / "model.safetensors");
  fs::remove(model() / "tokenizer.model");
  refusal(model() / "tokenizer.json", run);
  write_text_atomically(model() / "merges.txt", "");
  refusal(model() / "vocab.json", run);
  fs::remove(model() / "merges.txt");
  fs::create_symlink(source_folder() / "tests/golden/tokenizer/bpe/vocab.json",
                     model() / "vocab.json");
  refusal(model() / "merges.txt", run);
}

// What the run itself has written is made again.
TEST_F(UnreadableTest, APipeInPlaceOfWhatARunWritesIsDamage) {
  ASSERT_EQ(run().exit_code, 0);
  for (const std::string name :
       {"recipes/rtn-w4g128/block-0003.h5", "identity.json", "results/rtn-w4g128.json",
        "export/rtn-w4g128/compressed-tensors.json",
        "export/rtn-w4g128/compressed-tensors/SHA256SUMS"}) {
    fs::remove(run_ / name);
    ASSERT_EQ(::mkfifo((run_ / name).c_str(), 0666), 0);
    EXPECT_EQ(command("verify " + run_.string()).exit_code, 1) << name;
    const Outcome again = run();
    EXPECT_EQ(again.exit_code, 0) << name << ": " << again.err;
    EXPECT_THAT(again.err, HasSubstr("is damaged (")) << name;
    EXPECT_EQ(command("verify " + run_.string()).exit_code, 0) << name;
  }
}

}  // namespace
}  // namespace roundhouse
