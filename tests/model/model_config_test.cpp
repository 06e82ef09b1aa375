#include "model/model_config.h"

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/model_files.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

ModelConfig read(const json& config) {
  const TemporaryFolder directory;
  write_file(directory / "config.json", config.dump());
  return read_model_config(directory.path());
}

json with(json config, const json& changes) {
  config.update(changes);
  return config;
}

json without(json config, const char* key) {
  config.erase(key);
  return config;
}

json mistral() {
  return with(small_config(),
              {{"architectures", {"MistralForCausalLM"}}, {"model_type", "mistral"}});
}

TEST(ModelConfigTest, ReadsTinyWorld) {
  const ModelConfig c = read_model_config(tiny_world());
  EXPECT_EQ(c.architecture, Architecture::kLlama);
  EXPECT_EQ(c.hidden_size, 256);
  EXPECT_EQ(c.intermediate_size, 768);
  EXPECT_EQ(c.blocks, 6);
  EXPECT_EQ(c.heads, 8);
  EXPECT_EQ(c.kv_heads, 4);
  EXPECT_EQ(c.head_dim, 32);
  EXPECT_EQ(c.vocabulary, 1024);
  EXPECT_EQ(c.max_positions, 512);
  EXPECT_EQ(c.sliding_window, 0);
  EXPECT_EQ(c.norm_epsilon, 1e-5f);
  EXPECT_EQ(c.rope.theta, 10000.0);
  EXPECT_EQ(c.rope.columns, 32);
  EXPECT_EQ(c.rope.scaling, RopeConfig::Scaling::kNone);
  EXPECT_FALSE(c.tied_embeddings);
  EXPECT_EQ(c.dtype, DType::kF16);
  EXPECT_EQ(c.bos, 1);
  EXPECT_THAT(c.eos, ElementsAre(2));
}

TEST(ModelConfigTest, WhatIsAbsentOrNullTakesItsDefault) {
  const json bare = {{"model_type", "llama"},  {"hidden_size", 32}, {"intermediate_size", 48},
                     {"num_hidden_layers", 2}, {"vocab_size", 40},  {"num_attention_heads", 4}};
  for (const json& config : {bare, with(bare, {{"num_key_value_heads", nullptr},
                                               {"head_dim", nullptr},
                                               {"rope_scaling", nullptr},
                                               {"rope_theta", nullptr},
                                               {"attention_bias", nullptr},
                                               {"quantization_config", nullptr},
                                               {"sliding_window", nullptr},
                                               {"torch_dtype", nullptr}})}) {
    const ModelConfig c = read(config);
    EXPECT_EQ(c.kv_heads, 4);
    EXPECT_EQ(c.head_dim, 8);
    EXPECT_EQ(c.rope.theta, 10000.0);
    EXPECT_EQ(c.norm_epsilon, 1e-6f);
    EXPECT_EQ(c.max_positions, 2048);
    EXPECT_EQ(c.sliding_window, 0);
    EXPECT_FALSE(c.tied_embeddings);
    EXPECT_EQ(c.dtype, DType::kF16);
    EXPECT_EQ(c.bos, 1);
    EXPECT_THAT(c.eos, ElementsAre(2));
  }
}

TEST(ModelConfigTest, MistralHasAWindowUnlessItIsNull) {
  EXPECT_EQ(read(mistral()).architecture, Architecture::kMistral);
  EXPECT_EQ(read(mistral()).sliding_window, 4096);
  EXPECT_EQ(read(with(mistral(), {{"sliding_window", nullptr}})).sliding_window, 0);
  EXPECT_EQ(read(with(mistral(), {{"sliding_window", 7}})).sliding_window, 7);
  EXPECT_EQ(read(with(small_config(), {{"sliding_window", 7}})).sliding_window, 0)
      << "LLaMA knows no such key";
}

TEST(ModelConfigTest, MistralWithoutKeyValueHeadsHasEight) {
  const json config = with(mistral(), {{"num_attention_heads", 16}});
  EXPECT_EQ(read(without(config, "num_key_value_heads")).kv_heads, 8);
  EXPECT_EQ(read(with(config, {{"num_key_value_heads", nullptr}})).kv_heads, 16);
}

