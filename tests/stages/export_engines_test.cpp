#include "stages/export/engines.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/file.h"
#include "model/causal_lm.h"
#include "stages/export/format.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using testing::Not;

Recipe recipe(int bits, bool symmetric, int group_size = 128, const char* act_order = "static") {
  return parse_recipe({{"method", "gptq"},
                       {"bits", bits},
                       {"group_size", group_size},
                       {"symmetric", symmetric},
                       {"act_order", act_order}});
}

std::string refusal(const Recipe& recipe, const std::string& format,
                    const std::vector<std::string>& engines) {
  try {
    check_served(recipe, format, engines);
  } catch (const InputError& error) {
    return error.what();
  }
  return "served";
}

TEST(EnginesTest, FourAndEightBitsSymmetricAreServedEverywhere) {
  for (const std::string& engine : engine_names()) {
    for (const int bits : {4, 8}) {
      for (const char* format : {"compressed-tensors", "gptq"}) {
        const std::string said = refusal(recipe(bits, true), format, {engine});
        EXPECT_THAT(said, AnyOf("served", HasSubstr("does not read this format")));
      }
    }
  }
}

TEST(EnginesTest, AsymmetricGptqIsRefusedWhereOnlySymmetricOneIsServed) {
  EXPECT_THAT(refusal(recipe(4, false), "gptq", {"transformers", "vllm"}),
              AllOf(HasSubstr("recipe gptq-w4g128 as gptq"), HasSubstr("vLLM 0.33.0"),
                    HasSubstr("an asymmetric grid of 4 bits"),
                    HasSubstr("it takes symmetric grids of 4 and 8 bits"),
                    HasSubstr("use the format 'awq', the format 'dense', symmetric: true")));
  EXPECT_THAT(refusal(recipe(4, false), "gptq", {"sglang"}), HasSubstr("SGLang"));
  EXPECT_EQ(refusal(recipe(4, false), "gptq", {"transformers", "gptqmodel"}), "served");
}

TEST(EnginesTest, WhatIsOfferedInsteadIsServedByAllOfThem) {
  const std::string said =
      refusal(recipe(4, false), "compressed-tensors", {"vllm", "transformers"});
  EXPECT_THAT(said, AllOf(HasSubstr("transformers 5.24.0"), HasSubstr("'awq'"),
                          Not(HasSubstr("'gptq'"))));  // transformers would, vLLM would not
}

TEST(EnginesTest, WidthsGroupsAndOrderCount) {
  EXPECT_THAT(refusal(recipe(3, true), "gptq", {"vllm"}),
              HasSubstr("a symmetric grid of 3 bits there"));
  EXPECT_THAT(refusal(recipe(4, true, 16), "gptq", {"vllm"}), HasSubstr("refuses groups of 16"));
  EXPECT_EQ(refusal(recipe(4, true, -1), "gptq", {"vllm"}), "served");
  EXPECT_THAT(
      refusal(recipe(4, true, 128, "dynamic"), "gptq", {"vllm"}),
      AllOf(HasSubstr("refuses act_order: dynamic"), HasSubstr("act_order: static in the recipe")));
  EXPECT_EQ(refusal(recipe(4, true, -1, "dynamic"), "gptq", {"vllm"}), "served")
      << "one group a row has no order";
}

TEST(EnginesTest, TransformersDoesNotReadTheWidthsOfSingleLinearsInGptq) {
  Recipe mixed = recipe(4, true);
  mixed.schemes.push_back(mixed.schemes.front());
  mixed.schemes.back().bits = 2;
  EXPECT_THAT(refusal(mixed, "gptq", {"transformers"}),
              AllOf(HasSubstr("refuses linears of different widths or groups there"),
                    HasSubstr("'compressed-tensors'")));
  EXPECT_EQ(refusal(mixed, "gptq", {"gptqmodel"}), "served");
  EXPECT_EQ(refusal(mixed, "compressed-tensors", {"transformers"}), "served");
}

