#include "stages/export/format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "model/quantized/bitstream.h"
#include "stages/export/export.h"
#include "tests/stages/export_world.h"

namespace roundhouse {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;

constexpr std::int64_t kSide = 32;

// 32 x 32, code[n, k] = (n + k) mod 2^bits, scale[n, g] = ±2^-(n mod 4) by g, zero[n, g] = n mod
// 2^bits.
QuantizedLinear example(int bits, std::int64_t group_size, Grid grid) {
  QuantizedLinear linear = random_linear("mlp.up_proj", kSide, kSide, bits, group_size, grid, 1);
  const int levels = 1 << bits;
  for (std::int64_t n = 0; n < kSide; ++n) {
    for (std::int64_t k = 0; k < kSide; ++k) {
      linear.codes.as<std::uint8_t>()[n * kSide + k] = static_cast<std::uint8_t>((n + k) % levels);
    }
    for (std::int64_t g = 0; g < linear.groups(); ++g) {
      const float scale = (g % 2 == 0 ? 1.0f : -1.0f) / static_cast<float>(1 << n % 4);
      linear.scales.as<std::uint16_t>()[n * linear.groups() + g] = float_to_half(scale);
      if (!is_symmetric(grid)) {
        linear.zeros.as<std::uint8_t>()[n * linear.groups() + g] =
            static_cast<std::uint8_t>(n % levels);
      }
    }
  }
  return linear;
}

std::vector<HostTensor> filled(const std::string& format, const QuantizedLinear& linear,
                               DType dtype = DType::kF32) {
  return make_format(format)->fill(linear, dtype);
}

// A recipe whose linears become one of these.
Recipe recipe_of(std::vector<LinearScheme> schemes) {
  Recipe recipe = rounding_recipe(4, 128);
  recipe.schemes = std::move(schemes);
  return recipe;
}

// What a config says of a model all of whose linears are what the recipe announces first.
nlohmann::ordered_json described(const std::string& format, const Recipe& recipe) {
  const LinearScheme& scheme = recipe.schemes.front();
  const std::vector<ExportedLinear> linears = {
      {.module = "model.layers.0.mlp.up_proj", .spec = {"mlp.up_proj", 64, 256}, .scheme = scheme},
      {.module = "model.layers.1.mlp.up_proj", .spec = {"mlp.up_proj", 64, 256}, .scheme = scheme}};
  return make_format(format)->quantization_config(recipe, linears, {"lm_head"});
}

std::vector<std::uint32_t> words(const HostTensor& tensor, std::size_t first, std::size_t n) {
  const auto all = tensor.as<std::uint32_t>().subspan(first, n);
  return {all.begin(), all.end()};
}

// "name type [shape]" of each tensor.
std::vector<std::string> layout(const std::string& format, const LinearScheme& scheme,
                                std::int64_t sparse_entries = 0) {
  const ExportedLinear linear{.module = "model.layers.0.mlp.down_proj",
                              .spec = {"mlp.down_proj", 64, 256},
                              .scheme = scheme,
                              .sparse_entries = sparse_entries};
  std::vector<std::string> lines;
  for (const TensorInfo& info : make_format(format)->tensors(linear, DType::kF16)) {
    std::string line = info.name + " " + std::string(name_of(info.type));
    for (const std::int64_t size : info.shape) line += " " + std::to_string(size);
    lines.push_back(line);
  }
  return lines;
}

TEST(CompressedTensorsTest, HasTheShapesOfTheFormat) {
  EXPECT_THAT(
      layout("compressed-tensors", {.bits = 4, .group_size = 128, .grid = Grid::kSymGptq}),
      ElementsAre("weight_packed I32 64 32", "weight_scale F16 64 2", "weight_shape I64 2"));
  EXPECT_THAT(layout("compressed-tensors", {.bits = 3, .group_size = 32, .grid = Grid::kAsymGptq}),
              ElementsAre("weight_packed I32 64 24", "weight_scale F16 64 8",
                          "weight_zero_point I32 6 8", "weight_shape I64 2"));
  EXPECT_THAT(layout("compressed-tensors", {.bits = 8, .group_size = -1, .grid = Grid::kAsymGptq}),
              ElementsAre("weight_packed I32 64 64", "weight_scale F16 64 1",
                          "weight_zero_point I32 16 1", "weight_shape I64 2"));
}

TEST(CompressedTensorsTest, PacksAlongTheInputsAndZeroPointsAlongTheOutputs) {
  const std::vector<HostTensor> tensors =
      filled("compressed-tensors", example(4, 16, Grid::kAsymGptq));
  ASSERT_EQ(tensors.size(), 4u);
  EXPECT_THAT(words(tensors[0], 0, 4), ElementsAre(0x76543210, 0xfedcba98, 0x76543210, 0xfedcba98));
  EXPECT_THAT(words(tensors[0], 4, 2), ElementsAre(0x87654321, 0x0fedcba9));
  EXPECT_THAT(tensors[1].as<std::uint16_t>().subspan(0, 4),
              ElementsAre(0x3c00, 0xbc00, 0x3800, 0xb800));
  // [4, 2]: both groups of a row have the same zero point.
  EXPECT_THAT(words(tensors[2], 0, 4), ElementsAre(0x76543210, 0x76543210, 0xfedcba98, 0xfedcba98));
  EXPECT_THAT(tensors[3].as<std::int64_t>(), ElementsAre(32, 32));
}

TEST(CompressedTensorsTest, PacksThreeBitsWithoutGaps) {
  const std::vector<HostTensor> tensors =
      filled("compressed-tensors", example(3, 32, Grid::kAsymGptq));
  EXPECT_THAT(words(tensors[0], 0, 3), ElementsAre(0x88fac688, 0xc688fac6, 0xfac688fa));
  EXPECT_THAT(words(tensors[2], 0, 3), ElementsAre(0x88fac688, 0xc688fac6, 0xfac688fa));
}

TEST(CompressedTensorsTest, PacksFiveToSevenBitsWithoutGaps) {
  for (const int bits : {5, 6, 7}) {
    EXPECT_THAT(layout("compressed-tensors", {.bits = bits, .group_size = 32}),
                testing::Contains("weight_packed I32 64 " + std::to_string(256 * bits / 32)));
    QuantizedLinear linear = random_linear("mlp.up_proj", 32, 64, bits, 32, Grid::kSymGptq, 1);
    const HostTensor packed = std::move(filled("compressed-tensors", linear)[0]);
    std::vector<std::uint8_t> codes(64);
    unpack_bits(packed.as<std::uint32_t>().data() + 2 * bits, 64, bits, codes.data());
    EXPECT_TRUE(std::ranges::equal(codes, linear.codes.as<std::uint8_t>().subspan(64, 64))) << bits;
  }
}

TEST(CompressedTensorsTest, CarriesNoZeroPointIfSymmetric) {
  const QuantizedLinear linear = example(4, 16, Grid::kSymFull);
  EXPECT_EQ(filled("compressed-tensors", linear).size(), 3u);
}

TEST(CompressedTensorsTest, DescribesItself) {
  const auto group = described("compressed-tensors", rounding_recipe(4, 128, Grid::kSymGptq));
  EXPECT_EQ(group, nlohmann::ordered_json::parse(R"({
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": true,
      "strategy": "group", "group_size": 128, "dynamic": false, "actorder": null, "block_structure": null,
      "observer": "minmax", "observer_kwargs": {}}, "input_activations": null, "output_activations": null}},
    "ignore": ["lm_head"], "kv_cache_scheme": null, "global_compression_ratio": null, "version": "0.18.0"})"));
  const auto channel = described("compressed-tensors", rounding_recipe(3, -1));
  const auto& weights = channel["config_groups"]["group_0"]["weights"];
  EXPECT_EQ(weights["strategy"], "channel");
  EXPECT_TRUE(weights["group_size"].is_null());
  EXPECT_EQ(weights["symmetric"], false);
}

