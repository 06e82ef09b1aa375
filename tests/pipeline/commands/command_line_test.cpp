// Runs the program itself: what it prints where, and its exit codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "base/file.h"
#include "base/hash.h"
#include "pipeline/run/hdf5_store.h"
#include "pipeline/run/sealed_json.h"
#include "tests/base/temporary_folder.h"
#include "tests/pipeline/program.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::MatchesRegex;

class CommandLineTest : public testing::Test {
 protected:
  Outcome run(const std::string& arguments, const std::string& launcher = "") const {
    return run_program(folder_.path(), arguments, launcher);
  }
  // Wrong input: exit code 2, one line on stderr, nothing on stdout.
  std::string refusal(const std::string& arguments) const {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << arguments;
    EXPECT_EQ(outcome.out, "") << arguments;
    EXPECT_TRUE(outcome.err.starts_with("roundhouse: ")) << outcome.err;
    EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << outcome.err;
    return outcome.err;
  }
  std::string at(const std::string& name) const { return (folder_.path() / name).string(); }

  // A run of the bundled model with one recipe that needs no calibration.
  Outcome quantize(const std::string& more = "") const {
    write_text_atomically(
        folder_.path() / "config.yaml",
        "model: tests/data/tiny-world\nrun: " + at("run") +
            "\nrecipes: [{method: rtn}]\ndevice: cpu\ncalibration: {sequence_length: 512}\n"
            "evaluate: {original: false}\n");
    return run("run " + at("config.yaml") + " " + more);
  }

  TemporaryFolder folder_;
};

TEST_F(CommandLineTest, HelpOfRunSaysWhatMakesACpuFaster) {
  EXPECT_THAT(run("run --help").out, HasSubstr("--set cpu_precision=bf16"));
}

TEST_F(CommandLineTest, HelpGoesToStandardOutputWithExamples) {
  const Outcome all = run("--help");
  EXPECT_EQ(all.exit_code, 0);
  EXPECT_EQ(all.err, "");
  for (const char* command : {"run", "export", "evaluate", "status", "verify", "report", "synth"}) {
    EXPECT_THAT(all.out, HasSubstr(command));
    const Outcome one = run(std::string(command) + " --help");
    EXPECT_EQ(one.exit_code, 0) << command;
    EXPECT_EQ(one.err, "") << command;
    EXPECT_THAT(one.out, HasSubstr("Example")) << command;
    EXPECT_THAT(one.out, HasSubstr(std::string("  roundhouse ") + command)) << command;
  }
  EXPECT_THAT(run("--version").out,
              MatchesRegex("roundhouse [0-9]+\\.[0-9]+\\.[0-9]+ \\(commit "
                           "([0-9a-f]+(-dirty)?|unknown), [A-Za-z]+, with(out)? CUDA\\)\n"));
}

TEST_F(CommandLineTest, WrongUsageIsOneLineAndExitCode2) {
  refusal("");
  EXPECT_THAT(refusal("fly"), HasSubstr("fly"));
  EXPECT_THAT(refusal("run"), HasSubstr("CONFIG"));
  EXPECT_THAT(refusal("run a.yaml b.yaml"), HasSubstr("b.yaml"));
  EXPECT_THAT(refusal("run --sett x=1 a.yaml"), HasSubstr("--sett"));
  EXPECT_THAT(refusal("export runs/x --format zip"), HasSubstr("zip"));
  EXPECT_THAT(refusal("evaluate runs/x --window 12"), HasSubstr("--text"));
  EXPECT_THAT(refusal("evaluate runs/x --text no-such-file"), HasSubstr("no-such-file"));
  EXPECT_THAT(refusal("evaluate runs/x --text tests/data/tiny-world/test.txt --name ../x"),
              HasSubstr("--name"));
  EXPECT_THAT(refusal("synth --like nothing " + at("x")), HasSubstr("nothing"));
  EXPECT_THAT(refusal("status"), HasSubstr("RUN"));
}