json opt() { return small_opt_config(); }

TEST(ModelConfigTest, ReadsOpt) {
  const ModelConfig c = read(opt());
  EXPECT_EQ(c.architecture, Architecture::kOpt);
  EXPECT_EQ(c.intermediate_size, 48);
  EXPECT_EQ(c.kv_heads, 4);
  EXPECT_EQ(c.head_dim, 8);
  EXPECT_EQ(c.max_positions, 64);
  EXPECT_EQ(c.norm_epsilon, 1e-5f);
  EXPECT_EQ(c.embedding_size, 32);
  EXPECT_TRUE(c.qkv_bias && c.output_bias && c.mlp_bias);
  EXPECT_TRUE(c.norm_first);
  EXPECT_TRUE(c.affine_norms);
  EXPECT_TRUE(c.final_norm);
  EXPECT_TRUE(c.tied_embeddings) << "unless the config says otherwise";
  EXPECT_EQ(c.bos, 2);
  EXPECT_EQ(read(without(opt(), "bos_token_id")).bos, 2);
}

TEST(ModelConfigTest, Opt350mHasNormsLastAndNarrowEmbeddings) {
  const ModelConfig c =
      read(with(opt(), {{"do_layer_norm_before", false}, {"word_embed_proj_dim", 16}}));
  EXPECT_FALSE(c.norm_first);
  EXPECT_FALSE(c.final_norm);
  EXPECT_EQ(c.embedding_size, 16);
}

TEST(ModelConfigTest, KeysThatOnlyOptHas) {
  EXPECT_FALSE(read(with(opt(), {{"_remove_final_layer_norm", true}})).final_norm);
  const ModelConfig bare = read(with(opt(), {{"enable_bias", false}}));
  EXPECT_FALSE(bare.qkv_bias || bare.output_bias || bare.mlp_bias);
  EXPECT_FALSE(read(with(opt(), {{"layer_norm_elementwise_affine", false}})).affine_norms);
  EXPECT_FALSE(read(with(opt(), {{"tie_word_embeddings", false}})).tied_embeddings);
  EXPECT_EQ(read(without(opt(), "word_embed_proj_dim")).embedding_size, 32);
  EXPECT_EQ(read(without(opt(), "max_position_embeddings")).max_positions, 2048);
  const auto error_of = [](const json& changes) {
    return input_error_of([&] { (void)read(with(opt(), changes)); });
  };
  EXPECT_THAT(error_of({{"activation_function", "gelu"}}),
              HasSubstr("activation_function: \"gelu\""));
  EXPECT_THAT(error_of({{"ffn_dim", nullptr}}), HasSubstr("ffn_dim: is missing"));
  EXPECT_THAT(error_of({{"num_attention_heads", 5}}),
              HasSubstr("num_attention_heads: must divide"));
  EXPECT_THAT(error_of({{"word_embed_proj_dim", 0}}), HasSubstr("word_embed_proj_dim"));
  EXPECT_THAT(error_of({{"enable_bias", 1}}), HasSubstr("enable_bias: must be true or false"));
  EXPECT_THAT(error_of({{"max_position_embeddings", 1 << 30}}),
              HasSubstr("max_position_embeddings"));
}

TEST(ModelConfigTest, RopeMayBeSpelledInThreeWays) {
  const json bare = without(small_config(), "rope_theta");
  EXPECT_EQ(read(with(bare, {{"rope_theta", 1000000}})).rope.theta, 1e6);
  EXPECT_EQ(read(with(bare, {{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e6}}}}))
                .rope.theta,
            1e6);
  EXPECT_EQ(read(with(bare, {{"rope_scaling", {{"type", "default"}}}})).rope.theta, 1e4);
}