// Two blocks of q, k, v, o, gate, up and down at these bits, in this order.
std::vector<ExportedLinear> mixed(const std::vector<int>& bits) {
  static const std::vector<std::string> names = {
      "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
      "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
  std::vector<ExportedLinear> linears;
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const std::string& name = names[i % names.size()];
    linears.push_back({.module = "model.layers." + std::to_string(i / names.size()) + "." + name,
                       .spec = {name, 64, 256},
                       .scheme = {.bits = bits[i], .group_size = 128}});
  }
  return linears;
}

TEST(CompressedTensorsTest, NamesEveryModuleWhereWidthsDiffer) {
  const auto linears = mixed({4, 4, 4, 2, 3, 3, 4, 2, 2, 2, 4, 4, 4, 3});
  const auto config = make_format("compressed-tensors")
                          ->quantization_config(rounding_recipe(4, 128), linears, {"lm_head"});
  ASSERT_EQ(config["config_groups"].size(), 3u);
  std::map<std::string, int> bits_of;
  for (const auto& [name, group] : config["config_groups"].items()) {
    EXPECT_EQ(group["weights"]["group_size"], 128);
    EXPECT_EQ(group["weights"]["symmetric"], false);
    for (const std::string module : group["targets"]) {
      EXPECT_TRUE(bits_of.emplace(module, group["weights"]["num_bits"]).second)
          << module << " twice";
    }
  }
  EXPECT_EQ(bits_of.size(), linears.size()) << "no class of modules, which would take all";
  for (const ExportedLinear& linear : linears)
    EXPECT_EQ(bits_of[linear.module], linear.scheme.bits) << linear.module;
  EXPECT_EQ(config["config_groups"]["group_0"]["weights"]["num_bits"], 4) << "of the first linear";
}

TEST(GptqTest, NamesWhatDiffersFromMostAndWhatEnginesFuse) {
  const auto config = make_format("gptq")->quantization_config(
      rounding_recipe(4, 128), mixed({4, 4, 4, 2, 3, 3, 4, 2, 2, 2, 4, 4, 4, 3}), {"lm_head"});
  EXPECT_EQ(config["bits"], 4);
  const auto settings = [](int bits) {
    return nlohmann::ordered_json{{"bits", bits}, {"group_size", 128}, {"desc_act", false}};
  };
  const std::string first = R"(+:^model\.layers\.0\.)", second = R"(+:^model\.layers\.1\.)";
  const nlohmann::ordered_json expected = {{first + R"(self_attn\.o_proj$)", settings(2)},
                                           {first + R"(mlp\.gate_proj$)", settings(3)},
                                           {first + R"(mlp\.gate_up_proj$)", settings(3)},
                                           {first + R"(mlp\.up_proj$)", settings(3)},
                                           {second + R"(self_attn\.q_proj$)", settings(2)},
                                           {second + R"(self_attn\.qkv_proj$)", settings(2)},
                                           {second + R"(self_attn\.k_proj$)", settings(2)},
                                           {second + R"(self_attn\.v_proj$)", settings(2)},
                                           {second + R"(mlp\.down_proj$)", settings(3)}};
  EXPECT_EQ(config["dynamic"], expected);
  EXPECT_FALSE(make_format("gptq")
                   ->quantization_config(rounding_recipe(4, 128), mixed({4, 4, 4, 4}), {})
                   .contains("dynamic"));
  // Of q, k and v that differ there is no fused module.
  const auto apart =
      make_format("gptq")->quantization_config(rounding_recipe(4, 128), mixed({4, 2, 2, 4}), {});
  EXPECT_EQ(apart["dynamic"].size(), 2u);
  EXPECT_TRUE(apart["dynamic"].contains(first + R"(self_attn\.k_proj$)"));
}

