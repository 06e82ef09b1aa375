#include "pipeline/config/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "tests/base/temporary_folder.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using testing::HasSubstr;

class ConfigTest : public testing::Test {
 protected:
  ConfigTest() {
    std::filesystem::create_directory(folder_.path() / "model");
    write("model/config.json", "{}");
    write("text.jsonl", "{\"text\": \"a\"}\n");
    write("other.txt", "a\n");
  }

  std::filesystem::path write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_.path() / name, std::ios::binary) << text;
    return folder_.path() / name;
  }
  std::string at(const std::string& name) const { return (folder_.path() / name).string(); }

  // The smallest whole configuration, and what follows it.
  std::string with(const std::string& rest) const {
    return "model: " + at("model") + "\nrun: " + at("run") +
           "\ncalibration: {text: " + at("text.jsonl") + "}\nrecipes: [{method: gptq}]\n" +
           rest;  // 4 lines
  }
  RunConfig read(const std::string& text, const std::vector<std::string>& overrides = {}) const {
    return read_config(write("config.yaml", text), overrides);
  }
  // The error, without the folder's name.
  std::string error(const std::string& text, const std::vector<std::string>& overrides = {}) const {
    try {
      read(text, overrides);
      return "no error";
    } catch (const InputError& e) {
      std::string what = e.what();
      EXPECT_EQ(what.find('\n'), std::string::npos) << what;
      for (std::size_t found;
           (found = what.find(folder_.path().string() + "/")) != std::string::npos;) {
        what.erase(found, folder_.path().string().size() + 1);
      }
      return what;
    }
  }

  TemporaryFolder folder_;
};

TEST_F(ConfigTest, FillsInDefaults) {
  const RunConfig config = read(with(""));
  EXPECT_EQ(config.calibration.samples, 128);
  EXPECT_EQ(config.calibration.shards, 16);
  EXPECT_EQ(config.interruption_hours, 4);
  EXPECT_EQ(config.device, "auto");
  ASSERT_EQ(config.recipes.size(), 1u);
  EXPECT_EQ(config.recipes[0].name, "gptq-w4g128");
}

TEST_F(ConfigTest, ReadsEveryKey) {
  const RunConfig config = read(
      "model: " + at("model") + "\nrun: " + at("run") +
      "\ncalibration:\n  text: " + at("text.jsonl") +
      "\n  samples: 64\n  sequence_length: 512\n  seed: 18446744073709551615\n  shards: 8\n  "
      "drawing: packed\n"
      "recipes:\n  - {method: rtn}\n  - method: gptq\n    bits: 3\n    group_size: -1\n    "
      "name: mine\n"
      "mesh: {pipeline: 2, data: 3}\ndevice: cpu\nthreads: 5\n"
      "memory: {activations_gib: 1.5, saved_activations_gib: 0.5, scratch: /tmp/scratch}\n"
      "checkpoint: {interruption_hours: 0.5}\nlimits: {stall_seconds: 30, silence_seconds: 9, "
      "minutes: 2.5}\n"
      "export: {formats: [dense, gptq], for: [transformers], dtype: float32, shard_gib: 0.25}\n"
      "evaluate:\n  original: false\n  perplexity:\n    - {name: one, text: " +
      at("other.txt") + ", window: 128, limit: 7}\n    - {text: " + at("text.jsonl") + "}\n");
  EXPECT_EQ(config.calibration.samples, 64);
  EXPECT_EQ(config.calibration.sequence_length, 512);
  EXPECT_EQ(config.calibration.seed, 18446744073709551615u);
  EXPECT_EQ(config.calibration.shards, 8);
  EXPECT_EQ(config.calibration.drawing, Drawing::kPacked);
  ASSERT_EQ(config.recipes.size(), 2u);
  EXPECT_EQ(config.recipes[0].name, "rtn-w4g128");
  EXPECT_EQ(config.recipes[1].name, "mine");
  EXPECT_EQ(config.recipes[1].schemes.front().bits, 3);
  EXPECT_EQ(config.recipes[1].schemes.front().group_size, -1);
  EXPECT_EQ(config.pipeline_ranks, 2);
  EXPECT_EQ(config.data_ranks, 3);
  EXPECT_EQ(config.device, "cpu");
  EXPECT_EQ(config.threads, 5);
  EXPECT_EQ(config.activation_memory_gib, 1.5);
  EXPECT_EQ(config.saved_activation_gib, 0.5);
  EXPECT_EQ(config.scratch, "/tmp/scratch");
  EXPECT_EQ(config.interruption_hours, 0.5);
  EXPECT_EQ(config.stall_seconds, 30);
  EXPECT_EQ(config.silence_seconds, 9);
  EXPECT_EQ(config.time_limit_minutes, 2.5);
  EXPECT_EQ(config.export_formats, (std::vector<std::string>{"dense", "gptq"}));
  EXPECT_EQ(config.export_for, std::vector<std::string>{"transformers"});
  EXPECT_EQ(config.export_dtype, DType::kF32);
  EXPECT_EQ(config.export_shard_gib, 0.25);
  EXPECT_FALSE(config.evaluate_original);
  ASSERT_EQ(config.evaluations.perplexity.size(), 2u);
  EXPECT_EQ(config.evaluations.perplexity[0].name, "one");
  EXPECT_EQ(config.evaluations.perplexity[0].window, 128);
  EXPECT_EQ(config.evaluations.perplexity[0].limit, 7);
  EXPECT_EQ(config.evaluations.perplexity[1].name, "text");
  EXPECT_EQ(config.evaluations.perplexity[1].window, 2048);

  // What it writes reads back to the same.
  const std::string written = to_yaml(config);
  const RunConfig again = read(written);
  EXPECT_EQ(to_yaml(again), written);
  EXPECT_EQ(result_keys(again), result_keys(config));
  EXPECT_EQ(again.calibration.seed, config.calibration.seed);
  EXPECT_EQ(again.scratch, config.scratch);
}