// Whatever words and names come from outside, and however long they are.
TEST_F(CommandLineTest, MessagesAreBoundedAndPrintable) {
  const std::string long_word(100000, 'x');
  const std::vector<std::string> all = {
      refusal("'" + long_word + "'"),
      refusal("run --" + long_word),
      refusal("run configs/demo.yaml --set " + long_word + "=1"),
      refusal("run configs/demo.yaml --set recipes.0." + long_word + "=1"),
      refusal("run configs/demo.yaml --set recipes.0.method=" + long_word),
      refusal("run configs/demo.yaml --set device=" + long_word),
      refusal("status 'a\x1b[2J\xff\nb'"),
      refusal("verify 'a\x1b[2J\xff\nb'"),
      refusal("run 'a\x1b[2J\xff\nb'"),
  };
  for (const std::string& line : all) {
    EXPECT_LE(line.size(), 4100u) << line;
    EXPECT_TRUE(std::ranges::none_of(line.substr(0, line.size() - 1), [](char c) {
      return static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f;
    })) << line;
  }
  EXPECT_THAT(all.back(), HasSubstr("a\\x1b[2J\\xff\\nb"));
}

TEST_F(CommandLineTest, WhatAFileSystemRefusesIsWrongInput) {
  write_text_atomically(folder_.path() / "file", "x");
  const std::string line =
      refusal("run configs/tiny-world.yaml --set run=" + at("file") + "/below");
  EXPECT_THAT(line, MatchesRegex("roundhouse: cannot create directories .*/file/below: Not a "
                                 "directory: .*name another path\n"));
  EXPECT_THAT(refusal("run configs/tiny-world.yaml --set run=" + std::string(300, 'x')),
              HasSubstr("File name too long"));
}

TEST_F(CommandLineTest, ARecipeThatAFormatCannotHoldIsNamedWithItsLine) {
  write_text_atomically(folder_.path() / "config.yaml",
                        "model: tests/data/tiny-world\nrun: " + at("run") +
                            "\nrecipes:\n  - method: rtn\n    bits: 4\n    group_size: 96\n"
                            "device: cpu\nexport: {formats: [gptq]}\n");
  EXPECT_THAT(refusal("run " + at("config.yaml")),
              HasSubstr(at("config.yaml") + ":6: recipes[0].group_size: recipe rtn-w4g96 cannot be "
                                            "exported as gptq: "));
  EXPECT_THAT(refusal("run " + at("config.yaml") +
                      " --set recipes.0.group_size=64 --set recipes.0.bits=3 --set "
                      "export.formats.0=awq"),
              HasSubstr("--set recipes.0.bits: recipes[0].bits: recipe rtn-w3g64 cannot be "
                        "exported as awq: "));
}

// What only the export would meet, hours later.
TEST_F(CommandLineTest, AForeignFolderInAnExportsPlaceIsRefusedBeforeTheFirstBlock) {
  fs::create_directories(folder_.path() / "run/export/rtn-w4g128/gptq");
  write_text_atomically(folder_.path() / "run/export/rtn-w4g128/gptq/mine.txt", "mine");
  const Outcome outcome = quantize("--set export.formats=[gptq]");
  EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("run/export/rtn-w4g128/gptq exists and is not an earlier"));
  EXPECT_FALSE(fs::exists(folder_.path() / "run/recipes")) << "blocks were quantized";
}

TEST_F(CommandLineTest, ARunCannotBeTheFolderOfItsModel) {
  EXPECT_THAT(refusal("run configs/tiny-world.yaml --set run=tests/data/../data/tiny-world"),
              HasSubstr("--set run: is the folder of the model"));
}

// Whole in themselves, but not of this run.
TEST_F(CommandLineTest, VerifyComparesExportsAndResultsWithTheRun) {
  ASSERT_EQ(quantize("--set export.formats=[gptq] --set "
                     "'evaluate.perplexity=[{text: tests/data/tiny-world/test.txt, window: 64, "
                     "limit: 1}]'")
                .exit_code,
            0);
  ASSERT_EQ(run("verify " + at("run")).exit_code, 0);
  const auto said = [&](const std::string& file, const std::string& key, const std::string& name) {
    const fs::path path = folder_.path() / "run" / file;
    const std::string before = read_text_file(path);
    nlohmann::json object = *read_sealed_json(path, key).object;
    EXPECT_FALSE(object.at(name).get<std::string>().empty());
    object[name] = std::string(32, '0');
    write_sealed_json(path, key, object);
    const Outcome verdict = run("verify " + at("run"));
    EXPECT_EQ(verdict.exit_code, 1) << file << " " << name;
    write_text_atomically(path, before);
    return verdict.out;
  };
  const std::string note = "export/rtn-w4g128/gptq.json", results = "results/rtn-w4g128.json";
  const std::string key = "export/rtn-w4g128/gptq";
  EXPECT_THAT(said(note, key, "model"), HasSubstr(key + ": made of another model than the run's"));
  EXPECT_THAT(said(note, key, "settings"),
              HasSubstr(key + ": made with other settings than the run's"));
  EXPECT_THAT(said(results, results, "model"),
              HasSubstr(results + ": made of another model than the run's"));
  EXPECT_THAT(said(results, results, "identity"),
              HasSubstr(results + ": made with other settings than the run's"));
}