// Side x side, table[n, c] = n + c / 8, code[n, k] = (n + k) mod 2^bits; row 1 has sparse entries at columns 0 and 31.
QuantizedLinear table_example(int bits) {
  QuantizedLinear linear = random_table_linear("mlp.up_proj", kSide, kSide, bits, 1);
  const std::int64_t levels = std::int64_t{1} << bits;
  for (std::int64_t n = 0; n < kSide; ++n) {
    for (std::int64_t k = 0; k < kSide; ++k)
      linear.codes.as<std::uint8_t>()[n * kSide + k] = static_cast<std::uint8_t>((n + k) % levels);
    for (std::int64_t c = 0; c < levels; ++c) {
      linear.table.as<std::uint16_t>()[n * levels + c] =
          float_to_half(static_cast<float>(n) + static_cast<float>(c) / 8);
    }
  }
  linear.sparse.offsets = HostTensor(DType::kI32, {kSide + 1});
  for (std::int64_t n = 2; n <= kSide; ++n) linear.sparse.offsets.as<std::int32_t>()[n] = 2;
  linear.sparse.columns = HostTensor(DType::kI32, {2});
  linear.sparse.columns.as<std::int32_t>()[1] = 31;
  linear.sparse.values = HostTensor(DType::kF16, {2});
  linear.sparse.values.as<std::uint16_t>()[0] = float_to_half(-2.5f);
  linear.sparse.values.as<std::uint16_t>()[1] = float_to_half(7.0f);
  return linear;
}

constexpr auto kTable = LinearScheme::Kind::kTable;

TEST(SqueezeLlmTest, HasTheShapesOfTheAuthors) {
  EXPECT_THAT(layout("squeezellm", {.kind = kTable, .bits = 4}),
              ElementsAre("qweight I32 32 64", "lookup_table F32 64 16"));
  EXPECT_THAT(layout("squeezellm", {.kind = kTable, .bits = 3, .sparse = true}, 77),
              ElementsAre("qweight I32 24 64", "lookup_table F32 64 8", "rows I32 65",
                          "cols I32 77", "vals F32 77"));
}

TEST(SqueezeLlmTest, PacksAlongTheInputsTransposed) {
  const std::vector<HostTensor> tensors = filled("squeezellm", table_example(3));
  ASSERT_EQ(tensors.size(), 5u);
  // Word 0 of outputs 0 and 1, then word 1 of output 0.
  EXPECT_THAT(words(tensors[0], 0, 2), ElementsAre(0x88fac688, 0xd11f58d1));
  EXPECT_THAT(words(tensors[0], 32, 1), ElementsAre(0xc688fac6));
  EXPECT_THAT(tensors[1].as<float>().subspan(8, 3), ElementsAre(1.0f, 1.125f, 1.25f));
  EXPECT_THAT(tensors[2].as<std::int32_t>().subspan(0, 4), ElementsAre(0, 0, 2, 2));
  EXPECT_THAT(tensors[3].as<std::int32_t>(), ElementsAre(0, 31));
  EXPECT_THAT(tensors[4].as<float>(), ElementsAre(-2.5f, 7.0f));
}

TEST(SqueezeLlmTest, DescribesItself) {
  EXPECT_EQ(described("squeezellm", recipe_of({{.kind = kTable, .bits = 3}})),
            nlohmann::ordered_json::parse(R"({"quant_method": "squeezellm", "wbits": 3,
                "include_sparse": false, "modules_to_not_convert": ["lm_head"]})"));
}

TEST(DenseTest, AddsTheSparsePart) {
  const std::vector<HostTensor> tensors = filled("dense", table_example(3));
  const std::span<const float> w = tensors[0].as<float>();
  // Row 1: codes 1, 2, ..., 0 at column 31; 1 + 1/8 - 2.5, and 1 + 7.
  EXPECT_THAT(w.subspan(32, 2), ElementsAre(-1.375f, 1.25f));
  EXPECT_EQ(w[63], 8.0f);
}

TEST(GptqTest, HasTheShapesOfTheFormat) {
  EXPECT_THAT(
      layout("gptq", {.bits = 4, .group_size = 128, .grid = Grid::kSymGptq}),
      ElementsAre("qweight I32 32 64", "qzeros I32 2 8", "scales F16 2 64", "g_idx I32 256"));
  EXPECT_THAT(
      layout("gptq", {.bits = 3, .group_size = -1, .grid = Grid::kAsymGptq}),
      ElementsAre("qweight I32 24 64", "qzeros I32 1 6", "scales F16 1 64", "g_idx I32 256"));
}

TEST(GptqTest, PacksDownTheColumns) {
  const std::vector<HostTensor> tensors = filled("gptq", example(4, 16, Grid::kAsymGptq));
  ASSERT_EQ(tensors.size(), 4u);
  // qweight [4, 32]: its first row holds inputs 0..7 of outputs 0, 1, 2, ...
  EXPECT_THAT(words(tensors[0], 0, 3), ElementsAre(0x76543210, 0x87654321, 0x98765432));
  EXPECT_THAT(words(tensors[0], 32, 2), ElementsAre(0xfedcba98, 0x0fedcba9));
  // Version 2: zero points as they are. qzeros [2, 4], scales [2, 32].
  EXPECT_THAT(words(tensors[1], 0, 4), ElementsAre(0x76543210, 0xfedcba98, 0x76543210, 0xfedcba98));
  EXPECT_THAT(tensors[2].as<std::uint16_t>().subspan(0, 5),
              ElementsAre(0x3c00, 0x3800, 0x3400, 0x3000, 0x3c00));
  EXPECT_THAT(tensors[2].as<std::uint16_t>().subspan(32, 2), ElementsAre(0xbc00, 0xb800));
  std::vector<std::int32_t> groups(32, 0);
  std::fill(groups.begin() + 16, groups.end(), 1);
  EXPECT_THAT(tensors[3].as<std::int32_t>(), ElementsAreArray(groups));
}