TEST_F(ConfigTest, RoundTripsDefaultsAndStrangePaths) {
  const std::string strange = R"(a "quoted": {name} #1 \ ü)";
  const RunConfig config = read(with(""), {R"(run="a \"quoted\": {name} #1 \\ ü")"});
  EXPECT_EQ(config.run.string(), strange);
  const std::string written = to_yaml(config);
  EXPECT_EQ(to_yaml(read(written)), written);
  EXPECT_EQ(read(written).run, config.run);
}

TEST_F(ConfigTest, ReadsTheConfigOfARunWhoseInputsAreGone) {
  const RunConfig config =
      read(with("evaluate: {perplexity: [{text: " + at("other.txt") + "}]}\n"));
  std::filesystem::create_directory(folder_.path() / "moved");
  write("moved/config.yaml", to_yaml(config));
  std::filesystem::remove_all(folder_.path() / "model");
  std::filesystem::remove(folder_.path() / "text.jsonl");
  std::filesystem::remove(folder_.path() / "other.txt");
  const RunConfig again = read_run_config(folder_.path() / "moved");
  EXPECT_EQ(again.run, folder_.path() / "moved");
  EXPECT_EQ(result_keys(again), result_keys(config));
  EXPECT_THROW(read_config(folder_.path() / "moved" / "config.yaml", {}), InputError);
}

TEST_F(ConfigTest, OverridesReplaceAddAndNest) {
  const RunConfig config = read(with("mesh: {pipeline: 2}\n"),
                                {"calibration.samples=64", "mesh.data=2", "limits.minutes=1.5",
                                 "recipes=[{method: rtn, bits: 2}]", "device=cpu", "device=auto"});
  EXPECT_EQ(config.calibration.samples, 64);
  EXPECT_EQ(config.pipeline_ranks, 2);
  EXPECT_EQ(config.data_ranks, 2);
  EXPECT_EQ(config.time_limit_minutes, 1.5);
  EXPECT_EQ(config.recipes.at(0).name, "rtn-w2g128");
  EXPECT_EQ(config.device, "auto") << "the last one counts";
}

TEST_F(ConfigTest, OverridesSayWhichOneIsWrong) {
  const auto of = [&](const std::string& assignment) {
    return error(with("mesh: {data: 1}\n"), {assignment});
  };
  EXPECT_EQ(of("threads=many"), "--set threads: must be a whole number, not \"many\"");
  EXPECT_EQ(of("mesh={data: -1}"), "--set mesh: mesh.data: must be from 0 to 100000, not \"-1\"");
  EXPECT_EQ(of("mesh.dta=1"), "--set mesh.dta: mesh: unknown key \"dta\" (did you mean \"data\"?)");
  EXPECT_EQ(of("device.x=1"), "--set device.x: device: must be one value");
  EXPECT_EQ(of("mesh.data.x=1"), "--set mesh.data.x: \"mesh.data\" is not a group of keys");
  EXPECT_THAT(of("threads"), HasSubstr("must be KEY=VALUE"));
  EXPECT_THAT(of("=1"), HasSubstr("must be KEY=VALUE"));
  EXPECT_THAT(of("a..b=1"), HasSubstr("is not a key"));
  EXPECT_THAT(of("threads=[1"), HasSubstr("--set threads: not valid YAML"));
  EXPECT_EQ(of("threads="), "--set threads: has no value");
  EXPECT_THAT(
      of("recipes.1.bits=3"),
      HasSubstr("--set recipes.1.bits: \"recipes\" has 1 entries, the first of which is 0"));
  EXPECT_THAT(of("recipes.x.bits=3"),
              HasSubstr("--set recipes.x.bits: \"recipes\" is not a group of keys"));
}

TEST_F(ConfigTest, DrawingsHaveNames) {
  for (const auto& [name, drawing] : {std::pair("windows", Drawing::kWindows),
                                      {"packed", Drawing::kPacked},
                                      {"concatenated", Drawing::kConcatenated}}) {
    const RunConfig config = read(with(""), {std::string("calibration.drawing=") + name});
    EXPECT_EQ(config.calibration.drawing, drawing);
    EXPECT_EQ(read(to_yaml(config)).calibration.drawing, drawing);
  }
}

TEST_F(ConfigTest, OverridesReachIntoLists) {
  const RunConfig config = read(with("evaluate: {perplexity: [{name: t, text: " + at("other.txt") +
                                     ", window: 64, rows: true}]}\n"),
                                {"recipes.0.bits=3", "evaluate.perplexity.0.limit=5"});
  EXPECT_EQ(config.recipes.at(0).schemes.front().bits, 3);
  EXPECT_EQ(config.evaluations.perplexity.at(0).limit, 5);
  EXPECT_EQ(config.evaluations.perplexity.at(0).window, 64);
  EXPECT_TRUE(config.evaluations.perplexity.at(0).rows);
}

struct Wrong {
  const char* rest;  // after the four good lines
  const char* error;
};

TEST_F(ConfigTest, EachMistakeHasItsLine) {
  const Wrong cases[] = {
      {"thread: 3\n", "config.yaml:5: unknown key \"thread\" (did you mean \"threads\"?)"},
      {"\n\nzzz: 3\n", "config.yaml:7: unknown key \"zzz\""},
      {"mesh:\n  dta: 3\n", "config.yaml:6: mesh: unknown key \"dta\" (did you mean \"data\"?)"},
      {"limits: {stall: 3}\n", "config.yaml:5: limits: unknown key \"stall\""},
      {"threads: 1\nthreads: 2\n",
       "config.yaml:6: duplicate key \"threads\" (first at config.yaml:5)"},
      {"run: x\n", "config.yaml:5: duplicate key \"run\" (first at config.yaml:2)"},
      {"threads: -1\n", "config.yaml:5: threads: must be from 0 to 4096, not \"-1\""},
      {"threads: 99999999999999999999\n",
       "config.yaml:5: threads: must be from 0 to 4096, not \"99999999999999999999\""},
      {"threads: 1.5\n", "config.yaml:5: threads: must be a whole number, not \"1.5\""},
      {"threads: '1'\n", "config.yaml:5: threads: must be a whole number, not \"1\""},
      {"threads: [1]\n", "config.yaml:5: threads: must be one value"},
      {"threads:\n", "config.yaml:5: threads: has no value"},
      {"device: gpu\n", "config.yaml:5: device: must be one of auto, cpu, cuda, not \"gpu\""},
      {"mesh: 3\n", "config.yaml:5: mesh: must be a group of keys and values"},
      {"mesh: [1, 2]\n", "config.yaml:5: mesh: must be a group of keys and values"},
      {"limits: {minutes: soon}\n",
       "config.yaml:5: limits.minutes: must be a number, not \"soon\""},
      {"limits: {minutes: .nan}\n",
       "config.yaml:5: limits.minutes: must be a number, not \".nan\""},
      {"limits: {minutes: 1e999}\n",
       "config.yaml:5: limits.minutes: must be a number, not \"1e999\""},
      {"limits: {minutes: -1}\n",
       "config.yaml:5: limits.minutes: must be from 0 to 10000000, not \"-1\""},
      {"evaluate: {original: maybe}\n", "config.yaml:5: evaluate.original: must be true or false"},
      {"evaluate: {perplexity: [{text: no/such}]}\n",
       "config.yaml:5: evaluate.perplexity[0].text: there is no file \"no/such\""},
      {"evaluate: {perplexity: [{name: x}]}\n",
       "config.yaml:5: evaluate.perplexity[0].text: is missing"},
      {"evaluate: {perplexity: {a: b}}\n",
       "config.yaml:5: evaluate.perplexity: must be a list, as in [a, b]"},
      {"evaluate: {protocol: v1}\n",
       "config.yaml:5: evaluate.protocol: must be one of lm-eval, paper, not \"v1\""},
      {"evaluate: {tasks: piqa}\n", "config.yaml:5: evaluate.tasks: must be a list"},
      {"evaluate: {tasks: [piqa]}\n",
       "config.yaml:5: evaluate.tasks[0].file: is missing, and so is the folder "
       "evaluate.task_data"},
      {"evaluate: {tasks: [piqa], task_data: no}\n",
       "config.yaml:5: evaluate.tasks[0].file: there is no file \"no/piqa/valid.jsonl\", "},
      {"evaluate: {tasks: [helaswag]}\n",
       "config.yaml:5: evaluate.tasks[0].name: no task is called \"helaswag\" (did you mean "
       "\"hellaswag\"?)"},
      {"evaluate: {kl: true}\n", "config.yaml:5: evaluate.kl: is measured on the texts of"},
      {"evaluate: {tasks: [{name: mine}]}\n", "config.yaml:5: evaluate.tasks[0].file: is missing"},
      {"evaluate: {tasks: [{file: x}]}\n", "config.yaml:5: evaluate.tasks[0].name: is missing"},
      {"evaluate: {tasks: [{name: a, template: b, file: x}]}\n",
       "config.yaml:5: evaluate.tasks[0].template: must be one of mmlu, "},
      {"evaluate: {tasks: [{name: a/b, file: x}]}\n",
       "config.yaml:5: evaluate.tasks[0].name: must be letters, digits"},
      {"evaluate: {tasks: [{name: a, fiel: x}]}\n", "config.yaml:5: evaluate.tasks[0]"},
      {"export: {formats: [zip]}\n", "config.yaml:5: export.formats: \"zip\" is not one of"},
      {"export: {formats: [dense, dense]}\n",
       "config.yaml:5: export.formats: \"dense\" stands there twice"},
      {"export: {formats: dense}\n", "config.yaml:5: export.formats: must be a list"},
      {"export: {for: [llama.cpp]}\n", "config.yaml:5: export.for: \"llama.cpp\" is not one of"},
      {"export: {formats: [gptq], for: [transformers, vllm]}\n",
       "config.yaml:5: export.for: recipe gptq-w4g128 as gptq: vLLM"},
      {"export: {dtype: int8}\n",
       "config.yaml:5: export.dtype: must be one of source, float16, "
       "bfloat16, float32"},
      {"- 3\n", "config.yaml:5: not valid YAML"},
      {"threads: &a 3\n", "config.yaml:5: anchors and aliases (& and *) are not supported"},
      {"threads: *a\n", "config.yaml:5: "},
      {"threads: !!int 3\n", "config.yaml:5: the tag \"tag:yaml.org,2002:int\" is not supported"},
      {"threads: {3\n", "not valid YAML"},
      {"? [a, b]\n: 3\n", "config.yaml:5: a key must be a word"},
      {"--- \nthreads: 3\n", "a second YAML document starts here"},
      {"\tthreads: 3\n", "config.yaml:5: "},
      {"\x01: 3\n", "config.yaml:5: not UTF-8 text: this is no configuration"},
      {"a: \xff\xfe\n", "config.yaml:5: not UTF-8 text: this is no configuration"},
  };
  for (const Wrong& wrong : cases) {
    EXPECT_THAT(error(with(wrong.rest)), HasSubstr(wrong.error)) << wrong.rest;
  }
}

TEST_F(ConfigTest, MissingAndContradictoryInputs) {
  const std::string model = "model: " + at("model") + "\n";
  const std::string rtn = "recipes: [{method: rtn}]\n";
  const std::string gptq = "recipes: [{method: gptq}]\n";
  EXPECT_EQ(error(""), "config.yaml: model: is missing");
  EXPECT_EQ(error("just words"), "config.yaml: must be a group of keys and values");
  EXPECT_EQ(error("model: nowhere\n"),
            "config.yaml:1: model: there is no file \"nowhere/config.json\"");
  EXPECT_EQ(error(model), "config.yaml: run: is missing");
  EXPECT_EQ(error(model + "run: ''\n"), "config.yaml:2: run: must not be empty");
  EXPECT_EQ(error(model + "run: " + at("other.txt")),
            "config.yaml:2: run: is not a folder: \"other.txt\"");
  EXPECT_THAT(error(model + "run: r\n"), HasSubstr("config.yaml: recipes: is missing"));
  EXPECT_THAT(error(model + "run: r\nrecipes: []\n"),
              HasSubstr("config.yaml:3: recipes: is missing"));
  EXPECT_EQ(error(model + "run: r\n" + rtn), "no error") << "rtn needs no calibration";
  EXPECT_EQ(
      error(model + "run: r\n" + gptq),
      "config.yaml: calibration.text: is missing: recipe \"gptq-w4g128\" needs calibration text");
  EXPECT_EQ(error(model + "run: r\n" + rtn + "calibration: {text: gone.jsonl}\n"),
            "config.yaml:4: calibration.text: there is no file \"gone.jsonl\"");
  EXPECT_EQ(error(model + "run: r\n" + rtn + "calibration:\n  samples: 4\n  shards: 5\n"),
            "config.yaml:6: calibration.shards: 5 shards cannot be cut from 4 samples");
  EXPECT_THAT(
      error(model + "run: r\n" + rtn +
            "calibration: {samples: 1000000, sequence_length: 1000000}\n"),
      HasSubstr(
          "config.yaml:4: calibration.samples: 1000000 samples of 1000000 tokens are more than"));
  EXPECT_EQ(read(model + "run: r\n" + rtn + "calibration: {samples: 4}\n").calibration.shards, 4);
  EXPECT_THROW(read_config(folder_.path() / "none.yaml", {}), InputError);
  EXPECT_THROW(read_config(folder_.path(), {}), InputError);
}

TEST_F(ConfigTest, RecipesNameTheirLine) {
  const auto of = [&](const std::string& recipes) {
    return error("model: " + at("model") + "\nrun: r\ncalibration: {text: " + at("text.jsonl") +
                 "}\nrecipes:\n" + recipes);
  };
  EXPECT_THAT(of("  - {method: nonsense}\n"), HasSubstr("config.yaml:5: recipes[0].method: "));
  EXPECT_THAT(of("  - {method: rtn}\n  - {method: rtn,\n     bits: 9}\n"),
              HasSubstr("config.yaml:7: recipes[1].bits: must be 2, 3, 4, 5, 6, 7 or 8"));
  EXPECT_EQ(of("  - {method: rtn, overrides: [{match: '*', bits: 4},\n      {match: '*',\n"
               "       bits: 9}]}\n"),
            "config.yaml:7: recipes[0].overrides[1].bits: must be 2, 3, 4, 5, 6, 7 or 8");
  EXPECT_EQ(of("  - {method: rtn, overrides: [\n     {bits: 4}]}\n"),
            "config.yaml:6: recipes[0].overrides[0].match: is missing");
  EXPECT_THAT(of("  - {method: rtn, 'a[b].c': 1, a: [1]}\n"),
              HasSubstr("config.yaml:5: recipes[0]"));
  EXPECT_THAT(
      of("  - {method: awq, include: [lm_head]}\n"),
      HasSubstr("config.yaml:5: recipes[0].include: \"lm_head\": this method makes linears of "
                "blocks only; rtn makes embed_tokens and lm_head, gptq lm_head"));
  EXPECT_THAT(of("  - {method: rtn, override: [{match: '*', bits: 4}]}\n"),
              HasSubstr("unknown key \"override\" (did you mean \"overrides\"?)"));
  EXPECT_THAT(of("  - {method: rtn, bits: '4'}\n"), HasSubstr("config.yaml:5: recipes[0].bits: "));
  EXPECT_THAT(of("  - {method: rtn, group_size: 0}\n"),
              HasSubstr("config.yaml:5: recipes[0].group_size: "));
  EXPECT_THAT(of("  - {bits: 4}\n"), HasSubstr("config.yaml:5: recipes[0].method: is missing"));
  EXPECT_THAT(of("  - rtn\n"), HasSubstr("config.yaml:5: recipes[0]: "));
  EXPECT_THAT(
      of("  - {method: gptq, dampng: 0.1}\n"),
      HasSubstr("config.yaml:5: recipes[0]: unknown key \"dampng\" (did you mean \"damping\"?)"));
  EXPECT_THAT(of("  - {method: gptq, damping: -1}\n"),
              HasSubstr("config.yaml:5: recipes[0].damping: must be"));
  EXPECT_THAT(of("  - {method: rtn}\n  - {method: rtn}\n"),
              HasSubstr("config.yaml:6: recipes[1]: a second recipe named \"rtn-w4g128\": give one "
                        "of them a `name:`"));
  for (const char* name : {"../x", ".hidden", "a/b", "a b", "''", "\"a\\0b\"", "original"}) {
    EXPECT_THAT(of("  - {method: rtn, name: " + std::string(name) + "}\n"),
                HasSubstr("config.yaml:5: recipes[0].name: "))
        << name;
  }
}

TEST_F(ConfigTest, BombsAndJunkAreRefusedQuickly) {
  std::string laughs = "a: &a [x, x, x]\n";
  for (char c = 'b'; c < 'z'; ++c) {
    laughs += std::string(1, c) + ": &" + c + " [*" + char(c - 1) + ", *" + char(c - 1) + "]\n";
  }
  EXPECT_THAT(error(laughs), HasSubstr("config.yaml:1: anchors and aliases"));

  const std::size_t many = 60000;
  EXPECT_THAT(error("a: " + std::string(many, '[')),
              HasSubstr("config.yaml:1: nested more than 32 levels deep"));
  EXPECT_THAT(error("a: " + std::string(many, '{')), HasSubstr("config.yaml:1: "));
  EXPECT_THAT(error("a:\n" + std::string(many, '-')), HasSubstr("config.yaml"));
  std::string dashes, stairs, pairs;
  for (int i = 0; i < 20000; ++i) dashes += "- ";
  EXPECT_THAT(error(dashes), HasSubstr("config.yaml:1: nested more than 32 levels deep"));
  for (int i = 0; i < 1000; ++i) stairs += std::string(static_cast<std::size_t>(i), ' ') + "a:\n";
  EXPECT_THAT(error(stairs), HasSubstr("nested more than 32 levels deep"));
  for (int i = 0; i < 20000; ++i) pairs += "? ";
  EXPECT_THAT(error(pairs), HasSubstr("config.yaml:1: "));
  std::string flat = "a: [";
  for (int i = 0; i < 30000; ++i) flat += "1,\n";
  EXPECT_THAT(error(flat + "]\n"), HasSubstr("values: this is no configuration"));
  EXPECT_THAT(error(std::string(2 << 20, 'a')), HasSubstr("config.yaml: "));
  EXPECT_THAT(error(std::string(100000, 'a')), HasSubstr("config.yaml:1: a line of more than"));
  EXPECT_THAT(error(std::string("a\0b", 3)), HasSubstr("config.yaml:1: not UTF-8 text"));

  // Whatever the bytes are, the answer is one line.
  std::uint32_t state = 1;
  for (int round = 0; round < 300; ++round) {
    std::string junk = with("threads: 2\nmesh: {data: 1}\n");
    for (int i = 0; i < 5; ++i) {
      state = state * 1664525u + 1013904223u;
      junk[state % junk.size()] = static_cast<char>((state >> 24) & 0x7f);
    }
    error(junk);
  }
}

TEST_F(ConfigTest, DifferencesNameKeysThatBothHave) {
  const RunConfig before = read(with(""), {"recipes=[{method: gptq}, {method: rtn}]"});
  const RunConfig after =
      read(with(""), {"recipes=[{method: gptq, damping: 0.5, name: gptq-w4g128}]",
                      "calibration.seed=43", "threads=2", "run=elsewhere"});
  const std::vector<std::string> lines = differences(result_keys(before), result_keys(after));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0], "calibration.seed: was 42, is 43");
  EXPECT_THAT(lines[1], HasSubstr("recipes.gptq-w4g128: was {"));
  EXPECT_TRUE(differences(result_keys(before), result_keys(before)).empty());
}

