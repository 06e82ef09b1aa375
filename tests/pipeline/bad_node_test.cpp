// One rank of three sees something else than the others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/exit_code.h"
#include "base/process.h"
#include "tests/base/temporary_folder.h"
#include "tests/pipeline/program.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class BadNodeTest : public testing::Test {
 protected:
  BadNodeTest() {
    fs::copy(source_folder() / "tests/data/tiny-world", folder_.path() / "model",
             fs::copy_options::recursive);
    write_text_atomically(folder_.path() / "config.yaml",
                          "model: " + at("model") + "\nrun: " + at("run") +
                              "\nrecipes: [{method: rtn, bits: 4}]\n"
                              "evaluate: {original: false}\nthreads: 1\n");
  }
  std::string at(const std::string& name) const { return (folder_.path() / name).string(); }

  // Three ranks; the words in `other` are added for those that `ranks` (a pattern of the shell) matches.
  Outcome run(const std::string& ranks, const std::string& other) const {
    const std::string script = at("start.sh");
    write_text_atomically(script, "#!/bin/bash\nmore=()\ncase $OMPI_COMM_WORLD_RANK in\n  " +
                                      ranks + ") " + other +
                                      " ;;\nesac\nexec \"$@\" \"${more[@]}\"\n");
    return run_program(folder_.path(), "run " + at("config.yaml"),
                       "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
                       "OMPI_MCA_btl_vader_single_copy_mechanism=none " ROUNDHOUSE_MPIEXEC
                       " --oversubscribe --bind-to none -n 3 bash " +
                           script);
  }
  static std::string set(const std::string& setting) { return "more=(--set '" + setting + "')"; }
  void expect_bad_node(const std::string& ranks, const std::string& other, const std::string& why) {
    const Outcome outcome = run(ranks, other);
    EXPECT_EQ(outcome.exit_code, kExitBadNode) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("bad node: " + host_name() + " (rank " + ranks + "): "));
    EXPECT_THAT(outcome.err, HasSubstr(why));
    EXPECT_FALSE(fs::exists(at("run/recipes"))) << "blocks were quantized";
  }

  TemporaryFolder folder_;
};

TEST_F(BadNodeTest, ThatLacksTheModel) {
  expect_bad_node("1", set("model=" + at("nowhere")), "nowhere");
}

TEST_F(BadNodeTest, ThatHasAnotherModel) {
  fs::copy(at("model"), at("other"), fs::copy_options::recursive);
  fs::resize_file(at("other/model.safetensors"), 0);
  fs::copy_file(at("model/model.safetensors"), at("other/model.safetensors"),
                fs::copy_options::overwrite_existing);
  std::string config = read_text_file(at("other/config.json"));
  write_text_atomically(at("other/config.json"), config + "\n");
  expect_bad_node("2", set("model=" + at("other")), "model is ");
}

TEST_F(BadNodeTest, ThatHasOtherSettings) {
  expect_bad_node("0", set("recipes=[{method: rtn, bits: 3}]"), "settings is ");
}

TEST_F(BadNodeTest, ThatSeesAnotherRunFolder) {
  // As where a disk is not mounted. Its own lease there does not help.
  fs::create_directory(at("elsewhere"));
  expect_bad_node("1", set("run=" + at("elsewhere")), "is not the folder that rank 0 has taken");
}

TEST_F(BadNodeTest, ThatMayOpenFewFiles) {
  expect_bad_node("1", "ulimit -n 100", "a process may open only 100 files");
}

TEST_F(BadNodeTest, WhatAllRanksLackIsWrongInput) {
  const Outcome outcome = run("*", set("model=" + at("nowhere")));
  EXPECT_EQ(outcome.exit_code, kExitWrongInput) << outcome.err;
  EXPECT_THAT(outcome.err, testing::Not(HasSubstr("bad node")));
}

TEST_F(BadNodeTest, WithoutOneALineSaysWhatAllAgreeOn) {
  const Outcome outcome = run("1", ":");
  EXPECT_EQ(outcome.exit_code, kExitDone) << outcome.err;
  EXPECT_THAT(outcome.err + outcome.out, HasSubstr("3 ranks on 1 node: device "));
}

}  // namespace
}  // namespace roundhouse