TEST(GptqTest, StoresZeroPointsLessOneInVersion1) {
  const auto first_zeros = [](int bits) {
    return words(filled("gptq", example(bits, 32, Grid::kSymGptq))[1], 0, bits);
  };
  EXPECT_THAT(first_zeros(2), ElementsAre(0x55555555, 0x55555555));
  EXPECT_THAT(first_zeros(3), ElementsAre(0xdb6db6db, 0xb6db6db6, 0x6db6db6d));
  EXPECT_THAT(first_zeros(4), ElementsAre(0x77777777, 0x77777777, 0x77777777, 0x77777777));
  EXPECT_THAT(first_zeros(8), testing::Each(0x7f7f7f7fu));
}

TEST(GptqTest, KeepsReorderedGroups) {
  QuantizedLinear linear = example(4, 16, Grid::kSymGptq);
  linear.group_of_column = HostTensor(DType::kI32, {kSide});
  for (std::int32_t k = 0; k < kSide; ++k) linear.group_of_column.as<std::int32_t>()[k] = k % 2;
  const std::vector<HostTensor> tensors = filled("gptq", linear);
  EXPECT_THAT(tensors[3].as<std::int32_t>().subspan(0, 4), ElementsAre(0, 1, 0, 1));
  EXPECT_EQ(described("gptq", rounding_recipe(4, 16, Grid::kSymGptq, true))["desc_act"], true);
}

TEST(GptqTest, DescribesItself) {
  Recipe recipe = rounding_recipe(4, 128, Grid::kSymGptq);
  recipe.method = "gptq";
  recipe.options = {{"true_sequential", false}, {"damping", 0.05}};
  EXPECT_EQ(described("gptq", recipe),
            nlohmann::ordered_json::parse(
                R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false,
              "sym": true, "lm_head": false, "checkpoint_format": "gptq", "format": "gptq", "pack_dtype": "int32",
              "true_sequential": false, "damp_percent": 0.05})"));
  const auto asymmetric = described("gptq", rounding_recipe(2, -1));
  EXPECT_EQ(asymmetric["format"], "gptq_v2");
  EXPECT_EQ(asymmetric["checkpoint_format"], "gptq_v2");
  EXPECT_EQ(asymmetric["group_size"], -1);
  EXPECT_EQ(make_format("gptq")->config_copy(), "quantize_config.json");
}

TEST(AutoRoundTest, HasTheTensorsOfGptqWithoutGroups) {
  EXPECT_THAT(layout("auto_round", {.bits = 3, .group_size = 128, .grid = Grid::kSymGptq}),
              ElementsAre("qweight I32 24 64", "qzeros I32 2 6", "scales F16 2 64"));
  for (const Grid grid : {Grid::kSymGptq, Grid::kAsymGptq}) {
    const QuantizedLinear linear = example(4, 16, grid);
    const std::vector<HostTensor> ours = filled("auto_round", linear),
                                  gptq = filled("gptq", linear);
    ASSERT_EQ(ours.size(), 3u);
    for (std::size_t i = 0; i < ours.size(); ++i)
      EXPECT_TRUE(std::ranges::equal(ours[i].bytes(), gptq[i].bytes())) << i;
  }
}

TEST(AutoRoundTest, DescribesItselfAndWhatDiffers) {
  EXPECT_EQ(
      described("auto_round", rounding_recipe(4, 128, Grid::kSymGptq)),
      nlohmann::ordered_json::parse(
          R"({"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 128,
              "sym": true, "data_type": "int", "block_name_to_quantize": "model.layers", "autoround_version": "0.16.1",
              "extra_config": {"lm_head": {"bits": 16}}})"));
  EXPECT_EQ(described("auto_round", rounding_recipe(4, -1))["packing_format"], "auto_round");
  const std::vector<ExportedLinear> linears = {
      {.module = "model.layers.0.a", .spec = {"a", 64, 256}, .scheme = {.bits = 4}},
      {.module = "model.layers.1.a", .spec = {"a", 64, 256}, .scheme = {.bits = 2}},
      {.module = "model.layers.2.a",
       .spec = {"a", 64, 256},
       .scheme = {.bits = 4, .group_size = 32}},
      {.module = "model.layers.3.a", .spec = {"a", 64, 256}, .scheme = {.bits = 4}}};
  const auto config =
      make_format("auto_round")->quantization_config(rounding_recipe(4, 128), linears, {});
  EXPECT_EQ(config["extra_config"].dump(),
            R"({"model.layers.1.a":{"bits":2},"model.layers.2.a":{"group_size":32}})");
}