// Without it, everything is as it was before there was the key.
TEST_F(ConfigTest, ThePrecisionOfCpusIsPartOfTheIdentity) {
  const RunConfig plain = read(with("cpu_precision: f32\n"));
  EXPECT_FALSE(plain.cpu_bf16);
  EXPECT_THAT(to_yaml(plain), testing::Not(HasSubstr("cpu_precision")));
  EXPECT_EQ(result_keys(plain), result_keys(read(with(""))));
  const RunConfig other = read(with("cpu_precision: bf16\n"));
  EXPECT_TRUE(read(to_yaml(other)).cpu_bf16);
  EXPECT_THAT(differences(result_keys(plain), result_keys(other)),
              testing::ElementsAre("cpu_precision: was f32, is bf16"));
  EXPECT_THAT(differences(result_keys(other), result_keys(plain)),
              testing::ElementsAre("cpu_precision: was bf16, is f32"));
  EXPECT_THAT(error(with("cpu_precision: f16\n")), HasSubstr("cpu_precision"));
}

// Without it everything is as it was before there was the key.
TEST_F(ConfigTest, TheKeyOfTextsIsWrittenWhereItIsAnother) {
  const std::string sets = "\ncalibrations: {chat: {methods: [gptq]}, plain: {text_key: text}}\n";
  const RunConfig plain = read(with(sets));
  EXPECT_EQ(plain.calibration.text_key, "text");
  EXPECT_THAT(to_yaml(plain), testing::Not(HasSubstr("text_key")));
  const RunConfig other = read(with(sets), {"calibration.text_key=messages"});
  EXPECT_EQ(other.calibrations.at("chat").text_key, "messages");
  EXPECT_EQ(other.calibrations.at("plain").text_key, "text");
  const std::string written = to_yaml(other);
  const RunConfig again = read(written);
  EXPECT_EQ(to_yaml(again), written);
  EXPECT_EQ(again.calibrations.at("plain").text_key, "text");
  EXPECT_EQ(again.calibrations.at("chat").text_key, "messages");
  EXPECT_THAT(differences(result_keys(plain), result_keys(other)),
              testing::ElementsAre("calibration.text_key: was text, is messages",
                                   "calibrations.chat.text_key: was text, is messages"));
  EXPECT_THAT(differences(result_keys(other), result_keys(plain)),
              testing::Contains("calibration.text_key: was messages, is text"));
  EXPECT_TRUE(differences(result_keys(other), result_keys(again)).empty());
}

