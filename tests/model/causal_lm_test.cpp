#include "model/causal_lm.h"

#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/model_files.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

std::string error_of(const json& config, const Tensors& tensors) {
  const TemporaryFolder directory;
  write_model(directory.path(), config, tensors);
  return input_error_of([&] { CausalLM model(directory.path()); });
}

std::vector<float> download(const Tensor& tensor, Backend& backend) {
  std::vector<float> values(static_cast<std::size_t>(tensor.rows() * tensor.cols()));
  backend.download(tensor.view().data, std::as_writable_bytes(std::span(values)));
  return values;
}

// As opt-350m: norms last, and an embedding narrower than the blocks.
json narrow_opt_config() {
  json config = small_opt_config();
  config.update({{"do_layer_norm_before", false}, {"word_embed_proj_dim", 16}});
  return config;
}

TEST(CausalLmTest, EveryTensorIsMissedByName) {
  for (const json& config : {small_config(), small_opt_config(), narrow_opt_config()}) {
    const Tensors tensors = formula_tensors(config, DType::kF16);
    EXPECT_EQ(error_of(config, tensors), "(no InputError)");
    for (const auto& [name, tensor] : tensors) {
      Tensors fewer = tensors;
      fewer.erase(name);
      EXPECT_THAT(error_of(config, fewer), HasSubstr("no tensor \"" + name + "\""));
    }
  }
}

TEST(CausalLmTest, TensorsThatNobodyReadsAreToldApart) {
  const Tensors tensors = formula_tensors(small_config(), DType::kF16);
  const HostTensor row(DType::kF16, {4});
  // No part of the model.
  Tensors more = tensors;
  for (const char* name :
       {"model.layers.99.mlp.up_proj.weight", "score.weight", "vision.norm.bias"})
    more[name] = row;
  const TemporaryFolder directory;
  write_model(directory.path(), small_config(), more);
  EXPECT_THAT(CausalLM(directory.path()).unread(),
              testing::ElementsAre("model.layers.99.mlp.up_proj.weight", "score.weight",
                                   "vision.norm.bias"));
  // Without these the result would be another model's.
  for (const std::string name :
       {"model.layers.0.self_attn.q_norm.weight", "model.layers.1.mlp.up_proj.bias",
        "model.norm.bias", "model.embed_tokens.scale", "model.layers.0.extra"}) {
    Tensors counting = tensors;
    counting[name] = row;
    EXPECT_THAT(error_of(small_config(), counting), HasSubstr("\"" + name + "\"")) << name;
  }
}

TEST(CausalLmTest, ATiedHeadMustBeTheEmbedding) {
  json config = small_config();
  const Tensors untied = formula_tensors(config, DType::kF16);
  config["tie_word_embeddings"] = true;
  EXPECT_THAT(error_of(config, untied),
              AllOf(HasSubstr("tie_word_embeddings"), HasSubstr("lm_head.weight")));
  Tensors same = untied;
  same["lm_head.weight"] = same.at("model.embed_tokens.weight");
  EXPECT_EQ(error_of(config, same), "(no InputError)");
}

TEST(CausalLmTest, EveryWrongShapeIsFoundBeforeAnyWork) {
  for (const json& config : {small_config(), small_opt_config(), narrow_opt_config()}) {
    for (const auto& [name, shape] : tensor_shapes(config)) {
      Tensors tensors = formula_tensors(config, DType::kF16);
      Shape wrong = shape;
      ++wrong.back();
      tensors[name] = HostTensor(DType::kF16, wrong);
      EXPECT_THAT(error_of(config, tensors),
                  AllOf(HasSubstr("\"" + name + "\""), HasSubstr("shape")));
    }
  }
}

TEST(CausalLmTest, TypesThatHoldNoWeightsAreRefused) {
  const json config = small_config();
  Tensors tensors = formula_tensors(config, DType::kF16);
  tensors["model.layers.1.mlp.up_proj.weight"] = HostTensor(DType::kI32, {48, 32});
  EXPECT_THAT(error_of(config, tensors),
              AllOf(HasSubstr("model.layers.1.mlp.up_proj.weight"), HasSubstr("I32")));
}

TEST(CausalLmTest, BiasThatNobodyWouldAddIsRefused) {
  const json config = small_config();
  Tensors tensors = formula_tensors(config, DType::kF16);
  tensors["model.layers.0.self_attn.q_proj.bias"] = HostTensor(DType::kF16, {32});
  EXPECT_THAT(error_of(config, tensors),
              AllOf(HasSubstr("q_proj.bias"), HasSubstr("not supported")));
}