// vLLM and SGLang have one matrix for q, k and v, and one for gate and up.
TEST(EnginesTest, EnginesThatFuseLinearsWantThemAlike) {
  const auto llm_mq = [](const char* tie) {
    return parse_recipe(
        {{"method", "llm-mq"}, {"bits", 3.0}, {"tie", tie}, {"outliers", 0}, {"symmetric", true}});
  };
  EXPECT_EQ(refusal(llm_mq("fused"), "compressed-tensors", {"vllm", "transformers"}), "served");
  EXPECT_THAT(refusal(llm_mq("none"), "compressed-tensors", {"vllm"}),
              AllOf(HasSubstr("vLLM 0.33.0 refuses different widths"), HasSubstr("it fuses"),
                    HasSubstr("'dense'"), HasSubstr("tie: fused in the recipe")));
  EXPECT_EQ(refusal(llm_mq("none"), "compressed-tensors", {"transformers"}), "served");
  EXPECT_EQ(refusal(llm_mq("none"), "gptq", {"gptqmodel"}), "served");
  EXPECT_EQ(refusal(llm_mq("none"), "dense", {"vllm", "sglang"}), "served");
  Recipe wide = llm_mq("none");
  for (LinearScheme& scheme : wide.schemes) scheme.bits = scheme.bits == 4 ? 8 : 4;
  EXPECT_THAT(refusal(wide, "compressed-tensors", {"sglang"}),
              AllOf(HasSubstr("SGLang 0.5.23 refuses different widths"),
                    HasSubstr("tie: fused in the recipe")));
}