// Sets beside the default take from it what they do not say.
TEST_F(ConfigTest, CalibrationSetsHaveNames) {
  const std::string text = "model: " + at("model") + "\nrun: " + at("run") + R"(
calibrations:
  default: {text: )" + at("text.jsonl") +
                           R"(, samples: 64, sequence_length: 128, seed: 7}
  awq: {samples: 9, drawing: packed, methods: [awq]}
  long: {sequence_length: 512}
recipes:
  - {method: rtn}
  - {method: gptq}
  - {method: awq}
  - {method: awq, calibration: default}
  - {method: awq, calibration: long, name: mine}
  - {method: gptq, calibration: long}
  - {method: llm-mq, calibration: awq}
)";
  const RunConfig config = read(text);
  const SampleOptions& awq = calibration_set(config, "awq");
  EXPECT_EQ(awq.samples, 9);
  EXPECT_EQ(awq.sequence_length, 128);
  EXPECT_EQ(awq.seed, 7u);
  EXPECT_EQ(awq.shards, 9);
  EXPECT_EQ(awq.drawing, Drawing::kPacked);
  EXPECT_EQ(awq.keys, "calibrations.awq");
  EXPECT_EQ(calibration_set(config, "default").samples, 64);
  std::vector<std::string> names, sets;
  for (const Recipe& recipe : config.recipes) {
    names.push_back(recipe.name);
    sets.push_back(recipe.calibration);
  }
  EXPECT_THAT(
      names, testing::ElementsAre("rtn-w4g128", "gptq-w4g128", "awq-w4g128",
                                  "awq-w4g128-calibration-default", "mine",
                                  "gptq-w4g128-calibration-long", "llm-mq-w4g128-calibration-awq"));
  EXPECT_THAT(sets,
              testing::ElementsAre("default", "default", "awq", "default", "long", "long", "awq"));
  EXPECT_THAT(calibration_sets_in_use(config), testing::ElementsAre("awq", "default", "long"));

  const std::string written = to_yaml(config);
  EXPECT_EQ(to_yaml(read(written)), written);
  EXPECT_EQ(result_keys(read(written)), result_keys(config));
  // What a recipe looks at may not change behind its blocks.
  const RunConfig other = read(text, {"recipes.1.calibration=awq", "recipes.1.name=gptq-w4g128"});
  EXPECT_THAT(differences(result_keys(config), result_keys(other)),
              testing::ElementsAre(HasSubstr("recipes.gptq-w4g128: was {")));
}

