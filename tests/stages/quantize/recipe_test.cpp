#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "stages/quantize/methods.h"

namespace roundhouse {
namespace {

using nlohmann::json;

std::string name_of_recipe(const char* text) { return parse_recipe(json::parse(text)).name; }

// "key: what" of the RecipeError that parsing throws.
std::string error_of(const char* text) {
  try {
    parse_recipe(json::parse(text));
  } catch (const RecipeError& error) {
    return error.key + ": " + error.what;
  }
  return "no error";
}

TEST(RecipeTest, NamesFollowFromMethodBitsAndGroup) {
  EXPECT_EQ(name_of_recipe(R"({"method": "rtn"})"), "rtn-w4g128");
  EXPECT_EQ(name_of_recipe(R"({"method": "gptq", "bits": 3, "group_size": 64})"), "gptq-w3g64");
  EXPECT_EQ(name_of_recipe(R"({"method": "gptq", "bits": 2, "group_size": -1})"), "gptq-w2");
}

TEST(RecipeTest, NamesCarryWhatDiffersFromTheDefaults) {
  EXPECT_EQ(name_of_recipe(R"({"method": "rtn", "symmetric": true})"), "rtn-w4g128-symmetric");
  EXPECT_EQ(name_of_recipe(R"({"method": "rtn", "grid": "S-gptq"})"), "rtn-w4g128-symmetric");
  EXPECT_EQ(name_of_recipe(R"({"method": "rtn", "grid": "A-awq"})"), "rtn-w4g128-grid-a-awq");
  EXPECT_EQ(name_of_recipe(R"({"method": "gptq", "damping": 0.05, "act_order": "none",
                               "true_sequential": false, "clip_search": true})"),
            "gptq-w4g128-damping-0.05-act-order-none-no-true-sequential-clip-search");
  EXPECT_EQ(name_of_recipe(R"({"method": "gptq", "damping": 0.01, "act_order": "static",
                               "symmetric": false, "grid": "A-gptq"})"),
            "gptq-w4g128");
}

TEST(RecipeTest, TakesAGivenName) {
  EXPECT_EQ(name_of_recipe(R"({"method": "gptq", "name": "Mine_2.0"})"), "Mine_2.0");
  for (const char* bad :
       {R"({"method": "gptq", "name": ""})", R"({"method": "gptq", "name": "a/b"})",
        R"({"method": "gptq", "name": ".."})"}) {
    EXPECT_THAT(error_of(bad), testing::StartsWith("name: ")) << bad;
  }
}

TEST(RecipeTest, ActOrderMayBeOnOrOff) {
  const auto act_order = [](const char* text) {
    return parse_recipe(json::parse(text)).options.at("act_order").get<std::string>();
  };
  EXPECT_EQ(act_order(R"({"method": "gptq"})"), "static");
  EXPECT_EQ(act_order(R"({"method": "gptq", "act_order": true})"), "static");
  EXPECT_EQ(act_order(R"({"method": "gptq", "act_order": false})"), "none");
  EXPECT_EQ(act_order(R"({"method": "gptq", "act_order": "dynamic"})"), "dynamic");
}

TEST(RecipeTest, ResolvedReadsBackToTheSame) {
  for (
      const char* text :
      {R"({"method": "rtn", "bits": 8, "group_size": -1, "grid": "S-full"})",
       R"({"method": "gptq", "symmetric": true, "damping": 1, "act_order": false, "name": "x"})"}) {
    const Recipe recipe = parse_recipe(json::parse(text));
    const json all = resolved(recipe);
    EXPECT_EQ(resolved(parse_recipe(all)), all) << text;
    EXPECT_NO_THROW(make_method(recipe)) << text;
  }
  EXPECT_EQ(resolved(parse_recipe(json::parse(R"({"method": "gptq"})"))),
            json::parse(R"({"name": "gptq-w4g128", "method": "gptq", "bits": 4, "group_size": 128,
                            "grid": "A-gptq", "symmetric": false, "damping": 0.01,
                            "act_order": "static", "true_sequential": true, "clip_search": false})"));
}