// Row 0 of 256 columns: code k mod 2^bits, scale 0.5, one zero point.
std::vector<std::uint8_t> block(int bits, std::int64_t group_size, Grid grid, std::uint8_t zero) {
  QuantizedLinear linear = random_linear("mlp.up_proj", 1, 256, bits, group_size, grid, 1);
  for (std::size_t k = 0; k < 256; ++k)
    linear.codes.as<std::uint8_t>()[k] = static_cast<std::uint8_t>(k % (1u << bits));
  for (std::uint16_t& scale : linear.scales.as<std::uint16_t>()) scale = 0x3800;
  for (std::uint8_t& each : linear.zeros.as<std::uint8_t>()) each = zero;
  const HostTensor tensor = std::move(filled("gguf", linear)[0]);
  const auto bytes = tensor.as<std::uint8_t>();
  return {bytes.begin(), bytes.end()};
}
std::vector<std::uint8_t> part(const std::vector<std::uint8_t>& bytes, std::size_t first,
                               std::size_t n) {
  return {bytes.begin() + static_cast<std::ptrdiff_t>(first),
          bytes.begin() + static_cast<std::ptrdiff_t>(first + n)};
}

// By hand from the layouts of ggml.
TEST(GgufTest, PacksBlocksOfThirtyTwo) {
  const auto q4_0 = block(4, 32, Grid::kSymGptq, 8);  // integers code - 8, stored as the codes
  ASSERT_EQ(q4_0.size(), 8u * 18);
  EXPECT_THAT(part(q4_0, 0, 6), ElementsAre(0x00, 0x38, 0x00, 0x11, 0x22, 0x33));
  EXPECT_EQ(q4_0[17], 0xff);
  EXPECT_EQ(q4_0[18 + 1], 0x38) << "the second block";

  const auto narrow = block(2, 64, Grid::kAsymGptq, 1);  // -1, 0, 1, 2 as 7, 8, 9, 10
  ASSERT_EQ(narrow.size(), 8u * 18);
  EXPECT_THAT(part(narrow, 2, 4), ElementsAre(0x77, 0x88, 0x99, 0xaa));

  const auto q5_0 = block(4, 32, Grid::kAsymGptq, 3);  // code - 3 + 16: 13, 14, 15, 16 to 28
  ASSERT_EQ(q5_0.size(), 8u * 22);
  // 16 and above have the high bit: columns 3 to 15 and 19 to 31.
  EXPECT_THAT(part(q5_0, 0, 6), ElementsAre(0x00, 0x38, 0xf8, 0xff, 0xf8, 0xff));
  EXPECT_THAT(part(q5_0, 6, 4), ElementsAre(0xdd, 0xee, 0xff, 0x00));

  const auto q8_0 = block(8, 32, Grid::kSymGptq, 128);
  ASSERT_EQ(q8_0.size(), 8u * 34);
  EXPECT_THAT(part(q8_0, 0, 4), ElementsAre(0x00, 0x38, 0x80, 0x81));
  EXPECT_EQ(q8_0[7 * 34 + 33], 0x7f) << "code 255";
}

TEST(GgufTest, PacksBlocksOfTwoHundredAndFiftySix) {
  const auto q2_k = block(2, 256, Grid::kAsymGptq, 3);
  ASSERT_EQ(q2_k.size(), 84u);
  EXPECT_THAT(part(q2_k, 0, 16), testing::Each(0x31)) << "offset 3, scale 1";
  EXPECT_THAT(part(q2_k, 16, 4), ElementsAre(0x00, 0x55, 0xaa, 0xff));
  EXPECT_THAT(part(q2_k, 80, 4), ElementsAre(0x00, 0x38, 0x00, 0x38));

  const auto q3_k = block(3, -1, Grid::kSymGptq, 4);
  ASSERT_EQ(q3_k.size(), 110u);
  EXPECT_THAT(part(q3_k, 0, 8), ElementsAre(0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff)) << "high bits";
  EXPECT_THAT(part(q3_k, 32, 8), ElementsAre(0x00, 0x55, 0xaa, 0xff, 0x00, 0x55, 0xaa, 0xff));
  EXPECT_THAT(part(q3_k, 96, 8), testing::Each(0x11));
  EXPECT_THAT(part(q3_k, 104, 6), ElementsAre(0xaa, 0xaa, 0xaa, 0xaa, 0x00, 0x38));

  const auto q4_k = block(4, -1, Grid::kAsymGptq, 9);
  ASSERT_EQ(q4_k.size(), 144u);
  EXPECT_THAT(part(q4_k, 0, 4), ElementsAre(0x00, 0x38, 0x00, 0x38));
  EXPECT_THAT(part(q4_k, 4, 12), ElementsAre(1, 1, 1, 1, 9, 9, 9, 9, 0x91, 0x91, 0x91, 0x91));
  EXPECT_THAT(part(q4_k, 16, 3), ElementsAre(0x00, 0x11, 0x22));
}

// What each format's reader makes of what its writer made is what the linear is, for all that it holds.
TEST(ReadBackTest, GivesTheWeightsThatWereWritten) {
  int compared = 0;
  for (const std::string& format : format_names()) {
    for (const int bits : {2, 3, 4, 8}) {
      for (const Grid grid : {Grid::kAsymGptq, Grid::kSymGptq, Grid::kSymFull}) {
        for (const std::int64_t group : {32, 64, 256, -1}) {
          const LinearScheme scheme{.bits = bits, .group_size = group, .grid = grid};
          const auto made = make_format(format);
          try {
            made->check_schemes(recipe_of({scheme}));
          } catch (const InputError&) {
            continue;
          }
          const QuantizedLinear linear =
              random_linear("mlp.up_proj", 64, 512, bits, group, grid, 5);
          const std::vector<HostTensor> tensors = made->fill(linear, DType::kF32);
          std::vector<HostView> views;
          for (const HostTensor& tensor : tensors) views.push_back(tensor.view());
          const ExportedLinear exported{
              .module = "m", .spec = {"mlp.up_proj", 64, 512}, .scheme = scheme};
          std::vector<float> rows(5 * 512);
          DequantizedRows expected(linear);
          made->read(exported, views, 3, rows);
          for (std::size_t row = 0; row < 5; ++row) {
            EXPECT_TRUE(std::ranges::equal(std::span(rows).subspan(row * 512, 512),
                                           expected.values(3 + static_cast<std::int64_t>(row))))
                << format << ", " << bits << " bits, groups of " << group << ", " << name_of(grid);
          }
          ++compared;
        }
      }
    }
  }
  EXPECT_EQ(compared,
            4 * 48 + 12 + 44);  // 4 formats hold all, awq 4 bits, gguf not 8 bits asymmetric
}