TEST_F(ConfigTest, MistakesInCalibrationSetsAreNamed) {
  const auto of = [&](const std::string& sets, const std::string& recipes = "[{method: gptq}]") {
    return error("model: " + at("model") + "\nrun: " + at("run") + "\n" + sets +
                 "\nrecipes: " + recipes + "\n");
  };
  const std::string text = "text: " + at("text.jsonl");
  EXPECT_EQ(
      of("calibrations: {default: {" + text + "}}\ncalibration: {samples: 4}"),
      "config.yaml:3: calibrations.default: stands beside `calibration`, which is the same set");
  EXPECT_EQ(
      of("calibration: {" + text + "}", "[{method: gptq, calibration: awq}]"),
      "config.yaml:4: recipes[0].calibration: there is no set \"awq\" in calibrations: it has "
      "default");
  EXPECT_EQ(
      of("calibrations: {default: {" + text + "}, a: {methods: [gptq]}, b: {methods: [gptq]}}"),
      "config.yaml:3: calibrations.b.methods: gptq looks at the set \"a\" already");
  EXPECT_EQ(of("calibrations: {default: {" + text + "}, a/b: {}}"),
            "config.yaml:3: calibrations.a/b: a set's name has to be one of a file");
  EXPECT_EQ(of("calibrations: {a: {samples: 3}}", "[{method: gptq, calibration: a}]"),
            "config.yaml:3: calibrations.a.text: is missing: recipe \"gptq-w4g128-calibration-a\" "
            "needs calibration text");
  EXPECT_EQ(of("calibrations: {default: {" + text + "}, a: {sample: 3}}"),
            "config.yaml:3: calibrations.a: unknown key \"sample\" (did you mean \"samples\"?)");
}