TEST(RecipeTest, KeepsWhatItNeedsAndWhatItsLinearsBecome) {
  const auto gptq = parse_recipe(json::parse(
      R"({"method": "gptq", "bits": 3, "group_size": -1, "symmetric": true, "act_order": "dynamic"})"));
  EXPECT_TRUE(gptq.needs.quantized_stream);
  EXPECT_FALSE(gptq.needs.full_precision_stream);
  EXPECT_TRUE(gptq.needs.calibration());
  const LinearScheme scheme{.bits = 3, .group_size = -1, .grid = Grid::kSymGptq, .reordered = true};
  EXPECT_EQ(gptq.schemes, std::vector{scheme});

  // Gradients come from samples, too, but block by block nothing flows.
  const Needs gradients{.gradients = Needs::Gradients{.samples = 100, .sequence_length = 512}};
  EXPECT_TRUE(gradients.calibration());
  EXPECT_FALSE(gradients.streams());

  const auto rtn = parse_recipe(json::parse(R"({"method": "rtn"})"));
  EXPECT_FALSE(rtn.needs.calibration());
  EXPECT_FALSE(rtn.needs.decision);
  EXPECT_EQ(rtn.schemes, std::vector{LinearScheme{}});

  const auto signround =
      parse_recipe(json::parse(R"({"method": "signround", "batch_size": 4, "samples": 2})"));
  EXPECT_EQ(signround.needs.widest_team, 2);
}

TEST(RecipeTest, ErrorsNameTheKey) {
  EXPECT_EQ(error_of(R"({"bits": 4})"), "method: is missing");
  EXPECT_THAT(error_of(R"({"method": "gptx"})"),
              testing::StartsWith("method: \"gptx\" is not one of rtn, gptq"));
  EXPECT_EQ(error_of(R"({"method": 4})"), "method: must be text");
  EXPECT_EQ(error_of(R"({"method": "rtn", "bits": 9})"), "bits: must be 2, 3, 4, 5, 6, 7 or 8");
  EXPECT_EQ(error_of(R"({"method": "rtn", "bits": 4.0})"), "bits: must be a whole number");
  EXPECT_EQ(error_of(R"({"method": "rtn", "group_size": 0})"),
            "group_size: must be at least 1, or -1 for the whole row");
  EXPECT_EQ(error_of(R"({"method": "rtn", "damping": 0.1})"),
            "damping: is not an option of this method");
  EXPECT_EQ(error_of(R"({"method": "gptq", "damping": 1.5})"),
            "damping: must be a number from 0.0 to 1.0");
  EXPECT_EQ(error_of(R"({"method": "gptq", "damping": "high"})"),
            "damping: must be a number from 0.0 to 1.0");
  EXPECT_EQ(error_of(R"({"method": "gptq", "act_order": "yes"})"),
            "act_order: must be one of static, dynamic, none");
  EXPECT_EQ(error_of(R"({"method": "gptq", "true_sequential": 1})"),
            "true_sequential: must be true or false");
  EXPECT_EQ(error_of(R"({"method": "gptq", "grid": "A-awq"})"),
            "grid: must be one of A-gptq, S-gptq, S-full");
  EXPECT_EQ(error_of(R"({"method": "rtn", "grid": "A-awq", "symmetric": true})"),
            "symmetric: contradicts grid A-awq");
  EXPECT_EQ(error_of(R"({"method": "rtn", "grid": "S-full", "symmetric": false})"),
            "symmetric: contradicts grid S-full");
  EXPECT_EQ(error_of("[1]"), ": a recipe is a set of keys, as in {method: gptq, bits: 4}");
}

std::string with_overrides(const std::string& recipe, const std::string& overrides) {
  return "{" + recipe + ", \"overrides\": " + overrides + "}";
}