// What the formats themselves refuse of the methods that start from gradients.
TEST(EnginesTest, FormatsSayHowWhatTheyCannotHoldCanBeExported) {
  const auto refused = [](const nlohmann::json& options, const std::string& format) {
    try {
      make_format(format)->check_schemes(parse_recipe(options));
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("held");
  };
  nlohmann::json llm_mq = {{"method", "llm-mq"}, {"bits", 2.6}};
  for (const char* format : {"compressed-tensors", "gptq"}) {
    llm_mq.erase("outliers");
    EXPECT_THAT(refused(llm_mq, format), AllOf(HasSubstr("llm-mq-w2.6g128"),
                                               HasSubstr("outliers: 0"), HasSubstr("'dense'")));
    llm_mq["outliers"] = 0;
    EXPECT_EQ(refused(llm_mq, format), "held");
    EXPECT_THAT(refused({{"method", "squeezellm"}}, format),
                AllOf(HasSubstr("lookup table"), HasSubstr("'squeezellm' and 'dense'")));
  }
  EXPECT_NE(refused(llm_mq, "awq"), "held");
  EXPECT_THAT(refused(llm_mq, "squeezellm"), HasSubstr("'compressed-tensors', 'gptq' or 'dense'"));
  for (const bool sparse : {false, true}) {
    EXPECT_EQ(refused({{"method", "squeezellm"}, {"sparse", sparse}}, "squeezellm"), "held");
    EXPECT_EQ(refused({{"method", "squeezellm"}, {"sparse", sparse}}, "dense"), "held");
  }
}

// What engines fuse must be alike, and whether it is only the model says.
TEST(EnginesTest, OverridesThatPartFusedLinearsAreRefused) {
  const CausalLM model(source_folder() / "tests/data/tiny-world");
  const auto backend = make_backend("cpu", {});
  const auto decoder = make_decoder_block(model.config(), 16, *backend);
  const auto said = [&](const char* overrides, const char* format, const char* engine) {
    const Recipe mixed = parse_recipe(
        {{"method", "rtn"}, {"symmetric", true}, {"overrides", nlohmann::json::parse(overrides)}});
    try {
      check_served(mixed, *decoder, static_cast<int>(model.config().blocks), format, {engine});
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("served");
  };
  const char* const down = R"([{"match": "*.down_proj", "bits": 8}])";
  const char* const query = R"([{"match": "model.layers.3.self_attn.q_proj", "bits": 8}])";
  const char* const gate = R"([{"match": "*.gate_proj", "skip": true}])";
  const char* const block = R"([{"match": "model.layers.0.*", "skip": true}])";
  for (const char* engine : {"vllm", "sglang"}) {
    for (const char* format : {"compressed-tensors", "gptq"}) {
      EXPECT_EQ(said(down, format, engine), "served");
      EXPECT_EQ(said(block, format, engine), "served");
      for (const char* overrides : {query, gate}) {
        EXPECT_THAT(said(overrides, format, engine),
                    AllOf(HasSubstr("different widths of linears with a common input"),
                          HasSubstr("overrides that are the same for q, k, v")));
      }
    }
  }
  EXPECT_EQ(said(query, "compressed-tensors", "transformers"), "served");
  EXPECT_EQ(said(query, "gptq", "gptqmodel"), "served");
  EXPECT_THAT(said(down, "gptq", "transformers"), HasSubstr("linears of different widths"));
  EXPECT_THAT(said(block, "gptq", "transformers"), HasSubstr("linears that are left as they are"));
}

// Before any work: what matches nothing, groups that do not fit, nothing left to do.
TEST(EnginesTest, OverridesThatDoNotFitTheModelAreRefused) {
  const CausalLM model(source_folder() / "tests/data/tiny-world");
  const auto backend = make_backend("cpu", {});
  const auto decoder = make_decoder_block(model.config(), 16, *backend);
  const auto said = [&](const char* overrides) {
    Recipe recipe =
        parse_recipe({{"method", "rtn"}, {"overrides", nlohmann::json::parse(overrides)}});
    recipe.where["overrides[0].match"] = "run.yaml:7: recipes[0].overrides[0].match";
    try {
      check_overrides(recipe, *decoder, static_cast<int>(model.config().blocks));
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("fits");
  };
  EXPECT_EQ(said(R"([{"match": "*.down_proj", "bits": 8, "group_size": 64}])"), "fits");
  EXPECT_THAT(said(R"([{"match": "*.down_porj", "bits": 8}])"),
              AllOf(testing::StartsWith("run.yaml:7: recipes[0].overrides[0].match: no linear that "
                                        "this recipe quantizes is called \"*.down_porj\""),
                    HasSubstr("\"*.down_proj\"")));
  EXPECT_THAT(said(R"([{"match": "model.layers.77.mlp.down_proj", "bits": 8}])"),
              HasSubstr("no linear that this recipe quantizes"));
  EXPECT_THAT(said(R"([{"match": "lm_head", "bits": 8}])"),
              HasSubstr("model.layers.0.self_attn.q_proj"));
  EXPECT_THAT(said(R"([{"match": "*", "group_size": 48}])"),
              HasSubstr("48 does not divide the 256 columns of model.layers.0.self_attn.q_proj"));
  EXPECT_THAT(said(R"([{"match": "*", "skip": true}])"),
              HasSubstr("no linear is left to quantize"));
}

TEST(EnginesTest, AFormatThatAnEngineDoesNotReadIsRefused) {
  EXPECT_THAT(refusal(recipe(4, true), "compressed-tensors", {"gptqmodel"}),
              AllOf(HasSubstr("GPTQModel 7.7.0 does not read this format"), HasSubstr("'gptq'")));
}

TEST(EnginesTest, WithoutEnginesNothingIsRefusedAndAnUnknownOneIsAnError) {
  EXPECT_EQ(refusal(recipe(2, false, 16, "dynamic"), "gptq", {}), "served");
  EXPECT_THAT(refusal(recipe(4, true), "gptq", {"llama.cpp"}),
              AllOf(HasSubstr("unknown engine 'llama.cpp'"), HasSubstr("vllm, sglang")));
}

TEST(EnginesTest, TheDocumentationShowsTheTable) {
  const std::string text = read_text_file(source_folder() / "docs" / "formats.md");
  for (const std::string& row : engine_table()) EXPECT_NE(text.find(row + "\n"), text.npos) << row;
}

}  // namespace
}  // namespace roundhouse
