#include "pipeline/run/run_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <regex>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "tests/base/packed.h"
#include "tests/base/temporary_folder.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

class RunFolderTest : public testing::Test {
 protected:
  RunConfig config() const {
    RunConfig made;
    made.model = source_folder() / "tests/data/tiny-world";
    made.run = folder_.path() / "run";
    made.calibration.text = "text.jsonl";
    made.recipes = {parse_recipe({{"method", "rtn"}}), parse_recipe({{"method", "gptq"}})};
    return made;
  }
  // What the files are like, without looking at them.
  static RunInputs inputs(const std::string& model = "f00") {
    return {.model = model, .tokenizer = "t00", .calibration_text = "c00", .blocks = 6};
  }
  // Something that settings of the run were used for.
  static void make_product(const RunConfig& run) {
    std::filesystem::create_directories(run.run / "recipes/some");
    write_text_atomically(run.run / "recipes/some/block-0000.h5", "");
  }
  TemporaryFolder folder_;
};

TEST_F(RunFolderTest, SettlesAndResumes) {
  RunConfig first = config();
  settle_config(first, inputs());
  EXPECT_EQ(read_run_config(first.run).recipes.size(), 2u);
  settle_config(first, inputs());

  RunConfig faster = first;
  faster.threads = 7;
  faster.interruption_hours = 2;
  settle_config(faster, inputs());
  EXPECT_EQ(read_run_config(first.run).threads, 7) << "what changes no result may change";
}

TEST_F(RunFolderTest, RefusesOtherSettingsAndSaysWhich) {
  RunConfig first = config();
  settle_config(first, inputs());
  make_product(first);
  RunConfig other = first;
  other.calibration.seed = 43;
  EXPECT_EQ(message_of([&] { settle_config(other, inputs()); }),
            first.run.string() +
                " was made with other settings: calibration.seed: was 42, is 43. Use another run "
                "folder, or put "
                "the old value back");
  EXPECT_THAT(message_of([&] { settle_config(first, inputs("f01")); }),
              HasSubstr("are not those that the run began with"));
  other.recipes[1].options["damping"] = 0.5;
  EXPECT_THAT(message_of([&] { settle_config(other, inputs()); }),
              HasSubstr("calibration.seed: was 42, is 43; recipes.gptq-w4g128: was {"));
  EXPECT_THROW(settle_config(other, inputs()), InputError);
}

// A start that ended before it made anything holds nobody to its settings: what was wrong in them can be put right.
TEST_F(RunFolderTest, WhereNothingWasMadeNewSettingsAreTaken) {
  RunConfig first = config();
  first.calibration.samples = 1000000;
  settle_config(first, inputs());
  RunConfig other = config();
  EXPECT_NO_THROW(settle_config(other, inputs("f01")));
  EXPECT_EQ(read_run_config(other.run).calibration.samples, other.calibration.samples);
  EXPECT_EQ(read_identity(other.run).identity->inputs.model, inputs("f01").model);
  make_product(other);
  EXPECT_THROW(settle_config(first, inputs("f01")), InputError);
}

TEST_F(RunFolderTest, RecipesMayComeAndGoButNotChange) {
  RunConfig both = config();
  settle_config(both, inputs());
  make_product(both);
  RunConfig one = both;
  one.recipes.pop_back();
  settle_config(one, inputs());
  RunConfig changed = both;
  changed.recipes[1].options["damping"] = 0.5;
  EXPECT_THAT(message_of([&] { settle_config(changed, inputs()); }),
              HasSubstr("recipes.gptq-w4g128: was"))
      << "it was out, and comes back as another under its old name";
  RunConfig three = both;
  three.recipes.push_back(parse_recipe({{"method", "rtn"}, {"bits", 2}}));
  settle_config(three, inputs());
}

TEST_F(RunFolderTest, ADamagedIdentityIsSeenAndWrittenAnew) {
  const RunConfig made = config();
  settle_config(made, inputs());
  const std::string whole = read_text_file(made.run / "identity.json");
  const auto settled = [&](const std::string& text) {
    write_text_atomically(made.run / "identity.json", text);
    const Settled result = settle_config(made, inputs());
    EXPECT_EQ(read_text_file(made.run / "identity.json"), whole);
    return result.damaged;
  };
  EXPECT_TRUE(settled(whole).empty());
  for (const std::string& text : {std::string(), std::string("{"), std::string("[]"),
                                  std::string("{\"model\": 3}"), whole + " "}) {
    const auto damaged = settled(text);
    ASSERT_EQ(damaged.size(), 1u) << text;
    EXPECT_EQ(damaged[0].file, "identity.json");
    EXPECT_NE(damaged[0].why, "");
  }
}

