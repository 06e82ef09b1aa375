// Exports of OPT: biases, learned positions, projections, and the names that transformers expects, from whatever kind of
// file the model was in; and of what the LLaMA kind has besides LLaMA.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "comm/launcher.h"
#include "stages/export/export.h"
#include "stages/store/quantized_weights.h"
#include "tests/model/model_files.h"
#include "tests/source_folder.h"
#include "tests/stages/export_world.h"
#include "tests/support/memory_store.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using testing::UnorderedElementsAreArray;

// As opt-350m: norms last, embeddings narrower than the blocks.
nlohmann::json narrow_config() {
  nlohmann::json config = small_opt_config();
  config.update({{"hidden_size", 64},
                 {"ffn_dim", 96},
                 {"do_layer_norm_before", false},
                 {"word_embed_proj_dim", 32}});
  return config;
}

class ExportOptTest : public testing::Test {
 protected:
  void prepare(const fs::path& source, std::int64_t group_size) {
    model_ = std::make_unique<CausalLM>(source);
    decoder_ = make_decoder_block(model_->config(), 8, *backend_);
    recipe_ = rounding_recipe(4, group_size, Grid::kSymGptq);
    round_to_nearest(*model_, *decoder_, recipe_, *backend_, store_);
  }
  fs::path write(const std::string& format, DType dtype = DType::kF16) {
    const fs::path out = directory_ / format;
    export_checkpoint(*model_, *decoder_, recipe_, store_, {.format = format, .dtype = dtype}, out,
                      *make_local_communicator(), monitor_);
    return out;
  }
  // Of one sequence through blocks whose linears were rounded.
  std::vector<float> logits(const CausalLM& model) {
    const std::vector<std::int32_t> ids = {2, 5, 7, 11, 13, 3};
    BlockState state;
    state.sequences = 1;
    state.length = std::ssize(ids);
    state.residual = model.embed(ids, state.length, *backend_);
    const auto decoder = make_decoder_block(model.config(), 8, *backend_);
    for (int block = 0; block < static_cast<int>(model.config().blocks); ++block) {
      decoder->forward(decoder->load(model.checkpoint(), block, *backend_), state, *backend_);
    }
    const Tensor result =
        model.logits(model.load_head(*backend_), std::as_const(state.residual).view(), *backend_);
    std::vector<float> values(static_cast<std::size_t>(result.rows() * result.cols()));
    backend_->download(result.f32(), std::as_writable_bytes(std::span(values)));
    return values;
  }

  TemporaryFolder directory_;
  std::unique_ptr<Backend> backend_ = make_backend("cpu", {});
  std::unique_ptr<CausalLM> model_;
  std::unique_ptr<DecoderBlock> decoder_;
  Recipe recipe_;
  MemoryStore store_;
  NullMonitor monitor_;
};

TEST_F(ExportOptTest, HoldsEveryTensorOnce) {
  const fs::path source = directory_ / "source";
  fs::create_directory(source);
  write_model(source, narrow_config(), formula_tensors(narrow_config(), DType::kF16));
  prepare(source, 32);
  std::vector<std::string> expected;
  for (const auto& [name, shape] : tensor_shapes(narrow_config())) {
    const bool linear = name.find("_proj.weight") != name.npos || name.find("fc") != name.npos;
    if (!linear || name.ends_with(".bias")) {
      expected.push_back(name);
      continue;
    }
    const std::string module = name.substr(0, name.rfind(".weight"));
    for (const char* part : {".qweight", ".qzeros", ".scales", ".g_idx"}) {
      expected.push_back(module + part);
    }
  }
  const SafetensorsFile file(write("gptq") / "model.safetensors");
  EXPECT_THAT(file.names(), UnorderedElementsAreArray(expected));
}