TEST(CausalLmTest, TiedHeadIsTheEmbedding) {
  json config = small_config();
  config["tie_word_embeddings"] = true;
  const TemporaryFolder directory;
  write_model(directory.path(), config, formula_tensors(config, DType::kF16));
  const auto backend = make_backend("cpu", {});
  const CausalLM model(directory.path());
  const CausalLM::Head head = model.load_head(*backend);
  EXPECT_EQ(download(head.weight, *backend), formula_weight("model.embed_tokens.weight", 40 * 32));
}

TEST(CausalLmTest, EmbeddingIsTheRowsOfTheTable) {
  const json config = small_config();
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    const TemporaryFolder directory;
    write_model(directory.path(), config, formula_tensors(config, type), 2);
    const auto backend = make_backend("cpu", {});
    const CausalLM model(directory.path());
    const std::vector<std::int32_t> ids = {39, 0, 0, 7};
    const std::vector<float> rows = download(model.embed(ids, 2, *backend), *backend);
    const std::vector<float> table = formula_weight("model.embed_tokens.weight", 40 * 32);
    ASSERT_EQ(rows.size(), ids.size() * 32);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(rows[i], table[static_cast<std::size_t>(ids[i / 32]) * 32 + i % 32])
          << name_of(type) << " element " << i;
    }
    EXPECT_THROW((void)model.embed(ids, 3, *backend), Error) << "not whole sequences";
    EXPECT_EQ(model.embed({}, 2, *backend).rows(), 0);
    EXPECT_THROW((void)model.embed(std::vector<std::int32_t>{40}, 1, *backend), Error);
    EXPECT_THROW((void)model.embed(std::vector<std::int32_t>{-1}, 1, *backend), Error);
  }
}

TEST(CausalLmTest, LearnedPositionsBeginAgainInEachSequence) {
  const TemporaryFolder directory;
  write_model(directory.path(), small_opt_config(),
              formula_tensors(small_opt_config(), DType::kF16));
  const auto backend = make_backend("cpu", {});
  const CausalLM model(directory.path());
  const std::vector<std::int32_t> ids = {39, 0, 7, 7, 1, 2};
  const std::vector<float> rows = download(model.embed(ids, 3, *backend), *backend);
  const std::vector<float> table = formula_weight("model.decoder.embed_tokens.weight", 40 * 32);
  const std::vector<float> positions =
      formula_weight("model.decoder.embed_positions.weight", 66 * 32);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    for (std::size_t j = 0; j < 32; ++j) {
      // Two rows of the table belong to no position.
      ASSERT_EQ(rows[i * 32 + j],
                table[static_cast<std::size_t>(ids[i]) * 32 + j] + positions[(2 + i % 3) * 32 + j])
          << "token " << i << " element " << j;
    }
  }
  EXPECT_NO_THROW((void)model.embed(std::vector<std::int32_t>(64, 1), 64, *backend));
  EXPECT_THROW((void)model.embed(std::vector<std::int32_t>(65, 1), 65, *backend), Error)
      << "no such position";
}

// In the row of token 2, and in that of the first position where the tensor is the table of positions.
constexpr std::size_t kElement = 2 * 32 + 3;

TEST(CausalLmTest, NotANumberIsNamedWhereItIsRead) {
  const auto backend = make_backend("cpu", {});
  const std::map<DType, std::vector<std::uint32_t>> bad_bits = {
      {DType::kF16, {0x7c00, 0xfc00, 0x7e01}},
      {DType::kBF16, {0x7f80, 0xff80, 0x7fc0}},
      {DType::kF32, {0x7f800000, 0xffc00000}}};
  for (const auto& [type, all_bits] : bad_bits) {
    for (const std::uint32_t bits : all_bits) {
      for (const std::string name :
           {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
            "model.layers.1.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight",
            "model.decoder.embed_positions.weight", "model.decoder.project_in.weight",
            "model.decoder.project_out.weight", "model.decoder.layers.1.fc2.bias",
            "model.decoder.layers.1.final_layer_norm.bias"}) {
        const json config =
            name.starts_with("model.decoder") ? narrow_opt_config() : small_config();
        Tensors tensors = formula_tensors(config, type);
        std::memcpy(tensors[name].bytes().data() +
                        std::min<std::size_t>(kElement,
                                              static_cast<std::size_t>(tensors[name].count() - 1)) *
                            size_of(type),
                    &bits, size_of(type));
        const TemporaryFolder directory;
        write_model(directory.path(), config, tensors);
        const CausalLM model(directory.path());
        const auto block = make_decoder_block(model.config(), 8, *backend);
        const std::string message = input_error_of([&] {
          (void)model.embed(std::vector<std::int32_t>{2}, 1, *backend);
          (void)block->load(model.checkpoint(), 1, *backend);
          (void)model.load_head(*backend);
        });
        EXPECT_THAT(message, AllOf(HasSubstr(name), HasSubstr("NaN"))) << name_of(type);
      }
    }
  }
}

}  // namespace
}  // namespace roundhouse