// As Llama-3.1-8B's config.json has it.
TEST(ModelConfigTest, ReadsTheRotationOfLlama3) {
  const json scaling = {{"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 8192},
                        {"rope_type", "llama3"}};
  const json config = with(
      small_config(),
      {{"rope_theta", 500000.0}, {"max_position_embeddings", 131072}, {"rope_scaling", scaling}});
  const RopeConfig rope = read(config).rope;
  EXPECT_EQ(rope.scaling, RopeConfig::Scaling::kLlama3);
  EXPECT_EQ(rope.theta, 500000.0);
  EXPECT_EQ(rope.factor, 8.0);
  EXPECT_EQ(rope.low_frequency_factor, 1.0);
  EXPECT_EQ(rope.high_frequency_factor, 4.0);
  EXPECT_EQ(rope.original_positions, 8192);
  // As transformers 5 writes it.
  json parameters = scaling;
  parameters["rope_theta"] = 500000.0;
  json other = without(without(config, "rope_scaling"), "rope_theta");
  EXPECT_EQ(read(with(other, {{"rope_parameters", parameters}})).rope, rope);
  EXPECT_EQ(read(with(config, {{"rope_parameters", parameters}})).rope, rope)
      << "both, and the same";
}

TEST(ModelConfigTest, PositionsOfTheFirstTrainingStandBesideOrWithinOrAreAllPositions) {
  const json yarn = {{"type", "yarn"}, {"factor", 4.0}};
  const auto positions = [](const json& changes) {
    return read(with(small_config(), changes)).rope.original_positions;
  };
  EXPECT_EQ(positions({{"rope_scaling", yarn}}), 64);
  EXPECT_EQ(positions({{"rope_scaling", with(yarn, {{"original_max_position_embeddings", 16}})}}),
            16);
  EXPECT_EQ(positions({{"rope_scaling", with(yarn, {{"original_max_position_embeddings", 16}})},
                       {"original_max_position_embeddings", 32}}),
            32);
}

json of(const char* model_type, const char* class_name, const json& changes = json::object()) {
  return small_config(model_type, class_name, changes);
}

TEST(ModelConfigTest, Qwen2HasBiasesAndAWindowWhereItIsUsed) {
  const ModelConfig c = read(
      of("qwen2", "Qwen2ForCausalLM", {{"use_sliding_window", false}, {"sliding_window", 16}}));
  EXPECT_TRUE(c.qkv_bias);
  EXPECT_FALSE(c.output_bias || c.mlp_bias);
  EXPECT_EQ(c.window_of(1), 0);
  EXPECT_EQ(c.bos, -1);
  EXPECT_THAT(c.eos, IsEmpty());
  const json windowed =
      of("qwen2", "Qwen2ForCausalLM",
         {{"use_sliding_window", true}, {"sliding_window", 16}, {"max_window_layers", 1}});
  EXPECT_EQ(read(windowed).window_of(0), 0);
  EXPECT_EQ(read(windowed).window_of(1), 16);
  const ModelConfig listed =
      read(with(windowed, {{"layer_types", {"sliding_attention", "full_attention"}}}));
  EXPECT_EQ(listed.window_of(0), 16);
  EXPECT_EQ(listed.window_of(1), 0);
  EXPECT_EQ(read(with(windowed, {{"sliding_window", nullptr}})).window_of(1), 0);
}

TEST(ModelConfigTest, Qwen3NormalizesHeadsOf128) {
  const ModelConfig c = read(of("qwen3", "Qwen3ForCausalLM"));
  EXPECT_EQ(c.query_key_norm, QueryKeyNorm::kHeads);
  EXPECT_EQ(c.head_dim, 128);
  EXPECT_EQ(c.rope.columns, 128);
  EXPECT_FALSE(c.qkv_bias);
  EXPECT_TRUE(read(of("qwen3", "Qwen3ForCausalLM", {{"attention_bias", true}})).output_bias);
}

TEST(ModelConfigTest, Phi3IsFusedAndMayRotateAPartOfEachHead) {
  const ModelConfig plain = read(of("phi3", "Phi3ForCausalLM"));
  EXPECT_TRUE(plain.fused_linears);
  EXPECT_EQ(plain.rope.columns, 8);
  EXPECT_EQ(plain.sliding_window, 0);
  const json factors = {1.0, 2.0};
  const json longer =
      of("phi3", "Phi3ForCausalLM",
         {{"partial_rotary_factor", 0.5},
          {"max_position_embeddings", 64},
          {"original_max_position_embeddings", 16},
          {"rope_scaling",
           {{"type", "longrope"}, {"short_factor", factors}, {"long_factor", factors}}}});
  const RopeConfig rope = read(longer).rope;
  EXPECT_EQ(rope.scaling, RopeConfig::Scaling::kLongRope);
  EXPECT_EQ(rope.columns, 4);
  EXPECT_EQ(rope.original_positions, 16);
  EXPECT_NEAR(rope.magnitude, std::sqrt(1 + std::log(4.0) / std::log(16.0)), 1e-12);
  json odd = longer;
  odd["partial_rotary_factor"] = 0.4;
  EXPECT_THAT(input_error_of([&] { (void)read(odd); }),
              HasSubstr("partial_rotary_factor: makes 3 of 8 columns"));
}

TEST(ModelConfigTest, Olmo2NormalizesOutputsAndGraniteMultiplies) {
  const ModelConfig olmo = read(of("olmo2", "Olmo2ForCausalLM"));
  EXPECT_TRUE(olmo.norms_of_outputs);
  EXPECT_EQ(olmo.query_key_norm, QueryKeyNorm::kAll);
  const ModelConfig granite = read(of("granite", "GraniteForCausalLM",
                                      {{"attention_multiplier", 0.25},
                                       {"residual_multiplier", 0.5},
                                       {"embedding_multiplier", 12},
                                       {"logits_scaling", 8.0}}));
  EXPECT_EQ(granite.attention_scale, 0.25f);
  EXPECT_EQ(granite.residual_multiplier, 0.5f);
  EXPECT_EQ(granite.embedding_multiplier, 12.0f);
  EXPECT_EQ(granite.logits_divisor, 8.0f);
}

TEST(ModelConfigTest, Gemma3TurnsBlocksWithAWindowByABaseOfTheirOwn) {
  // As published for older versions of transformers: most keys are absent.
  const json plain = {{"architectures", {"Gemma3ForCausalLM"}},
                      {"model_type", "gemma3_text"},
                      {"hidden_size", 48},
                      {"intermediate_size", 96},
                      {"num_hidden_layers", 12},
                      {"num_attention_heads", 4},
                      {"vocab_size", 40},
                      {"rope_scaling", {{"factor", 8.0}, {"rope_type", "linear"}}},
                      {"torch_dtype", "bfloat16"}};
  const ModelConfig c = read(plain);
  EXPECT_EQ(c.kv_heads, 4);
  EXPECT_EQ(c.head_dim, 256);
  EXPECT_TRUE(c.tied_embeddings);
  EXPECT_TRUE(c.norms_of_inputs && c.norms_of_outputs);
  EXPECT_EQ(c.norm_offset, 1.0f);
  EXPECT_EQ(c.query_key_norm, QueryKeyNorm::kHeads);
  EXPECT_EQ(c.gate, GateFunction::kGeluTanh);
  EXPECT_EQ(c.embedding_multiplier, 6.9375f) << "sqrt(48) in bfloat16";
  EXPECT_EQ(c.attention_scale, 0.0625f);
  EXPECT_EQ(c.score_cap, 0.0f);
  EXPECT_EQ(c.logit_cap, 0.0f);
  EXPECT_EQ(c.bos, 2);
  EXPECT_THAT(c.eos, ElementsAre(1));
  EXPECT_EQ(c.window_of(4), 4096);
  EXPECT_EQ(c.window_of(5), 0);
  EXPECT_EQ(c.window_of(11), 0);
  EXPECT_EQ(c.rope.theta, 1e6);
  EXPECT_EQ(c.rope.factor, 8.0);
  EXPECT_EQ(c.window_rope->theta, 1e4);
  EXPECT_EQ(c.window_rope->scaling, RopeConfig::Scaling::kNone);
  const ModelConfig other = read(with(plain, {{"sliding_window_pattern", 2},
                                              {"sliding_window", 7},
                                              {"rope_theta", 5e5},
                                              {"rope_local_base_freq", 300.0},
                                              {"query_pre_attn_scalar", 64},
                                              {"dtype", "float32"}}));
  EXPECT_EQ(other.window_of(1), 0);
  EXPECT_EQ(other.window_of(2), 7);
  EXPECT_EQ(other.rope.theta, 5e5);
  EXPECT_EQ(other.window_rope->theta, 300.0);
  EXPECT_EQ(other.attention_scale, 0.125f);
  EXPECT_EQ(other.embedding_multiplier, std::sqrt(48.0f));
  // As transformers 5 writes it.
  json newer = plain;
  newer.erase("rope_scaling");
  newer["rope_parameters"] = {
      {"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 5e5}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 300.0}}}};
  EXPECT_EQ(read(newer).rope.factor, 8.0);
  EXPECT_EQ(read(newer).rope.theta, 5e5);
  EXPECT_EQ(read(newer).window_rope->theta, 300.0);
  EXPECT_EQ(read(newer).window_rope->scaling, RopeConfig::Scaling::kNone);

  const auto error_with = [&](const json& changes) {
    return input_error_of([&] { (void)read(with(plain, changes)); });
  };
  EXPECT_THAT(error_with({{"hidden_activation", "silu"}}),
              HasSubstr("hidden_activation: \"silu\""));
  EXPECT_THAT(error_with({{"use_bidirectional_attention", true}}),
              HasSubstr("use_bidirectional_attention: true is not supported"));
  EXPECT_THAT(error_with({{"attn_logit_softcapping", 50.0}}),
              HasSubstr("attn_logit_softcapping: 50.0 is not supported"));
  EXPECT_THAT(error_with({{"sliding_window", nullptr}}),
              HasSubstr("sliding_window: null is not supported"));
  EXPECT_THAT(error_with({{"rope_parameters", {{"rope_type", "linear"}, {"factor", 8.0}}}}),
              HasSubstr("rope_parameters.factor: 8.0 is not supported"));
}

TEST(ModelConfigTest, Gemma2CapsScoresAndLogitsUnlessTheyAreNull) {
  const json plain = of("gemma2", "Gemma2ForCausalLM", {{"head_dim", 16}});
  const ModelConfig c = read(plain);
  EXPECT_EQ(c.score_cap, 50.0f);
  EXPECT_EQ(c.logit_cap, 30.0f);
  EXPECT_EQ(c.query_key_norm, QueryKeyNorm::kNone);
  EXPECT_EQ(c.window_of(0), 4096);
  EXPECT_EQ(c.window_of(1), 0);
  EXPECT_FALSE(c.window_rope.has_value());
  const ModelConfig bare = read(
      with(plain, {{"attn_logit_softcapping", nullptr}, {"final_logit_softcapping", nullptr}}));
  EXPECT_EQ(bare.score_cap, 0.0f);
  EXPECT_EQ(bare.logit_cap, 0.0f);
}

TEST(ModelConfigTest, AModelThatReadsImagesIsRefusedAsSuch) {
  EXPECT_THAT(input_error_of([] { (void)read(of("gemma3", "Gemma3ForConditionalGeneration")); }),
              HasSubstr("models that read images"));
}

TEST(ModelConfigTest, LlamaMayHaveBiases) {
  const ModelConfig c = read(with(small_config(), {{"attention_bias", true}, {"mlp_bias", true}}));
  EXPECT_TRUE(c.qkv_bias && c.output_bias && c.mlp_bias);
}

TEST(ModelConfigTest, TypeHasAnOldAndANewName) {
  const json bare = without(small_config(), "torch_dtype");
  EXPECT_EQ(read(with(bare, {{"torch_dtype", "bfloat16"}})).dtype, DType::kBF16);
  EXPECT_EQ(read(with(bare, {{"dtype", "float32"}})).dtype, DType::kF32);
}

TEST(ModelConfigTest, EndOfTextIsOneTokenOrSeveralOrNone) {
  EXPECT_THAT(read(with(small_config(), {{"eos_token_id", 3}})).eos, ElementsAre(3));
  EXPECT_THAT(read(with(small_config(), {{"eos_token_id", {3, 5}}})).eos, ElementsAre(3, 5));
  EXPECT_THAT(read(with(small_config(), {{"eos_token_id", nullptr}})).eos, IsEmpty());
  EXPECT_EQ(read(with(small_config(), {{"bos_token_id", nullptr}})).bos, -1);
}

TEST(ModelConfigTest, HeadDimensionNeedNotFollowFromTheHiddenSize) {
  const ModelConfig c = read(with(small_config(), {{"head_dim", 24}}));
  EXPECT_EQ(c.head_dim, 24);
  EXPECT_EQ(c.hidden_size, 32);
}

struct Wrong {
  const char* name;
  json changes;  // to small_config()
  const char* key;
  const char* says;
};

class WrongConfigTest : public testing::TestWithParam<Wrong> {};

TEST_P(WrongConfigTest, IsAnInputErrorThatNamesFileAndKey) {
  const std::string message =
      input_error_of([] { (void)read(with(small_config(), GetParam().changes)); });
  EXPECT_THAT(message, AllOf(HasSubstr("config.json: " + std::string(GetParam().key)),
                             HasSubstr(GetParam().says)));
  EXPECT_EQ(message.find('\n'), message.npos);
}

INSTANTIATE_TEST_SUITE_P(
    Keys, WrongConfigTest,
    testing::Values(
        Wrong{"OtherArchitecture",
              {{"architectures", {"GPT2LMHeadModel"}}},
              "architectures",
              "GPT2LMHeadModel"},
        Wrong{"ClassifierOfLlama",
              {{"architectures", {"LlamaForSequenceClassification"}}},
              "architectures",
              "not supported"},
        Wrong{"ArchitecturesIsAString",
              {{"architectures", "LlamaForCausalLM"}},
              "architectures",
              "list"},
        Wrong{"OtherModelType",
              {{"architectures", nullptr}, {"model_type", "gemma"}},
              "model_type",
              "gemma"},
        Wrong{"Mixture",
              {{"architectures", {"MixtralForCausalLM"}}, {"model_type", "mixtral"}},
              "architectures: \"MixtralForCausalLM\"",
              "mixtures of experts are not read"},
        Wrong{"MixtureByType",
              {{"architectures", nullptr}, {"model_type", "qwen3_moe"}},
              "model_type: \"qwen3_moe\"",
              "mixtures of experts are not read"},
        Wrong{"TypeContradictsArchitecture",
              {{"model_type", "mistral"}},
              "model_type",
              "does not go with"},
        Wrong{"NoArchitecture",
              {{"architectures", nullptr}, {"model_type", nullptr}},
              "model_type",
              "missing"},
        Wrong{"NoHiddenSize", {{"hidden_size", nullptr}}, "hidden_size", "missing"},
        Wrong{"HiddenSizeZero", {{"hidden_size", 0}}, "hidden_size", "integer from 1"},
        Wrong{"HiddenSizeNegative", {{"hidden_size", -32}}, "hidden_size", "integer from 1"},
        Wrong{"HiddenSizeFraction", {{"hidden_size", 32.0}}, "hidden_size", "integer from 1"},
        Wrong{"HiddenSizeString", {{"hidden_size", "32"}}, "hidden_size", "integer from 1"},
        Wrong{"HiddenSizeHuge",
              {{"hidden_size", std::uint64_t{1} << 63}},
              "hidden_size",
              "integer from 1"},
        Wrong{"HiddenSizeAbsurd",
              {{"hidden_size", std::int64_t{1} << 40}},
              "hidden_size",
              "integer from 1"},
        Wrong{"BlocksAbsurd",
              {{"num_hidden_layers", 1'000'000}},
              "num_hidden_layers",
              "integer from 1"},
        Wrong{"VocabularyAbsurd",
              {{"vocab_size", std::int64_t{1} << 50}},
              "vocab_size",
              "integer from 1"},
        Wrong{"HeadsDoNotDivide",
              {{"num_attention_heads", 5}, {"num_key_value_heads", 5}},
              "num_attention_heads",
              "divide hidden_size"},
        Wrong{"KeyValueHeadsDoNotDivide",
              {{"num_key_value_heads", 3}},
              "num_key_value_heads",
              "divide"},
        Wrong{"MoreKeyValueHeads", {{"num_key_value_heads", 8}}, "num_key_value_heads", "divide"},
        Wrong{"OddHead", {{"head_dim", 7}}, "head_dim", "even"},
        Wrong{"HeadsTooWide", {{"head_dim", 1 << 24}}, "head_dim", "too large"},
        Wrong{"PositionsNegative",
              {{"max_position_embeddings", -1}},
              "max_position_embeddings",
              "integer from 1"},
        Wrong{"EpsilonZero", {{"rms_norm_eps", 0}}, "rms_norm_eps", "number from"},
        Wrong{"EpsilonString", {{"rms_norm_eps", "1e-5"}}, "rms_norm_eps", "number from"},
        Wrong{"ThetaNegative", {{"rope_theta", -1.0}}, "rope_theta", "number from"},
        Wrong{"ThetaHuge", {{"rope_theta", 1e300}}, "rope_theta", "number from"},
        // The type is what is not understood, though "factor" stands before it.
        Wrong{"OtherScaling",
              {{"rope_scaling", {{"factor", 2.0}, {"rope_type", "ntk"}}}},
              "rope_scaling.rope_type: \"ntk\" is not supported",
              "llama3, yarn and longrope are"},
        Wrong{"OtherScalingOldSpelling",
              {{"rope_scaling", {{"alpha", 2.0}, {"type", "ntk"}}}},
              "rope_scaling.type: \"ntk\"",
              "not supported"},
        Wrong{"ScalingTypeIsANumber",
              {{"rope_scaling", {{"type", 3}}}},
              "rope_scaling.type",
              "must be a string"},
        Wrong{"TwoScalingTypes",
              {{"rope_scaling", {{"rope_type", "yarn"}, {"type", "linear"}}}},
              "rope_scaling.type",
              "contradicts"},
        Wrong{"LinearWithoutFactor",
              {{"rope_scaling", {{"type", "linear"}}}},
              "rope_scaling.factor",
              "is missing"},
        Wrong{"FactorBelowOne",
              {{"rope_scaling", {{"type", "linear"}, {"factor", 0.5}}}},
              "rope_scaling.factor",
              "number from 1"},
        Wrong{"Llama3WithoutFactors",
              {{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}}},
              "rope_scaling.low_freq_factor",
              "is missing"},
        Wrong{"Llama3FactorsTheOtherWay",
              {{"rope_scaling",
                {{"rope_type", "llama3"},
                 {"factor", 8.0},
                 {"low_freq_factor", 4.0},
                 {"high_freq_factor", 1.0}}}},
              "rope_scaling.high_freq_factor",
              "larger than"},
        Wrong{
            "KeyOfAnotherScaling",
            {{"rope_parameters", {{"rope_type", "yarn"}, {"factor", 2.0}, {"mrope_section", {1}}}}},
            "rope_parameters.mrope_section: [1] is not supported",
            "rope type \"yarn\" has no such key"},
        Wrong{"FactorWithoutAType",
              {{"rope_scaling", {{"factor", 2.0}}}},
              "rope_scaling.factor: 2.0 is not supported",
              "rope type \"default\""},
        Wrong{"LongRopeWithoutFactors",
              {{"rope_scaling", {{"type", "longrope"}}}},
              "rope_scaling.short_factor",
              "list of 4 numbers"},
        Wrong{"TwoScalings",
              {{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}},
               {"rope_parameters", {{"rope_type", "linear"}, {"factor", 4.0}}}},
              "rope_parameters",
              "contradicts"},
        Wrong{"TwoThetas",
              {{"rope_parameters", {{"rope_theta", 5.0}}}},
              "rope_parameters.rope_theta",
              "contradicts"},
        Wrong{"ScalingIsANumber", {{"rope_scaling", 2.0}}, "rope_scaling", "object"},
        Wrong{"PartialRotation",
              {{"partial_rotary_factor", 0.5}},
              "partial_rotary_factor: 0.5 is not supported",
              "rotates whole heads"},
        Wrong{"AttentionBias",
              {{"attention_bias", true},
               {"architectures", {"MistralForCausalLM"}},
               {"model_type", "mistral"}},
              "attention_bias: true is not supported",
              "has none"},
        Wrong{
            "MlpBias",
            {{"mlp_bias", true}, {"architectures", {"Qwen3ForCausalLM"}}, {"model_type", "qwen3"}},
            "mlp_bias: true is not supported",
            "has none"},
        Wrong{"OtherLayers",
              {{"layer_types", {"full_attention", "linear_attention"}},
               {"architectures", {"Qwen2ForCausalLM"}},
               {"model_type", "qwen2"}},
              "layer_types: [\"full_attention\",\"linear_attention\"] is not supported",
              "sliding_attention are"},
        Wrong{"WindowedLayersWithoutAWindow",
              {{"layer_types", {"full_attention", "sliding_attention"}},
               {"architectures", {"Qwen2ForCausalLM"}},
               {"model_type", "qwen2"}},
              "layer_types",
              "no sliding_window"},
        Wrong{"TooFewLayers",
              {{"layer_types", {"full_attention"}},
               {"architectures", {"Qwen2ForCausalLM"}},
               {"model_type", "qwen2"}},
              "layer_types",
              "num_hidden_layers names"},
        Wrong{"BiasIsANumber", {{"mlp_bias", 0}}, "mlp_bias", "true or false"},
        Wrong{"OtherActivation", {{"hidden_act", "gelu"}}, "hidden_act", "gelu"},
        Wrong{"QuantizedAlready",
              {{"quantization_config", {{"bits", 4}}}},
              "quantization_config",
              "quantized already"},
        Wrong{"OtherType", {{"torch_dtype", "float64"}}, "torch_dtype", "float64"},
        Wrong{"NewTypeWins", {{"dtype", "int8"}}, "dtype", "int8"},
        Wrong{"TiedIsAString",
              {{"tie_word_embeddings", "yes"}},
              "tie_word_embeddings",
              "true or false"},
        Wrong{"EosOutsideTheVocabulary",
              {{"eos_token_id", {2, 40}}},
              "eos_token_id",
              "integer from -1 to 39"},
        Wrong{"BosIsAList", {{"bos_token_id", {1}}}, "bos_token_id", "integer from -1 to 39"}),
    [](const auto& instance) { return instance.param.name; });

TEST(ModelConfigTest, WindowMustBePositive) {
  EXPECT_THAT(input_error_of([] {
                (void)read(with(mistral(), {{"sliding_window", 0}}));
              }),
              HasSubstr("sliding_window"));
}

TEST(ModelConfigTest, TextThatIsNotAnObjectIsAnInputError) {
  const TemporaryFolder directory;
  const auto error_of = [&](const std::string& text) {
    write_file(directory / "config.json", text);
    return input_error_of([&] { (void)read_model_config(directory.path()); });
  };
  EXPECT_THAT(input_error_of([&] { (void)read_model_config(directory.path()); }),
              HasSubstr("config.json"));
  EXPECT_THAT(error_of(""), HasSubstr("config.json: line 1: not JSON"));
  EXPECT_THAT(error_of("[]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(error_of("{\n\"a\": 1,\n}"), HasSubstr("config.json: line 3: not JSON"));
  EXPECT_THAT(error_of("{\"a\": NaN}"), HasSubstr("not JSON"));
  EXPECT_THAT(error_of("{\"a\": 1, \"a\": 2}"), HasSubstr("\"a\" stands twice"));
  EXPECT_THAT(error_of("{\"a\": \"\xc3\x28\"}"), HasSubstr("not JSON"));
  EXPECT_THAT(error_of("{\"hidden_size\": 1e400}"), HasSubstr("config.json"));
  EXPECT_THAT(error_of("{\"a\":" + std::string(1'000'000, '[') + std::string(1'000'000, ']') + "}"),
              HasSubstr("nested"));
}

}  // namespace
}  // namespace roundhouse