TEST(OverridesTest, AreReadByTheMethodsOwnRules) {
  const Recipe recipe = parse_recipe(json::parse(with_overrides(
      R"("method": "gptq", "bits": 3, "act_order": "dynamic")",
      R"([{"match": "*.down_proj", "bits": 8, "group_size": 64}, {"match": "*.q_proj", "symmetric": true},
          {"match": "model.layers.0.*", "skip": true}, {"match": "*.o_proj", "skip": false}])")));
  const LinearScheme usual{.bits = 3, .grid = Grid::kAsymGptq, .reordered = true};
  LinearScheme down = usual, query = usual;
  down.bits = 8;
  down.group_size = 64;
  query.grid = Grid::kSymGptq;
  EXPECT_EQ(recipe.schemes, (std::vector{usual, down, query}));
  EXPECT_EQ(own_schemes(recipe), std::vector{usual});
  EXPECT_TRUE(recipe.skips());
  const auto of = [&](const char* module) { return find_override(recipe.overrides, module); };
  EXPECT_EQ(of("model.layers.3.mlp.down_proj")->scheme, down);
  EXPECT_EQ(of("model.layers.3.mlp.up_proj"), nullptr);
  // The last one that matches counts, alone: the one of block 0 before that of its down_proj, and o_proj is exempt from both.
  EXPECT_TRUE(of("model.layers.0.mlp.down_proj")->scheme->is_original());
  EXPECT_FALSE(of("model.layers.0.self_attn.o_proj")->scheme.has_value());

  const json all = resolved(recipe);
  EXPECT_EQ(resolved(parse_recipe(all)), all);
  EXPECT_EQ(parse_recipe(all).schemes, recipe.schemes);
  EXPECT_FALSE(make_method(recipe)->schemes().empty());
}

TEST(OverridesTest, AGridOfTheRightKindStays) {
  const auto grid = [](const char* usual, const char* asked) {
    return parse_recipe(
               json::parse(with_overrides(std::string(R"("method": "rtn", )") + usual,
                                          std::string(R"([{"match": "*", )") + asked + "}]")))
        .overrides.front()
        .scheme->grid;
  };
  EXPECT_EQ(grid(R"("grid": "S-full")", R"("symmetric": true)"), Grid::kSymFull);
  EXPECT_EQ(grid(R"("grid": "A-awq")", R"("symmetric": true)"), Grid::kSymGptq);
  EXPECT_EQ(grid(R"("grid": "S-full")", R"("symmetric": false)"), Grid::kAsymGptq);
  EXPECT_EQ(grid(R"("symmetric": true)", R"("grid": "A-awq")"), Grid::kAsymAwq);
}

TEST(OverridesTest, NamesAreShortAndFollowFromTheEntries) {
  const auto name = [](const char* overrides) {
    return name_of_recipe(with_overrides(R"("method": "rtn")", overrides).c_str());
  };
  const std::string eight = name(R"([{"match": "*.down_proj", "bits": 8}])");
  EXPECT_THAT(eight, testing::MatchesRegex("rtn-w4g128-overrides-[0-9a-f]+"));
  EXPECT_EQ(eight.size(), std::string("rtn-w4g128-overrides-").size() + 8);
  EXPECT_EQ(eight, name(R"([{"bits": 8, "match": "*.down_proj"}])"));
  EXPECT_NE(eight, name(R"([{"match": "*.down_proj", "bits": 7}])"));
  EXPECT_EQ(name("[]"), "rtn-w4g128");
  EXPECT_FALSE(resolved(parse_recipe({{"method", "rtn"}})).contains("overrides"));
}

TEST(OverridesTest, TheHeadIsNoTarget) {
  EXPECT_EQ(error_of(R"({"method": "rtn", "include": "lm_head"})"),
            "include: must be a list of lm_head and embed_tokens, as in [lm_head]");
  EXPECT_EQ(error_of(R"({"method": "rtn", "include": ["head"]})"),
            "include: must be a list of lm_head and embed_tokens, as in [lm_head]");
  EXPECT_EQ(error_of(R"({"method": "rtn", "include": ["lm_head", "lm_head"]})"),
            "include: names lm_head twice");
  EXPECT_THAT(error_of(R"({"method": "gptq", "include": ["embed_tokens"]})"),
              testing::StartsWith("include: \"embed_tokens\": its inputs are one-hot"));
  EXPECT_THAT(
      error_of(R"({"method": "awq", "include": ["lm_head"]})"),
      testing::StartsWith("include: \"lm_head\": this method makes linears of blocks only"));
}

TEST(OverridesTest, MistakesNameTheEntryAndTheKey) {
  const auto error = [](const char* recipe, const char* overrides) {
    return error_of(with_overrides(recipe, overrides).c_str());
  };
  const char* const rtn = R"("method": "rtn")";
  EXPECT_EQ(error(rtn, R"([{"match": "*", "bits": 8}, {"match": "*", "bits": 9}])"),
            "overrides[1].bits: must be 2, 3, 4, 5, 6, 7 or 8");
  EXPECT_EQ(error(rtn, R"([{"bits": 8}])"), "overrides[0].match: is missing");
  EXPECT_EQ(error(rtn, R"([{"match": "*", "bit": 8}])"),
            "overrides[0].bit: is no key of an override (did you mean \"bits\"?)");
  EXPECT_THAT(error(rtn, R"([{"match": "*"}])"),
              testing::StartsWith("overrides[0]: says nothing beside `match`"));
  EXPECT_THAT(error(rtn, R"([{"match": "*", "skip": true, "bits": 4}])"),
              testing::StartsWith("overrides[0].skip: leaves the linear as it is"));
  EXPECT_THAT(error(rtn, R"({"match": "*", "bits": 4})"),
              testing::StartsWith("overrides: must be a list"));
  EXPECT_THAT(error(R"("method": "gptq")", R"([{"match": "*", "damping": 0.1}])"),
              testing::StartsWith("overrides[0].damping: is the same for all linears"));
  EXPECT_EQ(error(R"("method": "squeezellm")", R"([{"match": "*", "bits": 8}])"),
            "overrides[0].bits: must be 2, 3 or 4");
  EXPECT_EQ(error(R"("method": "squeezellm")", R"([{"match": "*", "group_size": 64}])"),
            "overrides[0].group_size: is not an option of this method");
  EXPECT_THAT(error(R"("method": "llm-mq", "bits": 2.6)", R"([{"match": "*", "group_size": 64}])"),
              testing::StartsWith("overrides[0].bits: is missing: this method chooses"));
  EXPECT_EQ(error(R"("method": "llm-mq", "bits": 2.6)", R"([{"match": "*", "bits": 2.5}])"),
            "overrides[0].bits: must be one of 2, 3, 4");
}

TEST(OptionReaderTest, IntegersAreWholeAndInRange) {
  const json object = json::parse(R"({"a": 3, "b": 2.5, "c": 99999999999})");
  OptionReader options(object);
  EXPECT_EQ(options.integer("a", 1, 0, 10), 3);
  EXPECT_EQ(options.integer("d", 1, 0, 10), 1);
  EXPECT_THROW(options.integer("b", 1, 0, 10), RecipeError);
  EXPECT_THROW(options.integer("c", 1, 0, 10), RecipeError);
  EXPECT_EQ(options.name_suffix(), "-a-3");
  EXPECT_EQ(options.resolved(), json::parse(R"({"a": 3, "d": 1})"));
}

// In their order, in the name and in what is written out; without them nothing is.
TEST(RecipeTest, WhatIsIncludedIsInNameAndIdentity) {
  const Recipe both = parse_recipe({{"method", "rtn"}, {"include", {"lm_head", "embed_tokens"}}});
  EXPECT_EQ(both.name, "rtn-w4g128-embed_tokens-lm_head");
  EXPECT_EQ(resolved(both)["include"], (nlohmann::json{"embed_tokens", "lm_head"}));
  EXPECT_EQ(resolved(parse_recipe(resolved(both))), resolved(both));
  EXPECT_EQ(both.units(6), 7);
  const Recipe head = parse_recipe(nlohmann::json::parse(
      R"({"method": "gptq", "include": ["lm_head"], "overrides": [{"match": "lm_head", "bits": 8}]})"));
  EXPECT_THAT(head.name, testing::StartsWith("gptq-w4g128-lm_head-overrides-"));
  const Recipe none = parse_recipe({{"method", "gptq"}});
  EXPECT_EQ(none.name, "gptq-w4g128");
  EXPECT_FALSE(resolved(none).contains("include"));
  EXPECT_EQ(resolved(parse_recipe({{"method", "gptq"}, {"include", nlohmann::json::array()}})),
            resolved(none));
  EXPECT_EQ(none.units(6), 6);
}

}  // namespace
}  // namespace roundhouse