TEST_F(CommandLineTest, WrongInputIsOneLineAndExitCode2) {
  EXPECT_THAT(refusal("run " + at("none.yaml")), HasSubstr("none.yaml"));
  EXPECT_THAT(refusal("run configs/demo.yaml --set calibration.samples=-1 --set run=" + at("run")),
              HasSubstr("--set calibration.samples: must be from 1 to"));
  EXPECT_THAT(refusal("run --set nonsense=1 configs/demo.yaml"),
              HasSubstr("unknown key \"nonsense\""))
      << "an option that takes one value leaves the next word alone";
  for (const char* command : {"status", "verify", "export", "report"}) {
    EXPECT_THAT(refusal(std::string(command) + " " + at("nowhere")), HasSubstr("nowhere"))
        << command;
  }
  fs::create_directory(folder_.path() / "empty");
  EXPECT_THAT(refusal("verify " + at("empty")), HasSubstr("neither a run"));
}

// A job of days must not end with a line about its last text.
TEST_F(CommandLineTest, EvaluationTextsAreJudgedBeforeTheFirstBlock) {
  const auto refused = [&](const std::string& name, const std::string& text) {
    write_text_atomically(folder_.path() / name, text);
    const Outcome outcome =
        quantize("--set 'evaluate.perplexity=[{text: " + at(name) + ", window: 64}]'");
    EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
    EXPECT_FALSE(fs::exists(folder_.path() / "run")) << "the run was begun";
    return outcome.err;
  };
  EXPECT_THAT(refused("short.txt", "The red ball is in the box."),
              MatchesRegex("(.|\n)*short.txt: [0-9]+ tokens do not fill one window of 64\n"));
  std::string lines;
  for (int i = 0; i < 100; ++i) lines += "{\"text\": \"The red ball is in the box.\"}\n";
  EXPECT_THAT(
      refused("lines.txt", lines),
      HasSubstr("lines.txt: JSON lines, 100 documents, but perplexity is measured on plain text"));
  // "ll" is within pieces of the vocabulary, so that nothing can be cut here; far behind the first window.
  std::string stretch;
  for (int i = 0; i < 60; ++i) stretch += "The red ball is in the box. ";
  stretch += std::string((1 << 24) + (1 << 17), 'l');
  EXPECT_THAT(refused("stretch.txt", stretch),
              HasSubstr("stretch.txt: a text with more than 16 MiB in which no word ends"));
  EXPECT_THAT(refused("latin.txt", "th\xe9 end"), HasSubstr("latin.txt:1: is not UTF-8"));
  EXPECT_THAT(refusal("evaluate tests/data/tiny-world --window 64 --text " + at("lines.txt")),
              HasSubstr("lines.txt: JSON lines"));
}

// What is refused leaves nothing behind that would refuse the same start with its settings put right.
TEST_F(CommandLineTest, ARefusedStartClaimsNothing) {
  write_text_atomically(folder_.path() / "bad.jsonl", "{\"ctx\": 3}\n");
  const Outcome task = quantize("--set 'evaluate.tasks=[{name: own, file: " + at("bad.jsonl") +
                                ", template: hellaswag}]'");
  EXPECT_EQ(task.exit_code, 2) << task.err;
  EXPECT_FALSE(fs::exists(folder_.path() / "run"));
  // Found only when windows are drawn, which takes a while: settings are written by then, and bind nobody.
  write_text_atomically(folder_.path() / "few.jsonl",
                        "{\"text\": \"The red ball is in the box.\"}\n");
  const std::string drawn = "--set calibration.text=" + at("few.jsonl") +
                            " --set 'recipes=[{method: gptq}]' --set calibration.samples=2";
  const Outcome many = quantize(drawn + " --set calibration.sequence_length=256");
  EXPECT_EQ(many.exit_code, 2) << many.err;
  EXPECT_FALSE(fs::exists(folder_.path() / "run/calibration.h5"));
  const Outcome fewer = quantize(drawn + " --set calibration.sequence_length=4");
  EXPECT_EQ(fewer.exit_code, 0) << fewer.err;
}