std::vector<std::string> names_of(const RunConfig& config) {
  std::vector<std::string> names;
  for (const Recipe& recipe : config.recipes) names.push_back(recipe.name);
  return names;
}

TEST_F(ConfigTest, ASweepStandsForItsProducts) {
  const auto sweep = [&](const std::string& what) {
    return read("model: " + at("model") + "\nrun: " + at("run") +
                "\ncalibration: {text: " + at("text.jsonl") + "}\nsweep: " + what + "\n");
  };
  EXPECT_THAT(names_of(sweep("{methods: [rtn, gptq], bits: [4, 3], group_size: 64}")),
              testing::ElementsAre("rtn-w4g64", "rtn-w3g64", "gptq-w4g64", "gptq-w3g64"));
  EXPECT_THAT(names_of(sweep("{bits: [4, 3], methods: [rtn, gptq], "
                             "except: [{method: gptq, bits: 3}]}")),
              testing::ElementsAre("rtn-w4g128", "gptq-w4g128", "rtn-w3g128"));
  EXPECT_THAT(names_of(sweep("[{method: gptq, damping: [0.01, 0.1]}, {method: rtn, bits: [2]}]")),
              testing::ElementsAre("gptq-w4g128", "gptq-w4g128-damping-0.1", "rtn-w2g128"));
  // Overrides are a list themselves: one for all recipes, or a list of lists to go through.
  const RunConfig same = sweep(
      "{methods: [rtn, gptq], overrides: [{match: '*.down_proj', bits: 8}, {match: '*.0.*', skip: "
      "true}]}");
  ASSERT_EQ(same.recipes.size(), 2u);
  for (const Recipe& recipe : same.recipes) EXPECT_EQ(recipe.overrides.size(), 2u) << recipe.name;
  const RunConfig several = sweep(
      "{methods: rtn, overrides: [[], [{match: '*.down_proj', bits: 8}]], "
      "except: {overrides: []}}");
  ASSERT_EQ(several.recipes.size(), 1u);
  EXPECT_THAT(several.recipes[0].name, testing::StartsWith("rtn-w4g128-overrides-"));
  EXPECT_EQ(read(to_yaml(several)).recipes[0].schemes, several.recipes[0].schemes);
  EXPECT_EQ(names_of(read(to_yaml(several))), names_of(several));
  // SqueezeLLM has no groups: one recipe a width, and a note.
  const RunConfig mixed =
      sweep("{methods: [rtn, squeezellm], bits: [4, 3], group_size: [-1, 128]}");
  EXPECT_THAT(names_of(mixed), testing::ElementsAre("rtn-w4", "rtn-w4g128", "rtn-w3", "rtn-w3g128",
                                                    "squeezellm-w4", "squeezellm-w3"));
  EXPECT_THAT(mixed.notes,
              testing::ElementsAre("sweep: squeezellm has no group_size, which counts for the "
                                   "other methods only",
                                   "sweep: 6 recipes"));
  // What the run keeps is the list.
  const std::string written = to_yaml(mixed);
  EXPECT_THAT(written, testing::Not(HasSubstr("sweep")));
  EXPECT_EQ(names_of(read(written)), names_of(mixed));
  const RunConfig both = read(with("sweep: {method: rtn, bits: [3, 2]}\n"));
  EXPECT_THAT(names_of(both), testing::ElementsAre("gptq-w4g128", "rtn-w3g128", "rtn-w2g128"));
}

