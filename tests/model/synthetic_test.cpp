// Synthetic models are read like any other.
#include "model/synthetic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "model/architectures/tensor_names.h"
#include "model/causal_lm.h"
#include "tests/model/model_files.h"

namespace roundhouse {
namespace {

using testing::HasSubstr;
using testing::IsSupersetOf;

// The shape of one of them, but small.
ModelConfig shrunk(const std::string& name) {
  ModelConfig config = shape_like(name);
  config.head_dim = 8;
  if (config.architecture != Architecture::kOpt) config.rope.columns = 8;
  if (config.window_rope) config.window_rope->columns = 8;
  config.kv_heads = config.kv_heads == config.heads ? 4 : 2;
  config.heads = 4;
  config.embedding_size = config.embedding_size == config.hidden_size ? 32 : 16;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.blocks = 2;
  config.vocabulary = 40;
  config.max_positions = 64;
  return config;
}

TEST(SyntheticTest, KnowsTheModelsOfThePapers) {
  EXPECT_THAT(
      known_shapes(),
      IsSupersetOf({"llama-7b", "llama-13b", "llama-30b", "llama-65b", "llama-2-7b", "llama-2-13b",
                    "llama-2-70b", "mistral-7b", "opt-125m", "opt-350m", "opt-6.7b", "opt-13b"}));
  EXPECT_THAT(input_error_of([] { (void)shape_like("gpt-5"); }), HasSubstr("opt-6.7b"));
}

// In units of 10^6, as published: of blocks, embedding (once where the head is tied) and what is between.
TEST(SyntheticTest, ShapesHaveThePublishedNumbersOfParameters) {
  const std::map<std::string, double> millions = {
      {"llama-7b", 6738},       {"llama-13b", 13016}, {"llama-30b", 32529},
      {"llama-65b", 65286},     {"llama-2-7b", 6738}, {"llama-2-13b", 13016},
      {"llama-2-70b", 68977},   {"mistral-7b", 7242}, {"opt-125m", 125.2},
      {"opt-350m", 331.2},      {"opt-1.3b", 1315.8}, {"opt-2.7b", 2651.6},
      {"opt-6.7b", 6658.5},     {"opt-13b", 12853.5}, {"llama-3.1-8b", 8030},
      {"llama-3.1-70b", 70554}, {"qwen2.5-7b", 7616}, {"qwen3-8b", 8191},
      {"phi-3-mini", 3821},     {"olmo-2-7b", 7299},  {"granite-3-8b", 8171},
      {"smollm2-135m", 134.5},  {"gemma-2-9b", 9242}, {"gemma-3-1b", 999.9}};
  for (const auto& [name, expected] : millions) {
    const ModelConfig config = shape_like(name);
    std::int64_t count = 0;
    const auto add = [&](const std::vector<TensorInfo>& tensors) {
      for (const TensorInfo& tensor : tensors) count += element_count(tensor.shape);
    };
    add(tensors_before_blocks(config));
    for (std::int64_t block = 0; block < config.blocks; ++block) {
      add(tensors_of_block(config, block));
    }
    add(tensors_after_blocks(config));
    EXPECT_NEAR(static_cast<double>(count) / 1e6, expected, 0.001 * expected) << name;
  }
}

TEST(SyntheticTest, ModelsOfEveryArchitectureAreRead) {
  for (const std::string name :
       {"llama-2-7b", "mistral-7b", "opt-6.7b", "opt-350m", "llama-3.1-8b", "qwen2.5-7b",
        "qwen3-8b", "phi-3-mini", "olmo-2-7b", "granite-3-8b", "gemma-2-9b", "gemma-3-1b"}) {
    const TemporaryFolder directory;
    const ModelConfig config = shrunk(name);
    write_synthetic_model({.config = config, .tokenizer = {}, .max_shard_bytes = 8000},
                          directory / "model");
    const CausalLM model(directory / "model");
    EXPECT_EQ(model.config().architecture, config.architecture) << name;
    EXPECT_EQ(model.config().norm_first, config.norm_first) << name;
    EXPECT_EQ(model.config().embedding_size, config.embedding_size) << name;
    EXPECT_EQ(model.config().sliding_window, config.sliding_window) << name;
    EXPECT_EQ(model.config().tied_embeddings, config.tied_embeddings) << name;
    EXPECT_EQ(model.config().bos, config.bos) << name;
    EXPECT_EQ(model.config().rope, config.rope) << name;
    EXPECT_EQ(model.config().window_rope, config.window_rope) << name;
    EXPECT_EQ(model.config().window_of(1), config.window_of(1)) << name;
    EXPECT_EQ(model.config().attention_scale, config.attention_scale) << name;
    EXPECT_EQ(model.config().score_cap, config.score_cap) << name;
    EXPECT_EQ(model.config().logit_cap, config.logit_cap) << name;
    EXPECT_EQ(model.config().qkv_bias, config.qkv_bias) << name;
    EXPECT_EQ(model.config().residual_multiplier, config.residual_multiplier) << name;
    EXPECT_TRUE(std::filesystem::exists(directory / "model" / "model.safetensors.index.json"));

    const auto backend = make_backend("cpu", {});
    const auto block = make_decoder_block(model.config(), 8, *backend);
    BlockState state;
    state.sequences = 1;
    state.length = 8;
    state.residual = model.embed(formula_tokens("synthetic", 8, 40), 8, *backend);
    block->forward(block->load(model.checkpoint(), 1, *backend), state, *backend);
    std::uint8_t finite = 0;
    backend->check_finite({.x = std::as_const(state.residual).view(),
                           .rows_each = 8,
                           .finite = std::span(&finite, 1)});
    EXPECT_EQ(finite, 1) << name;
  }
}

TEST(SyntheticTest, SameSeedSameBytes) {
  const TemporaryFolder directory;
  const ModelConfig config = shrunk("opt-125m");
  for (const auto& [name, seed] :
       std::map<std::string, std::uint64_t>{{"a", 1}, {"b", 1}, {"c", 2}}) {
    write_synthetic_model({.config = config, .seed = seed, .tokenizer = {}}, directory / name);
  }
  const auto bytes = [&](const char* name) {
    return read_text_file(directory / name / "model.safetensors");
  };
  EXPECT_EQ(bytes("a"), bytes("b"));
  EXPECT_NE(bytes("a"), bytes("c"));
  EXPECT_THAT(input_error_of([&] {
                write_synthetic_model({.config = config, .tokenizer = {}}, directory / "a");
              }),
              HasSubstr("not empty"));
}

}  // namespace
}  // namespace roundhouse