// The second of two walks of gradients would be known to lack text only after the first.
TEST_F(CommandLineTest, TextForEveryWalkIsDrawnBeforeTheFirstBlock) {
  write_text_atomically(folder_.path() / "few.jsonl",
                        "{\"text\": \"The red ball is in the box.\"}\n");
  const Outcome outcome = quantize(
      "--set calibration.shards=2 --set calibration.text=" + at("few.jsonl") +
      " --set 'recipes=[{method: squeezellm, gradients: {samples: 2, sequence_length: 4}},"
      " {method: squeezellm, name: long, gradients: {samples: 2, sequence_length: 256}}]'");
  EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("few.jsonl"));
  EXPECT_FALSE(fs::exists(folder_.path() / "run/recipes")) << "a block was made before";
}

TEST_F(CommandLineTest, StandardOutputThatIsFullIsAnError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  ASSERT_EQ(quantize().exit_code, 0);
  const int status = std::system(
      (ROUNDHOUSE_PROGRAM " status " + at("run") + " > /dev/full 2> /dev/null").c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
}

TEST_F(CommandLineTest, AnotherTextIsNoPartOfTheRunsConfig) {
  ASSERT_EQ(quantize().exit_code, 0);
  const std::string config = read_text_file(folder_.path() / "run/config.yaml");
  const std::string test =
      read_text_file(source_folder() / "tests/data/tiny-world/test.txt").substr(0, 3000);
  write_text_atomically(folder_.path() / "other.txt", test);
  const Outcome measured =
      run("evaluate " + at("run") + " --recipe rtn-w4g128 --window 64 --text " + at("other.txt"));
  EXPECT_EQ(measured.exit_code, 0) << measured.err;
  EXPECT_THAT(read_text_file(folder_.path() / "run/results/rtn-w4g128.json"), HasSubstr("other"));
  EXPECT_EQ(read_text_file(folder_.path() / "run/config.yaml"), config);
  const Outcome whole = run("verify " + at("run"));
  EXPECT_EQ(whole.exit_code, 0) << whole.out;

  const Outcome less = run("evaluate " + at("run") +
                           " --recipe original --window 64 --limit 2 --text " + at("other.txt"));
  EXPECT_EQ(less.exit_code, 0) << less.err;
  EXPECT_THAT(less.out, AllOf(HasSubstr("limit 0, not 2"), HasSubstr("they do not compare"),
                              HasSubstr("other: of the first 2 windows only")));
}

// Exports carry along any file of the model, so a name alone makes no run of a folder.
TEST_F(CommandLineTest, AnExportWithAConfigOfItsOwnIsVerifiedAsAnExport) {
  fs::create_directories(folder_.path() / "export");
  write_text_atomically(folder_.path() / "export/config.yaml", "a: 1\n");
  write_text_atomically(
      folder_.path() / "export/SHA256SUMS",
      sha256_hex_of_file(folder_.path() / "export/config.yaml") + "  config.yaml\n");
  const Outcome outcome = run("verify " + at("export"));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.out;
  EXPECT_EQ(outcome.out, "1 whole, 0 damaged or missing\n");
}

TEST_F(CommandLineTest, ARunIsSeenByStatusAndVerifyAndMendedAfterDamage) {
  const Outcome first = quantize();
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_THAT(first.err, HasSubstr("[6/6] rtn-w4g128 block 5"));

  const Outcome status = run("status " + at("run"));
  EXPECT_EQ(status.exit_code, 0) << status.err;
  EXPECT_THAT(status.out, HasSubstr("rtn-w4g128"));
  EXPECT_THAT(status.out, HasSubstr("6/6 blocks"));
  EXPECT_THAT(status.out, HasSubstr("last: "));
  EXPECT_EQ(run("status --follow " + at("run")).exit_code, 0)
      << "a run that is done is not followed further";

  const Outcome whole = run("verify " + at("run"));
  EXPECT_EQ(whole.exit_code, 0) << whole.out;
  EXPECT_EQ(whole.out, "11 whole, 0 damaged or missing\n");

  const fs::path record = folder_.path() / "run/recipes/rtn-w4g128/block-0003.h5";
  std::fstream file(record, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(5000);
  file.put('x');
  file.put('y');
  file.close();
  const Outcome damaged = run("verify " + at("run"));
  EXPECT_EQ(damaged.exit_code, 1);
  EXPECT_THAT(damaged.out, HasSubstr(record.string() + ": its content does not match its hash"));
  EXPECT_THAT(damaged.out, HasSubstr("10 whole, 1 damaged or missing\n"));

  const Outcome again = quantize();
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_THAT(
      again.err,
      HasSubstr("recipes/rtn-w4g128/block-0003 is damaged (its content does not match its hash)"));
  EXPECT_EQ(run("verify " + at("run")).exit_code, 0);
}

// Batch scripts believe no exit code without it.
TEST_F(CommandLineTest, TheLastLineOfTheJournalSaysHowTheLaunchOfThatNameEnded) {
  ::setenv("ROUNDHOUSE_LAUNCH", "7.1.2-x", 1);
  const Outcome done = quantize();
  ::unsetenv("ROUNDHOUSE_LAUNCH");
  ASSERT_EQ(done.exit_code, 0) << done.err;
  const std::string journal = read_text_file(folder_.path() / "run/journal.jsonl");
  const std::string last = journal.substr(journal.rfind('\n', journal.size() - 2) + 1);
  EXPECT_THAT(last, testing::AllOf(HasSubstr(R"("event":"end","exit_code":0,)"),
                                   HasSubstr(R"("launch":"7.1.2-x")")));
  EXPECT_EQ(run("status --follow " + at("run")).exit_code, 0) << "still a run that is done";
  EXPECT_EQ(run("verify " + at("run")).exit_code, 0);
}

// Of a run that was cut off, and of one whose record is damaged since.
TEST_F(CommandLineTest, WhatIsNotCompleteIsSaidAndNotPassedOverInSilence) {
  const std::string two =
      "--set 'recipes=[{method: rtn}, {method: rtn, bits: 3}]' "
      "--set 'export={formats: [dense]}'";
  ASSERT_EQ(quantize(two).exit_code, 0);
  EXPECT_EQ(run("export --check " + at("run")).exit_code, 0);
  fs::resize_file(folder_.path() / "run/recipes/rtn-w3g128/block-0002.h5", 1000);
  const char* const left_out =
      "rtn-w3g128 is not complete and is left out: `roundhouse run` goes on with it";
  const Outcome checked = run("export --check " + at("run"));
  EXPECT_EQ(checked.exit_code, 1) << "an export was not checked";
  EXPECT_THAT(checked.err, AllOf(HasSubstr("block-0002 is damaged"), HasSubstr(left_out)));
  EXPECT_THAT(run("export --format gptq " + at("run")).err, HasSubstr(left_out));
  EXPECT_THAT(
      run("evaluate --limit 1 --window 64 --text tests/data/tiny-world/test.txt " + at("run")).err,
      HasSubstr(left_out));
  // Somebody stopped it: nothing is forecast.
  std::ofstream(folder_.path() / "run/journal.jsonl", std::ios::app)
      << R"({"event": "block", "recipe": "rtn-w3g128", "block": 1, "seconds": 1})"
         "\n";
  const Outcome status = run("status " + at("run"));
  EXPECT_THAT(status.out, HasSubstr("no job is at work here: `roundhouse run CONFIG` goes on\n"));
  EXPECT_THAT(status.out, testing::Not(AnyOf(HasSubstr("left, done about"), HasSubstr("now: "))));
}

TEST_F(CommandLineTest, FoldersThatAreNoneOfItsBusinessStayAsTheyAre) {
  for (const char* command : {"report", "timeline", "status"}) {
    EXPECT_THAT(refusal(std::string(command) + " " + at("typo")),
                HasSubstr("typo is not the folder of a run: it has no config.yaml"));
  }
  EXPECT_THAT(refusal("evaluate " + at("typo")), HasSubstr("there is no folder"));
  EXPECT_FALSE(fs::exists(at("typo")));
  fs::copy(source_folder() / "tests/data/tiny-world", at("model"));
  ASSERT_EQ(quantize("--set model=" + at("model")).exit_code, 0);
  EXPECT_THAT(refusal("export " + at("run") + " --output " + at("model")),
              HasSubstr("is the folder of the model: choose another one"));
}

// They would be refused: no unit of them is done.
TEST_F(CommandLineTest, PlanDoesNotTakeARunOfOtherSettingsForItsOwn) {
  ASSERT_EQ(quantize().exit_code, 0);
  const std::string plan = "plan --device cpu " + at("config.yaml");
  EXPECT_THAT(run(plan).out, HasSubstr("6 units of which 0 are to be made"));
  const std::string other = run(plan + " --set cpu_precision=bf16").out;
  EXPECT_THAT(other, AllOf(HasSubstr("6 units of which 6 are to be made"),
                           HasSubstr("holds a run with other settings, which will be refused: "
                                     "cpu_precision")));
}

// A number that is not finite is null in JSON.
TEST_F(CommandLineTest, AJournalWithNullsAndOtherTypesIsReported) {
  ASSERT_EQ(quantize().exit_code, 0);
  std::ofstream(folder_.path() / "run/journal.jsonl", std::ios::app)
      << R"({"event": "block", "recipe": "rtn-w4g128", "block": 2, "relative_error": null, "seconds": null,)"
         R"( "bits_per_weight": null, "linears": [null, 3, {"damping_tries": null}]})"
         "\n"
      << R"({"event": 1, "recipe": null, "block": "x"})"
         "\n"
      << R"({"event": "quantize", "device": 1, "ranks": "two", "mesh": 3})"
         "\n";
  const Outcome report = run("report " + at("run"));
  EXPECT_EQ(report.exit_code, 0) << report.err;
  EXPECT_THAT(report.out, HasSubstr("not finite"));
  const Outcome status = run("status " + at("run"));
  EXPECT_EQ(status.exit_code, 0) << status.err;
  const Outcome again = quantize();
  EXPECT_EQ(again.exit_code, 0) << again.err;
}

// Whether or not a token of the texts uses that row, and before any block is made.
TEST_F(CommandLineTest, WhatIsNotQuantizedMustBeFinite) {
  const fs::path bundled = source_folder() / "tests/data/tiny-world";
  const fs::path model = folder_.path() / "model";
  fs::create_directory(model);
  for (const char* name : {"config.json", "tokenizer.model", "tokenizer_config.json"}) {
    fs::copy_file(bundled / name, model / name);
  }
  const std::string whole = read_text_file(bundled / "model.safetensors");
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, whole.data(), sizeof header_bytes);
  const auto header = nlohmann::json::parse(whole.substr(8, header_bytes));
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
                           "model.layers.5.post_attention_layernorm.weight"}) {
    const auto& entry = header.at(name);
    const std::size_t begin = 8 + header_bytes + entry.at("data_offsets")[0].get<std::size_t>();
    const std::size_t end = 8 + header_bytes + entry.at("data_offsets")[1].get<std::size_t>();
    std::string bytes = whole;
    ASSERT_LE(begin + 8, end);
    std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(end - 8), 8,
                '\xff');  // NaN in every type
    write_text_atomically(model / "model.safetensors", bytes);
    const Outcome outcome = quantize("--set model=" + model.string());
    EXPECT_EQ(outcome.exit_code, 2) << name << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(std::string(name) + "\": holds NaN")) << name;
    EXPECT_FALSE(fs::exists(folder_.path() / "run/recipes")) << name;
  }
}