TEST(ReadBackTest, GivesTablesWithTheirSparseParts) {
  QuantizedLinear linear = random_table_linear("mlp.up_proj", 64, 96, 3, 4);
  linear.sparse = random_sparse_part(linear, 0.1, 9);
  const auto format = make_format("squeezellm");
  const std::vector<HostTensor> tensors = format->fill(linear, DType::kF32);
  std::vector<HostView> views;
  for (const HostTensor& tensor : tensors) views.push_back(tensor.view());
  std::vector<float> rows(64 * 96);
  format->read({.module = "m",
                .spec = {"mlp.up_proj", 64, 96},
                .scheme = {.kind = LinearScheme::Kind::kTable, .bits = 3, .sparse = true}},
               views, 0, rows);
  DequantizedRows expected(linear);
  for (std::size_t row = 0; row < 64; ++row) {
    EXPECT_TRUE(std::ranges::equal(std::span(rows).subspan(row * 96, 96),
                                   expected.values(static_cast<std::int64_t>(row))))
        << row;
  }
}

TEST(AwqTest, HasTheShapesOfTheFormat) {
  EXPECT_THAT(layout("awq", {.bits = 4, .group_size = 128, .grid = Grid::kAsymGptq}),
              ElementsAre("qweight I32 256 8", "qzeros I32 2 8", "scales F16 2 64"));
  EXPECT_THAT(layout("awq", {.bits = 4, .group_size = -1, .grid = Grid::kSymGptq}),
              ElementsAre("qweight I32 256 8", "qzeros I32 1 8", "scales F16 1 64"));
}

TEST(AwqTest, PacksEightOutputsToAWordInTheOrderOfTheKernel) {
  const std::vector<HostTensor> tensors = filled("awq", example(4, 16, Grid::kAsymAwq));
  ASSERT_EQ(tensors.size(), 3u);
  // qweight [32, 4]: input 0 of outputs 0..7 and 8..15, then input 1.
  EXPECT_THAT(words(tensors[0], 0, 2), ElementsAre(0x75316420, 0xfdb9eca8));
  EXPECT_THAT(words(tensors[0], 4, 2), ElementsAre(0x86427531, 0x0ecafdb9));
  // Zero points as they are. qzeros [2, 4], scales [2, 32].
  EXPECT_THAT(words(tensors[1], 0, 2), ElementsAre(0x75316420, 0xfdb9eca8));
  EXPECT_THAT(words(tensors[1], 4, 2), ElementsAre(0x75316420, 0xfdb9eca8));
  EXPECT_THAT(tensors[2].as<std::uint16_t>().subspan(0, 5),
              ElementsAre(0x3c00, 0x3800, 0x3400, 0x3000, 0x3c00));
  EXPECT_THAT(tensors[2].as<std::uint16_t>().subspan(32, 2), ElementsAre(0xbc00, 0xb800));
}

TEST(AwqTest, StoresZeroPointsOfSymmetricGridsToo) {
  const std::vector<HostTensor> tensors = filled("awq", example(4, 16, Grid::kSymGptq));
  EXPECT_THAT(tensors[1].as<std::uint32_t>(), testing::Each(0x88888888u));
}

TEST(AwqTest, DescribesItself) {
  EXPECT_EQ(described("awq", rounding_recipe(4, 128, Grid::kSymGptq)),
            nlohmann::ordered_json::parse(
                R"({"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128,
                    "zero_point": true, "modules_to_not_convert": null})"));
}

TEST(DenseTest, BakesTheQuantizationIn) {
  const QuantizedLinear linear = example(4, 16, Grid::kAsymGptq);
  const std::vector<HostTensor> tensors = filled("dense", linear, DType::kF32);
  ASSERT_EQ(tensors.size(), 1u);
  ASSERT_EQ(tensors[0].shape(), (Shape{32, 32}));
  const std::span<const float> w = tensors[0].as<float>();
  // Row 1: codes 1, 2, ...; zero point 1; scales 1/2 and -1/2.
  EXPECT_THAT(w.subspan(32, 3), ElementsAre(0.0f, 0.5f, 1.0f));
  EXPECT_THAT(w.subspan(32 + 16, 2), ElementsAre(-0.5f * (1 - 1), -0.5f * (2 - 1)));
  EXPECT_TRUE(described("dense", rounding_recipe(4, 16)).is_null());
}

TEST(DenseTest, RoundsToFloat16) {
  QuantizedLinear linear = example(8, 32, Grid::kAsymGptq);
  linear.scales.as<std::uint16_t>()[0] =
      0x3c01;  // 1 + 2^-10: times an odd code above 1 it has 12 bits
  const std::vector<HostTensor> exact = filled("dense", linear, DType::kF32);
  const std::vector<HostTensor> half = filled("dense", linear, DType::kF16);
  for (std::size_t i = 0; i < 32 * 32; ++i) {
    EXPECT_EQ(half[0].as<std::uint16_t>()[i], float_to_half(exact[0].as<float>()[i]));
  }
}