TEST_F(RunFolderTest, ADamagedConfigIsSeenAndWrittenAnew) {
  const RunConfig made = config();
  settle_config(made, inputs());
  const std::string whole = read_text_file(made.run / "config.yaml");
  write_text_atomically(made.run / "config.yaml", whole + "\n");
  const auto damaged = settle_config(made, inputs()).damaged;
  ASSERT_EQ(damaged.size(), 1u);
  EXPECT_EQ(damaged[0].file, "config.yaml");
  EXPECT_EQ(read_text_file(made.run / "config.yaml"), whole);
}

TEST_F(RunFolderTest, ContentDecidesAndPathsDoNot) {
  const RunConfig first = config();
  settle_config(first, inputs());
  make_product(first);
  RunConfig moved = first;
  moved.calibration.text = "/elsewhere/other-name.jsonl";
  EXPECT_NO_THROW(settle_config(moved, inputs()));
  EXPECT_EQ(recipe_identity(first, inputs(), first.recipes[1]),
            recipe_identity(moved, inputs(), moved.recipes[1]));
  RunInputs gone = inputs();
  gone.calibration_text.clear();
  EXPECT_EQ(settle_config(moved, gone).inputs.calibration_text, "c00") << "what it was is known";

  RunInputs other = inputs();
  other.calibration_text = "c01";
  EXPECT_THAT(message_of([&] { settle_config(moved, other); }),
              HasSubstr("other-name.jsonl does not hold the text that the run began with"));
  EXPECT_NE(recipe_identity(first, inputs(), first.recipes[1]),
            recipe_identity(first, other, first.recipes[1]));
  EXPECT_EQ(recipe_identity(first, inputs(), first.recipes[0]),
            recipe_identity(first, other, first.recipes[0]))
      << "rtn sees no samples";
  other = inputs();
  other.tokenizer = "t01";
  EXPECT_THAT(message_of([&] { settle_config(first, other); }),
              HasSubstr("tokenizer: its files in"));
}

TEST_F(RunFolderTest, ATextIsItsContentHoweverItIsPacked) {
  const std::filesystem::path model = folder_.path() / "model";
  std::filesystem::create_directory(model);
  for (const char* file : {"config.json", "tokenizer.model", "tokenizer_config.json"})
    std::filesystem::copy_file(source_folder() / "tests/data/tiny-world" / file, model / file);
  std::filesystem::create_symlink(source_folder() / "tests/data/tiny-world/model.safetensors",
                                  model / "model.safetensors");
  RunConfig run = config();
  run.model = model;
  const std::string text = "{\"text\": \"one\"}\n";
  const auto text_of = [&](const std::string& name, const std::string& bytes) {
    run.calibration.text = folder_.path() / name;
    write_text_atomically(run.calibration.text, bytes);
    return read_inputs(run).calibration_text;
  };
  const std::string plain = text_of("a.jsonl", text);
  EXPECT_EQ(plain, xxh3_hex_of_file(run.calibration.text)) << "as it always was";
  EXPECT_EQ(text_of("a.jsonl.gz", gzip(text)), plain);
  EXPECT_EQ(text_of("a.jsonl.zst", zstd(text)), plain);
  EXPECT_NE(text_of("b.jsonl.gz", gzip(text + text)), plain);

  // The template counts where it may be used.
  write_text_atomically(model / "chat_template.jinja", "one");
  EXPECT_EQ(text_of("a.jsonl", text), plain);
  run.calibration.text_key = "messages";
  const std::string one = text_of("a.jsonl", text);
  EXPECT_NE(one, plain);
  write_text_atomically(model / "chat_template.jinja", "two");
  EXPECT_NE(text_of("a.jsonl", text), one);
  EXPECT_EQ(text_of("a.jsonl.gz", gzip(text)), text_of("a.jsonl", text));
}

TEST_F(RunFolderTest, IdentitiesFollowWhatARecordDependsOn) {
  const RunConfig base = config();
  RunConfig reseeded = base;
  reseeded.calibration.seed = 1;
  RunConfig elsewhere = base;
  elsewhere.threads = 3;
  elsewhere.run = "other";
  const Recipe& rtn = base.recipes[0];
  const Recipe& gptq = base.recipes[1];
  EXPECT_NE(recipe_identity(base, inputs(), rtn), recipe_identity(base, inputs(), gptq));
  EXPECT_NE(recipe_identity(base, inputs(), gptq), recipe_identity(base, inputs("g"), gptq));
  EXPECT_NE(recipe_identity(base, inputs(), gptq), recipe_identity(reseeded, inputs(), gptq));
  EXPECT_EQ(recipe_identity(base, inputs(), rtn), recipe_identity(reseeded, inputs(), rtn))
      << "rtn sees no samples";
  EXPECT_EQ(recipe_identity(base, inputs(), gptq), recipe_identity(elsewhere, inputs(), gptq));
  EXPECT_NE(calibration_identity(base, inputs()), calibration_identity(reseeded, inputs()));
  EXPECT_EQ(calibration_identity(base, inputs()), calibration_identity(elsewhere, inputs()));
  RunConfig rounded = base;
  rounded.cpu_bf16 = true;
  EXPECT_NE(recipe_identity(base, inputs(), gptq), recipe_identity(rounded, inputs(), gptq));
  EXPECT_EQ(recipe_identity(base, inputs(), rtn), recipe_identity(rounded, inputs(), rtn));
  EXPECT_NE(stream_identity(base, inputs()), stream_identity(rounded, inputs()));
  EXPECT_EQ(calibration_identity(base, inputs()), calibration_identity(rounded, inputs()));
  EXPECT_EQ(calibration_identity(base, inputs()), stream_identity(base, inputs()));
}

