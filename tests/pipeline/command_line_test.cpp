// Runs the program itself: what it prints where, and its exit codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "base/file.h"
#include "pipeline/hdf5_store.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::MatchesRegex;

struct Outcome {
  int exit_code;
  std::string out, err;
};

class CommandLineTest : public testing::Test {
 protected:
  Outcome run(const std::string& arguments, const std::string& launcher = "") const {
    const std::string out = (folder_.path() / "out").string(),
                      err = (folder_.path() / "err").string();
    const int status =
        std::system(("cd " + std::string(ROUNDHOUSE_SOURCE_DIR) + " && " + launcher +
                     " " ROUNDHOUSE_PROGRAM " " + arguments + " > " + out + " 2> " + err)
                        .c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text_file(out), read_text_file(err)};
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
  EXPECT_THAT(run("--version").out, MatchesRegex("roundhouse [0-9]+\\.[0-9]+\\.[0-9]+\n"));
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
  EXPECT_THAT(refusal("synth --like nothing " + at("x")), HasSubstr("nothing"));
  EXPECT_THAT(refusal("status"), HasSubstr("RUN"));
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

TEST_F(CommandLineTest, StandardOutputThatIsFullIsAnError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  ASSERT_EQ(quantize().exit_code, 0);
  const int status = std::system(
      (ROUNDHOUSE_PROGRAM " status " + at("run") + " > /dev/full 2> /dev/null").c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
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