TEST(DenseTest, RefusesWhatFloat16CannotHold) {
  QuantizedLinear linear = example(8, 32, Grid::kAsymGptq);
  linear.scales.as<std::uint16_t>()[0] = float_to_half(60000.0f);
  EXPECT_NO_THROW(filled("dense", linear, DType::kF32));
  try {
    filled("dense", linear, DType::kF16);
    ADD_FAILURE() << "120000 is not a float16";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("mlp.up_proj"));
    EXPECT_THAT(error.what(), HasSubstr("float16"));
  }
}

TEST(ConvertFiniteTest, KeepsInfinitiesThatWereThere) {
  const float values[] = {1.0f, std::numeric_limits<float>::infinity(), -65504.0f, 65519.0f};
  std::uint16_t half[4];
  convert_finite("t", DType::kF32, values, DType::kF16, half, 4);
  EXPECT_THAT(half, ElementsAre(0x3c00, 0x7c00, 0xfbff, 0x7bff));
  const float large[] = {0.0f, -65520.0f};
  EXPECT_THROW(convert_finite("t", DType::kF32, large, DType::kF16, half, 2), Error);
  const std::uint16_t brain[] = {float_to_bfloat16(1e6f)};
  EXPECT_THROW(convert_finite("t", DType::kBF16, brain, DType::kF16, half, 1), Error);
}

// What of each kind is refused, and that the message says why.
class CheckExportableTest : public testing::Test {
 protected:
  struct Shape1 final : DecoderBlock {
    Shape1(std::int64_t rows, std::int64_t cols) {
      prefix_ = "model.layers.";
      linears_ = {{"mlp.up_proj", rows, cols}};
    }
    BlockWeights load(const Checkpoint&, int, Backend&, LoadLinears) const override { return {}; }
    Tensor input_from_residual(int, const BlockWeights&, const Tensor&, Backend&) const override {
      return {};
    }
    void apply(int, const BlockWeights&, BlockState&, Backend&) const override {}
    std::vector<Tensor> forward_half(Half, const BlockWeights&, Tensor&, std::int64_t,
                                     Backend&) const override {
      return {};
    }
    void backward_half(Half, const BlockWeights&, SavedActivations::OfHalf&, std::int64_t, Tensor&,
                       const TakeGradient&, InputGradient, Backend&) const override {}
  };

  static std::string refusal(const Recipe& recipe, std::int64_t rows, std::int64_t cols,
                             const std::string& format) {
    try {
      check_exportable(recipe, Shape1(rows, cols), 2, format);
      return "";
    } catch (const InputError& error) {
      return error.what();
    }
  }
};

TEST_F(CheckExportableTest, AcceptsWhatFits) {
  for (const std::string& format : export_formats()) {
    for (const int bits : {2, 3, 4, 8}) {
      if (format == "squeezellm" || (format == "awq" && bits != 4)) continue;
      if (format == "gguf" && bits == 8) continue;  // asymmetric: one bit more
      for (const std::int64_t group : {-1, 32, 128}) {
        EXPECT_EQ(refusal(rounding_recipe(bits, group), 64, 256, format), "")
            << format << " " << bits << " " << group;
      }
    }
  }
}

TEST_F(CheckExportableTest, RefusesGroupsThatDoNotDivideTheRow) {
  for (const char* format : {"compressed-tensors", "gptq", "awq"}) {
    const std::string why = refusal(rounding_recipe(4, 96), 64, 256, format);
    EXPECT_THAT(why, HasSubstr("rtn-w4g96"));
    EXPECT_THAT(why, HasSubstr(format));
    EXPECT_THAT(why, HasSubstr("mlp.up_proj has 256 columns"));
  }
  EXPECT_EQ(refusal(rounding_recipe(4, 96), 64, 256, "dense"), "");
}

TEST_F(CheckExportableTest, RefusesSidesOffThirtyTwo) {
  for (const char* format : {"compressed-tensors", "gptq", "awq"}) {
    EXPECT_THAT(refusal(rounding_recipe(4, -1), 40, 64, format), HasSubstr("40 x 64"));
    EXPECT_THAT(refusal(rounding_recipe(4, -1), 64, 40, format), HasSubstr("64 x 40"));
  }
  EXPECT_EQ(refusal(rounding_recipe(4, -1), 40, 40, "dense"), "");
}

TEST_F(CheckExportableTest, FiveToSevenBitsGoWhereThereIsAPlaceForThem) {
  for (const int bits : {5, 6, 7}) {
    EXPECT_EQ(refusal(rounding_recipe(bits, 32), 64, 256, "compressed-tensors"), "");
    EXPECT_EQ(refusal(rounding_recipe(bits, 32), 64, 256, "dense"), "");
    EXPECT_THAT(
        refusal(rounding_recipe(bits, 32), 64, 256, "gptq"),
        testing::HasSubstr("and it packs 2, 3, 4 or 8; the formats 'compressed-tensors' and "
                           "'dense' can hold it"));
    EXPECT_THAT(refusal(rounding_recipe(bits, 32), 64, 256, "awq"),
                testing::HasSubstr("use the format 'compressed-tensors' or 'dense'"));
  }
}

// Each linear is asked about what becomes of it alone.
TEST_F(CheckExportableTest, OverridesCountWhereTheyMatch) {
  const auto with = [&](const char* overrides) {
    Recipe recipe = parse_recipe(
        {{"method", "rtn"}, {"group_size", 96}, {"overrides", nlohmann::json::parse(overrides)}});
    recipe.where["overrides"] = "run.yaml:3: recipes[0].overrides";
    return refusal(recipe, 64, 256, "compressed-tensors");
  };
  EXPECT_THAT(with(R"([{"match": "*.none", "skip": true}])"), testing::HasSubstr("group size 96"));
  EXPECT_EQ(with(R"([{"match": "*.up_proj", "skip": true}])"), "");
  EXPECT_EQ(with(R"([{"match": "*.up_proj", "group_size": 64}])"), "");
  EXPECT_THAT(with(R"([{"match": "*.0.*", "group_size": 64}])"),
              testing::HasSubstr("group size 96"));
  EXPECT_THAT(with(R"([{"match": "*", "group_size": 48}])"),
              testing::StartsWith("run.yaml:3: recipes[0].overrides: recipe rtn-w4g96-overrides-"));
}