// What a set holds counts, not its name; a run without further sets has the identities that it always had.
TEST_F(RunFolderTest, CalibrationSetsHaveIdentities) {
  RunConfig one = config();
  RunConfig two = one;
  two.calibrations["small"] = one.calibration;
  two.calibrations["small"].samples = 65;
  two.calibrations["same"] = one.calibration;
  RunInputs texts = inputs();
  texts.other_texts = {{"small", "c00"}, {"same", "c00"}};
  const Recipe& gptq = one.recipes[1];
  EXPECT_EQ(recipe_identity(two, texts, gptq), recipe_identity(one, inputs(), gptq));
  EXPECT_EQ(calibration_identity(two, texts), calibration_identity(one, inputs()));
  Recipe small = gptq, same = gptq;
  small.calibration = "small";
  same.calibration = "same";
  EXPECT_NE(recipe_identity(two, texts, small), recipe_identity(two, texts, gptq));
  EXPECT_EQ(recipe_identity(two, texts, same), recipe_identity(two, texts, gptq));
  texts.other_texts["same"] = "c01";
  EXPECT_NE(recipe_identity(two, texts, same), recipe_identity(two, texts, gptq));
  EXPECT_EQ(recipe_identity(one, inputs(), gptq), "470c6bc8d4ed6c4a566c8c8313e3c09f");

  two.recipes.push_back(small);
  two.recipes.back().name = "small";
  settle_config(two, texts);
  make_product(two);
  EXPECT_EQ(read_identity(two.run).identity->inputs.other_texts, texts.other_texts);
  RunInputs other = texts;
  other.other_texts["small"] = "c02";
  EXPECT_THAT(message_of([&] { settle_config(two, other); }),
              HasSubstr("does not hold the text that the run began with"));
  two.calibrations["small"].samples = 64;
  EXPECT_THAT(message_of([&] { settle_config(two, texts); }),
              HasSubstr("calibrations.small.samples: was 65, is 64"));
}

TEST_F(RunFolderTest, TheFingerprintFollowsTheModelsFiles) {
  const fs::path source = source_folder() / "tests/data/tiny-world";
  const fs::path copy = folder_.path() / "model";
  fs::create_directory(copy);
  for (const char* name : {"config.json", "model.safetensors"})
    fs::copy_file(source / name, copy / name);
  const std::string before = model_fingerprint(copy);
  EXPECT_EQ(before, model_fingerprint(source)) << "another place is the same model";

  std::fstream weights(copy / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  std::uint64_t header = 0;
  weights.seekg(0);
  weights.read(reinterpret_cast<char*>(&header), sizeof header);
  weights.seekg(static_cast<std::streamoff>(8 + header));
  const char byte = static_cast<char>(weights.get() ^ 1);
  weights.seekp(static_cast<std::streamoff>(8 + header));
  weights.put(byte);
  weights.close();
  const std::string after = model_fingerprint(copy);
  EXPECT_NE(after, before);
  std::ofstream(copy / "config.json", std::ios::app) << "\n";
  EXPECT_NE(model_fingerprint(copy), after);
}

TEST_F(RunFolderTest, TheJournalKeepsEventsInOrder) {
  Journal journal(folder_.path());
  journal.append({{"event", "a"}});
  journal.append({{"event", "b"}, {"text", "x\ny"}});
  const auto events = read_journal(folder_.path());
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0]["event"], "a");
  EXPECT_EQ(events[1]["text"], "x\ny");
  EXPECT_TRUE(std::regex_match(events[0]["time"].get<std::string>(),
                               std::regex("\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}Z")));
  EXPECT_TRUE(read_journal(folder_.path() / "nowhere").empty());
}

