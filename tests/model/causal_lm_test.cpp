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

TEST(CausalLmTest, EveryTensorIsMissedByName) {
  const json config = small_config();
  const Tensors tensors = formula_tensors(config, DType::kF16);
  EXPECT_EQ(error_of(config, tensors), "(no InputError)");
  for (const auto& [name, tensor] : tensors) {
    Tensors fewer = tensors;
    fewer.erase(name);
    EXPECT_THAT(error_of(config, fewer), HasSubstr("no tensor \"" + name + "\""));
  }
}

TEST(CausalLmTest, EveryWrongShapeIsFoundBeforeAnyWork) {
  const json config = small_config();
  for (const auto& [name, shape] : tensor_shapes(config)) {
    Tensors tensors = formula_tensors(config, DType::kF16);
    Shape wrong = shape;
    ++wrong.back();
    tensors[name] = HostTensor(DType::kF16, wrong);
    EXPECT_THAT(error_of(config, tensors),
                AllOf(HasSubstr("\"" + name + "\""), HasSubstr("shape")));
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

TEST(CausalLmTest, NotANumberIsNamedWhereItIsRead) {
  const json config = small_config();
  const auto backend = make_backend("cpu", {});
  const std::map<DType, std::vector<std::uint32_t>> bad_bits = {
      {DType::kF16, {0x7c00, 0xfc00, 0x7e01}},
      {DType::kBF16, {0x7f80, 0xff80, 0x7fc0}},
      {DType::kF32, {0x7f800000, 0xffc00000}}};
  for (const auto& [type, all_bits] : bad_bits) {
    for (const std::uint32_t bits : all_bits) {
      for (const std::string name :
           {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
            "model.layers.1.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight"}) {
        Tensors tensors = formula_tensors(config, type);
        std::memcpy(tensors[name].bytes().data() + 3 * size_of(type), &bits, size_of(type));
        const TemporaryFolder directory;
        write_model(directory.path(), config, tensors);
        const CausalLM model(directory.path());
        const auto block = make_decoder_block(model.config(), 8, *backend);
        const std::string message = input_error_of([&] {
          (void)model.embed(std::vector<std::int32_t>{0}, 1, *backend);
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