TEST_F(CheckExportableTest, RefusesOtherThanFourBitsInAwq) {
  EXPECT_THAT(refusal(rounding_recipe(3, 128), 64, 256, "awq"), HasSubstr("4 bits only, not of 3"));
  EXPECT_THAT(refusal(rounding_recipe(4, 128, Grid::kAsymGptq, true), 64, 256, "awq"),
              HasSubstr("act_order: dynamic"));
}

TEST_F(CheckExportableTest, RefusesReorderedGroupsInCompressedTensors) {
  const Recipe recipe = rounding_recipe(4, 128, Grid::kAsymGptq, true);
  EXPECT_THAT(refusal(recipe, 64, 256, "compressed-tensors"), HasSubstr("act_order: dynamic"));
  EXPECT_EQ(refusal(recipe, 64, 256, "gptq"), "");
  EXPECT_EQ(refusal(recipe, 64, 256, "dense"), "");
}

TEST_F(CheckExportableTest, TakesMixedWidthsWhereTheConfigNamesModules) {
  const Recipe recipe = recipe_of({{.bits = 2}, {.bits = 3}, {.bits = 4}});
  for (const char* format : {"compressed-tensors", "gptq", "dense"})
    EXPECT_EQ(refusal(recipe, 64, 256, format), "") << format;
  EXPECT_THAT(refusal(recipe, 64, 256, "awq"), HasSubstr("4 bits only, not of 2"));
  EXPECT_THAT(refusal(recipe_of({{.group_size = 32}, {.group_size = 64}}), 64, 256, "awq"),
              HasSubstr("differ in their groups"));
  EXPECT_THAT(refusal(recipe_of({{.group_size = 128}, {.group_size = 96}}), 64, 256, "gptq"),
              HasSubstr("the group size 96"));
  EXPECT_THAT(refusal(recipe_of({{.bits = 4}, {.grid = Grid::kSymGptq}}), 64, 256, "gptq"),
              HasSubstr("use the format 'compressed-tensors' or 'dense'"));
}

TEST_F(CheckExportableTest, LookupTablesGoWhereThereIsAPlaceForThem) {
  for (const bool sparse : {false, true}) {
    const Recipe recipe = recipe_of({{.kind = kTable, .bits = 3, .sparse = sparse}});
    for (const char* format : {"compressed-tensors", "gptq", "awq"}) {
      EXPECT_THAT(refusal(recipe, 64, 256, format),
                  testing::AllOf(HasSubstr(std::string("exported as ") + format),
                                 HasSubstr("each row has a lookup table of its own"),
                                 HasSubstr("the formats 'squeezellm' and 'dense' can hold it")));
    }
    EXPECT_EQ(refusal(recipe, 40, 256, "squeezellm"), "");
    EXPECT_EQ(refusal(recipe, 64, 256, "dense"), "");
    EXPECT_THAT(refusal(recipe, 64, 40, "squeezellm"), HasSubstr("mlp.up_proj has 40 columns"));
  }
  const Recipe mixed = recipe_of({{.kind = kTable, .bits = 3}, {.kind = kTable, .bits = 4}});
  EXPECT_THAT(refusal(mixed, 64, 256, "squeezellm"), HasSubstr("linears differ in bits"));
}

TEST_F(CheckExportableTest, GridsWithASparsePartGoAsDenseOnly) {
  const Recipe recipe = recipe_of({{.bits = 4}, {.bits = 2, .sparse = true}});
  for (const char* format : {"compressed-tensors", "gptq", "awq"}) {
    EXPECT_THAT(refusal(recipe, 64, 256, format),
                testing::AllOf(HasSubstr("sparse part, which it has no place for"),
                               HasSubstr("use the format 'dense'")));
  }
  EXPECT_THAT(refusal(recipe_of({{.bits = 2, .sparse = true}}), 64, 256, "squeezellm"),
              HasSubstr("'dense', which alone holds"));
  EXPECT_EQ(refusal(recipe, 64, 256, "dense"), "");
  EXPECT_THAT(refusal(rounding_recipe(4, 128), 64, 256, "squeezellm"),
              HasSubstr("'compressed-tensors', 'gptq' or 'dense'"));
}

TEST_F(CheckExportableTest, GgufSaysWhatWouldBeExact) {
  EXPECT_THAT(refusal(rounding_recipe(8, 32), 64, 512, "gguf"), HasSubstr("symmetric: true"));
  EXPECT_THAT(refusal(rounding_recipe(4, 16), 64, 512, "gguf"), HasSubstr("group_size: 32, 64"));
  EXPECT_THAT(refusal(rounding_recipe(4, 32, Grid::kSymGptq, true), 64, 512, "gguf"),
              HasSubstr("act_order: static"));
  EXPECT_EQ(refusal(rounding_recipe(8, 32, Grid::kSymGptq), 64, 512, "gguf"), "");
}

TEST_F(CheckExportableTest, RefusesUnknownFormats) {
  EXPECT_THAT(refusal(rounding_recipe(4, 128), 64, 256, "exl2"), HasSubstr("\"exl2\""));
}

}  // namespace
}  // namespace roundhouse