TEST_F(RunFolderTest, TheJournalSaysWhoWroteALine) {
  ::unsetenv("SLURM_JOB_ID");
  Journal(folder_.path(), 3).append({{"event", "a"}});
  ::setenv("SLURM_JOB_ID", "4711", 1);
  Journal(folder_.path()).append({{"event", "b"}});
  ::unsetenv("SLURM_JOB_ID");
  const auto events = read_journal(folder_.path());
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0]["rank"], 3);
  EXPECT_EQ(events[0]["host"], host.data());
  EXPECT_FALSE(events[0].contains("job"));
  EXPECT_EQ(events[1]["rank"], 0);
  EXPECT_EQ(events[1]["job"], "4711");
}

TEST_F(RunFolderTest, TheJournalLosesNothingOfAnEvent) {
  Journal journal(folder_.path());
  EXPECT_THROW(journal.append({{"event", "a"}, {"time", {{"forward", 1.5}}}}), Error);
  EXPECT_TRUE(read_journal(folder_.path()).empty());
}

TEST_F(RunFolderTest, ATornLineCostsOnlyItself) {
  Journal journal(folder_.path());
  journal.append({{"event", "a"}});
  std::ofstream(folder_.path() / "journal.jsonl", std::ios::app) << "{\"event\": \"to";
  EXPECT_EQ(read_journal(folder_.path()).size(), 1u);
  journal.append({{"event", "b"}});
  const auto events = read_journal(folder_.path());
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[1]["event"], "b");
}

TEST_F(RunFolderTest, TheJournalGivesWhatIsNew) {
  Journal journal(folder_.path());
  journal.append({{"event", "block"}});
  Journal other(folder_.path());
  EXPECT_EQ(other.read_new().size(), 0u) << "what was there before does not count";
  EXPECT_EQ(journal.read_new().size(), 1u);
  other.append({{"event", "block"}});
  other.append({{"event", "export"}});
  EXPECT_EQ(journal.read_new().size(), 2u);
  std::ofstream(folder_.path() / "journal.jsonl", std::ios::app) << "{\"event\": \"block\"";
  EXPECT_EQ(journal.read_new().size(), 0u) << "its line is not whole yet";
  std::ofstream(folder_.path() / "journal.jsonl", std::ios::app) << "}\n[]\n";
  EXPECT_EQ(journal.read_new().size(), 1u);
  EXPECT_EQ(journal.read_new().size(), 0u);
}

TEST_F(RunFolderTest, EveryDamageOfTheJournalIsSeenAndPutAside) {
  Journal journal(folder_.path());
  for (int i = 0; i < 5; ++i) journal.append({{"event", "block"}, {"block", i}});
  const fs::path path = folder_.path() / "journal.jsonl";
  const std::string whole = read_text_file(path);
  EXPECT_TRUE(check_journal(folder_.path()).faults.empty());
  EXPECT_EQ(repair_journal(folder_.path()), "");
  for (std::size_t at = 0; at < whole.size(); ++at) {
    std::string text = whole;
    text[at] = static_cast<char>(text[at] ^ 4);
    write_text_atomically(path, text);
    ASSERT_FALSE(check_journal(folder_.path()).faults.empty()) << "byte " << at;
  }
  EXPECT_THAT(repair_journal(folder_.path()), HasSubstr("is damaged"));
  EXPECT_TRUE(check_journal(folder_.path()).faults.empty());
  EXPECT_EQ(read_journal(folder_.path()).size(), 4u);
  EXPECT_THAT(read_text_file(folder_.path() / "journal.damaged"), HasSubstr("\"block\":4"));

  const std::size_t second = whole.find('\n') + 1, third = whole.find('\n', second) + 1;
  write_text_atomically(path, whole.substr(0, second) + whole.substr(third));
  EXPECT_THAT(repair_journal(folder_.path()), HasSubstr("lines are missing before line 2"));
  EXPECT_EQ(repair_journal(folder_.path()), "");
  EXPECT_EQ(read_journal(folder_.path()).size(), 4u);
  journal.append({{"event", "block"}, {"block", 5}});
  EXPECT_TRUE(check_journal(folder_.path()).faults.empty()) << "it goes on behind the last line";
}

TEST_F(RunFolderTest, ProcessesShareAJournal) {
  constexpr int kProcesses = 4, kEvents = 50;
  for (int process = 0; process < kProcesses; ++process) {
    if (::fork() == 0) {
      Journal journal(folder_.path());
      for (int i = 0; i < kEvents; ++i) journal.append({{"event", std::string(500, 'x')}});
      ::_exit(0);
    }
  }
  for (int process = 0; process < kProcesses; ++process) ::wait(nullptr);
  EXPECT_EQ(read_journal(folder_.path()).size(), static_cast<std::size_t>(kProcesses * kEvents));
  EXPECT_TRUE(check_journal(folder_.path()).faults.empty()) << "each line knows the one before it";
}

}  // namespace
}  // namespace roundhouse