TEST_F(CommandLineTest, VerifyKnowsWhatARunHasToHave) {
  ASSERT_EQ(quantize().exit_code, 0);
  const fs::path run_folder = folder_.path() / "run";
  for (const char* name : {"recipes/rtn-w4g128/block-0005.h5", "identity.json", "config.yaml",
                           "model.json", "journal.jsonl", "report.json", "report/results.csv"}) {
    const std::string content = read_text_file(run_folder / name);
    fs::remove(run_folder / name);
    const Outcome missing = run("verify " + at("run"));
    EXPECT_EQ(missing.exit_code, 1) << name;
    EXPECT_THAT(missing.out, HasSubstr(name));
    EXPECT_THAT(missing.out, HasSubstr("missing"));
    write_text_atomically(run_folder / name, content);
    EXPECT_EQ(run("verify " + at("run")).exit_code, 0) << name;
  }
}

TEST_F(CommandLineTest, SeveralRanksSayACommonMistakeOnce) {
  const std::string mpirun =
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 " ROUNDHOUSE_MPIEXEC
      " --oversubscribe --bind-to none -n 3";
  const Outcome config = run("run configs/demo.yaml --set nonsense=1", mpirun);
  EXPECT_EQ(config.exit_code, 2) << config.err;
  const auto times = [](const std::string& text, const std::string& word) {
    int count = 0;
    for (std::size_t at = 0; (at = text.find(word, at)) != std::string::npos; ++at) ++count;
    return count;
  };
  EXPECT_EQ(times(config.err, "unknown key"), 1) << config.err;
  EXPECT_THAT(config.err, HasSubstr("[rank 0] "));
  const Outcome usage = run("run", mpirun);
  EXPECT_EQ(usage.exit_code, 2) << usage.err;
  EXPECT_EQ(times(usage.err, "roundhouse: "), 1) << usage.err;
  EXPECT_EQ(times(run("--help", mpirun).out, "Usage"), 1);
}

}  // namespace
}  // namespace roundhouse