TEST_F(ConfigTest, MistakesInASweepAreNamed) {
  const auto of = [&](const std::string& what) { return error(with("sweep: " + what + "\n")); };
  EXPECT_EQ(of("{methods: [rtn, squeezellm], bits: [8, 4]}"),
            "config.yaml:5: sweep.bits: must be 2, 3 or 4 (of the combination {method: squeezellm, "
            "bits: 8}; `except` takes one out of a sweep)");
  EXPECT_EQ(of("{methods: [rtn, awq], group_siez: [64]}"),
            "config.yaml:5: sweep: unknown key \"group_siez\" (did you mean \"group_size\"?)");
  EXPECT_EQ(of("{methods: [rtn], bits: [4, 3], except: {bits: 2}}"),
            "config.yaml:5: sweep.except: {bits: 2} is none of the combinations");
  EXPECT_EQ(of("{bits: [4]}"), "config.yaml:5: sweep.methods: is missing");
  EXPECT_EQ(of("{methods: [rtn], bits: []}"), "config.yaml:5: sweep.bits: is an empty list");
  EXPECT_EQ(of("{methods: [rtn], bits: [4, 4]}"),
            "config.yaml:5: sweep.bits: 4 stands there twice");
  EXPECT_THAT(of("{methods: [rtm], bits: 4}"),
              HasSubstr("sweep.methods: \"rtm\" is not one of rtn"));
  EXPECT_EQ(of("{methods: [rtn], name: a}"),
            "config.yaml:5: sweep.name: recipes of a sweep are named after what they are");
  EXPECT_THAT(of("{methods: [gptq], bits: [4]}"),
              HasSubstr("a second recipe named \"gptq-w4g128\""));
  EXPECT_EQ(of("{methods: rtn, bits: 4, except: {bits: 4}}"),
            "config.yaml:5: sweep: `except` leaves no recipe");
}