TEST_F(ExportOptTest, ReadersLeaveTheProjectionsAlone) {
  const fs::path source = directory_ / "source";
  fs::create_directory(source);
  write_model(source, narrow_config(), formula_tensors(narrow_config(), DType::kF16));
  prepare(source, 32);
  const auto config =
      nlohmann::json::parse(read_text_file(write("compressed-tensors") / "config.json"));
  const nlohmann::json dense = {"lm_head", "model.decoder.project_in", "model.decoder.project_out"};
  EXPECT_EQ(config.at("quantization_config").at("ignore"), dense);
  EXPECT_EQ(config.at("do_layer_norm_before"), false);
}

class ExportArchitectureTest : public ExportOptTest,
                               public testing::WithParamInterface<const char*> {
 protected:
  nlohmann::json config() const {
    const std::string name = GetParam();
    if (name == "Opt") return narrow_config();
    nlohmann::json config = small_config_of(name);
    config.update({{"hidden_size", 64}, {"intermediate_size", 96}});
    return config;
  }
};

INSTANTIATE_TEST_SUITE_P(Architectures, ExportArchitectureTest,
                         testing::Values("Opt", "Qwen2", "Qwen3", "Phi3", "Olmo2", "Granite",
                                         "Gemma2", "Gemma3"),
                         [](const auto& instance) { return std::string(instance.param); });

// The dense export computes what the model does with its rounded linears.
TEST_P(ExportArchitectureTest, DenseReadsBackAsTheQuantizedModel) {
  const fs::path source = directory_ / "source";
  fs::create_directory(source);
  write_model(source, config(), formula_tensors(config(), DType::kF16));
  prepare(source, -1);
  Tensors rounded = formula_tensors(config(), DType::kF32);
  for (int block = 0; block < 2; ++block) {
    const auto quantized =
        load_quantized_weights(*model_, *decoder_, store_, recipe_.name, block, *backend_);
    for (std::size_t i = 0; i < quantized.linears.size(); ++i) {
      const std::string name =
          decoder_->prefix(block) + "." + decoder_->linears()[i].name + ".weight";
      backend_->download(quantized.linears[i].f32(), rounded.at(name).bytes());
    }
  }
  const fs::path reference = directory_ / "reference";
  fs::create_directory(reference);
  write_model(reference, config(), rounded);
  const CausalLM exported(write("dense", DType::kF32));
  EXPECT_EQ(logits(exported), logits(CausalLM(reference)));
  EXPECT_NE(logits(exported), logits(*model_));
}

// Each under the name that engines know: linears that are one in the checkpoint are one in the export.
TEST_P(ExportArchitectureTest, HoldsTheTensorsOfTheOriginal) {
  const fs::path source = directory_ / "source";
  fs::create_directory(source);
  write_model(source, config(), formula_tensors(config(), DType::kF16));
  prepare(source, 16);
  std::vector<std::string> expected;
  for (const auto& [name, shape] : tensor_shapes(config())) {
    if (shape.size() == 1 || name.find("layers.") == name.npos) {
      expected.push_back(name);
      continue;
    }
    const std::string module = name.substr(0, name.rfind(".weight"));
    for (const char* part : {".weight_packed", ".weight_scale", ".weight_shape"}) {
      expected.push_back(module + part);
    }
  }
  const SafetensorsFile file(write("compressed-tensors") / "model.safetensors");
  EXPECT_THAT(file.names(), UnorderedElementsAreArray(expected));
}

TEST_F(ExportOptTest, PytorchFilesBecomeSafetensorsWithTheNamesOfTransformers) {
  prepare(source_folder() / "tests/golden/bin/opt", -1);
  const fs::path out = write("dense", DType::kF32);
  const SafetensorsFile file(out / "model.safetensors");
  EXPECT_TRUE(file.has("model.decoder.layers.0.fc1.bias"));
  EXPECT_FALSE(file.has("lm_head.weight")) << "tied";
  EXPECT_FALSE(fs::exists(out / "pytorch_model.bin"));
  EXPECT_EQ(logits(CausalLM(out)).size(), 6u * 32u);
}

}  // namespace
}  // namespace roundhouse