// The sweep of the papers' models is whole: six methods, every width.
TEST_F(ConfigTest, TheSweepOfThePapersIsWhole) {
  const RunConfig config =
      read_config(source_folder() / "configs/llama-2-70b.yaml",
                  {"model=" + at("model"), "calibration.text=" + at("text.jsonl"),
                   "evaluate.perplexity.0.text=" + at("other.txt")});
  std::map<std::string, int> recipes;
  for (const Recipe& recipe : config.recipes) {
    ++recipes[recipe.method];
    const bool as_awq = recipe.method == "awq" || recipe.method == "llm-mq";
    EXPECT_EQ(recipe.calibration, as_awq ? "awq" : kDefaultCalibration) << recipe.name;
  }
  EXPECT_EQ(recipes, (std::map<std::string, int>{{"rtn", 4},
                                                 {"gptq", 4},
                                                 {"awq", 4},
                                                 {"signround", 4},
                                                 {"squeezellm", 6},
                                                 {"llm-mq", 8}}));
  const std::vector<std::string> names = names_of(config);
  for (const char* width : {"w4", "w4g128", "w3g128", "w2g128"}) {
    for (const char* method : {"rtn", "gptq", "awq", "signround"})
      EXPECT_THAT(names, testing::Contains(std::string(method) + "-" + width));
  }
  for (const char* name : {"squeezellm-w2", "squeezellm-w3-sparse", "llm-mq-w2.2g128"})
    EXPECT_THAT(names, testing::Contains(name));
  EXPECT_EQ(calibration_set(config, "awq").samples, 65);
  EXPECT_EQ(calibration_set(config, "awq").text, config.calibration.text);
}

TEST_F(ConfigTest, TheConfigsOfTheProjectAreRight) {
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(source_folder());
  for (const char* name : {"configs/demo.yaml", "configs/tiny-world.yaml", "configs/sweep.yaml"}) {
    EXPECT_NO_THROW(read_config(name, {})) << name;
  }
  std::filesystem::current_path(before);
}

TEST_F(ConfigTest, TasksFindTheirFilesAndAreWrittenOut) {
  std::filesystem::create_directories(folder_.path() / "data/piqa");
  write("data/piqa/valid.jsonl", "{}");
  write("data/mine.jsonl", "{}");
  std::filesystem::create_directories(folder_.path() / "data/mmlu/test");
  const RunConfig config =
      read(with("evaluate: {protocol: paper, kl: true, task_data: " + at("data") +
                ", limit: 9,\n  perplexity: [{text: " + at("other.txt") +
                "}],\n  tasks: [piqa, mmlu, {name: mine, file: mine.jsonl, "
                "limit: 0}, {name: again, template: piqa, file: " +
                at("data/mine.jsonl") + "}]}\n"));
  const Evaluations& evaluations = config.evaluations;
  EXPECT_EQ(evaluations.protocol, Protocol::kPaper);
  EXPECT_TRUE(evaluations.kl);
  ASSERT_EQ(evaluations.tasks.size(), 4u);
  EXPECT_EQ(evaluations.tasks[0].file, at("data/piqa/valid.jsonl"));
  EXPECT_EQ(evaluations.tasks[0].limit, 9);
  EXPECT_EQ(evaluations.tasks[1].file, at("data/mmlu/test"));
  EXPECT_EQ(evaluations.tasks[2].task, "choices");
  EXPECT_EQ(evaluations.tasks[2].file, at("data/mine.jsonl"));
  EXPECT_EQ(evaluations.tasks[2].limit, 0);
  EXPECT_EQ(evaluations.tasks[3].task, "piqa");
  const std::string written = to_yaml(config);
  EXPECT_EQ(to_yaml(read(written)), written);
  // A template of one's own, alone with a file that it knows, or with another one.
  write("mine.yaml", "include: choices\nfiles: [no.jsonl, mine.jsonl]\n");
  const RunConfig own = read(with("evaluate: {task_data: " + at("data") + ", tasks: [" +
                                  at("mine.yaml") + ", {name: b, template: " + at("mine.yaml") +
                                  ", file: " + at("other.txt") + "}]}\n"));
  ASSERT_EQ(own.evaluations.tasks.size(), 2u);
  EXPECT_EQ(own.evaluations.tasks[0].name, "mine");
  EXPECT_EQ(own.evaluations.tasks[0].task, at("mine.yaml"));
  EXPECT_EQ(own.evaluations.tasks[0].file, at("data/mine.jsonl"));
  EXPECT_EQ(own.evaluations.tasks[1].file, at("other.txt"));
  EXPECT_EQ(to_yaml(read(to_yaml(own))), to_yaml(own));
  EXPECT_EQ(error(with("evaluate: {tasks: [{name: a, template: no.yaml, file: x}]}\n")),
            "config.yaml:5: evaluate.tasks[0].template: there is no file \"no.yaml\"");
  write("mine.yaml", "include: choices\nlables: a\n");
  EXPECT_EQ(error(with("evaluate: {tasks: [" + at("mine.yaml") + "]}\n")),
            "mine.yaml:2: unknown key \"lables\" (did you mean \"labels\"?)");
  EXPECT_EQ(
      error(with("evaluate: {tasks: [{name: average, file: " + at("other.txt") + "}]}\n")),
      "config.yaml:5: evaluate.tasks[0].name: reports call the mean of all tasks \"average\": "
      "take another name");
  // A text and a task cannot have one name.
  EXPECT_EQ(
      error(with("evaluate: {perplexity: [{text: " + at("other.txt") +
                 "}], tasks: [{name: other, file: " + at("other.txt") + "}]}\n")),
      "config.yaml:5: evaluate.tasks[0].name: a second task named \"other\": give one of them "
      "another `name:`");
}

}  // namespace
}  // namespace roundhouse
