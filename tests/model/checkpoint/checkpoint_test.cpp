#include "model/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/model_files.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kIndex = "model.safetensors.index.json";

HostTensor tensor_of(float value, DType type = DType::kF32) {
  HostTensor tensor(type, {1});
  if (type == DType::kF32) tensor.as<float>()[0] = value;
  return tensor;
}

void write_index(const std::filesystem::path& directory, const json& map) {
  write_file(directory / kIndex,
             json{{"metadata", {{"total_size", 8}}}, {"weight_map", map}}.dump());
}

std::string error_of(const std::filesystem::path& directory) {
  return input_error_of([&] { Checkpoint checkpoint(directory); });
}

TEST(CheckpointTest, ReadsOneFile) {
  const TemporaryFolder directory;
  write_safetensors(directory / "model.safetensors", {{"a", tensor_of(1)}, {"b", tensor_of(2)}});
  const Checkpoint checkpoint(directory.path());
  EXPECT_THAT(checkpoint.names(), ElementsAre("a", "b"));
  float value = 0;
  std::memcpy(&value, checkpoint.view("b").bytes.data(), sizeof(value));
  EXPECT_EQ(value, 2);
}

TEST(CheckpointTest, ReadsShardsByTheirIndex) {
  const TemporaryFolder directory;
  write_safetensors(directory / "x.safetensors",
                    {{"a", tensor_of(1)}, {"not in the index", tensor_of(9)}});
  write_safetensors(directory / "y.safetensors", {{"b", tensor_of(2)}});
  write_index(directory.path(), {{"a", "x.safetensors"}, {"b", "y.safetensors"}});
  const Checkpoint checkpoint(directory.path());
  EXPECT_THAT(checkpoint.names(), ElementsAre("a", "b"));
  EXPECT_TRUE(checkpoint.has("a"));
  EXPECT_FALSE(checkpoint.has("not in the index"));
}

TEST(CheckpointTest, AMissingTensorIsNamedWithItsFileAndThoseLikeIt) {
  const TemporaryFolder directory;
  const Tensors tensors = {{"model.layers.0.mlp.up_proj.weight", tensor_of(1)},
                           {"model.layers.1.mlp.up_proj.weight", tensor_of(2)},
                           {"model.norm.weight", tensor_of(3)}};
  const auto missing = [&](const std::string& name) {
    return input_error_of([&] { (void)Checkpoint(directory.path()).view(name); });
  };
  write_safetensors(directory / "model.safetensors", tensors);
  EXPECT_EQ(missing("model.layers.1.mlp.up_prj.weight"),
            (directory / "model.safetensors").string() +
                ": no tensor \"model.layers.1.mlp.up_prj.weight\" (the most similar that it has: "
                "\"model.layers.1.mlp.up_proj.weight\", \"model.layers.0.mlp.up_proj.weight\")");
  EXPECT_EQ(missing("lm_head.weight"),
            (directory / "model.safetensors").string() + ": no tensor \"lm_head.weight\"");
  std::filesystem::rename(directory / "model.safetensors", directory / "x.safetensors");
  write_index(directory.path(), {{"model.norm.weight", "x.safetensors"}});
  EXPECT_THAT(missing("model.norms.weight"), AllOf(HasSubstr(std::string(kIndex) + ": no tensor"),
                                                   HasSubstr("model.norm.weight")));
}

TEST(CheckpointTest, IgnoresRotaryFrequencies) {
  const TemporaryFolder directory;
  write_safetensors(directory / "x", {{"a", tensor_of(1)}});
  // Not even looked for in its file.
  write_index(directory.path(),
              {{"a", "x"}, {"model.layers.0.self_attn.rotary_emb.inv_freq", "gone"}});
  EXPECT_THAT(Checkpoint(directory.path()).names(), ElementsAre("a"));
  write_safetensors(
      directory / "model.safetensors",
      {{"a", tensor_of(1)}, {"model.layers.0.self_attn.rotary_emb.inv_freq", tensor_of(1)}});
  EXPECT_THAT(Checkpoint(directory.path()).names(), ElementsAre("a"));
}

TEST(CheckpointTest, DirectoryWithoutWeightsSaysWhatIsMissing) {
  const TemporaryFolder directory;
  EXPECT_THAT(error_of(directory.path()),
              AllOf(HasSubstr(directory.path().string()), HasSubstr("model.safetensors")));
  EXPECT_THAT(error_of(directory.path()), HasSubstr("pytorch_model.bin"));
}

const std::filesystem::path kBin = source_folder() / "tests/golden/bin";

TEST(CheckpointTest, ReadsPytorchFilesWhereThereAreNoSafetensors) {
  EXPECT_EQ(Checkpoint(kBin / "mistral").view("model.norm.weight").type, DType::kBF16);
  const TemporaryFolder directory;
  std::filesystem::copy(kBin / "opt", directory.path(), std::filesystem::copy_options::recursive);
  EXPECT_TRUE(Checkpoint(directory.path()).has("lm_head.weight"));
  write_safetensors(directory / "model.safetensors", {{"a", tensor_of(1)}});
  EXPECT_THAT(Checkpoint(directory.path()).names(), ElementsAre("a"));
}

TEST(CheckpointTest, IndexOfPytorchFilesMayOnlyNameFilesBesideIt) {
  const TemporaryFolder directory;
  const auto name_file = [&](const char* file) {
    write_file(directory / "pytorch_model.bin.index.json",
               json{{"weight_map", {{"tensor.a", file}}}}.dump());
  };
  name_file("../x.bin");
  EXPECT_THAT(error_of(directory.path()),
              AllOf(HasSubstr("pytorch_model.bin.index.json"), HasSubstr("plain file name")));
  name_file("gone.bin");
  EXPECT_THAT(error_of(directory.path()), HasSubstr("gone.bin"));
}

TEST(CheckpointTest, TheFirstNamesOfOptAreThoseOfTransformers) {
  const Checkpoint checkpoint(kBin / "opt");
  EXPECT_TRUE(checkpoint.has("model.decoder.layers.0.fc1.bias"));
  EXPECT_FALSE(checkpoint.has("decoder.layers.0.fc1.bias"));
  EXPECT_FALSE(checkpoint.has("model.decoder.version"));

  const TemporaryFolder directory;
  write_safetensors(directory / "model.safetensors",
                    {{"decoder.a", tensor_of(1)}, {"model.decoder.a", tensor_of(2)}});
  EXPECT_THAT(error_of(directory.path()), AllOf(HasSubstr("\"decoder.a\""), HasSubstr("twice")));
}

TEST(CheckpointTest, IndexMayOnlyNameFilesBesideIt) {
  const TemporaryFolder directory;
  std::filesystem::create_directory(directory / "model");
  write_safetensors(directory / "x", {{"a", tensor_of(1)}});
  for (const std::string file :
       {"../x", "sub/x", "/etc/passwd", "..", ".", "", "a\\b", "model/../x"}) {
    write_index(directory / "model", {{"tensor.a", file}});
    EXPECT_THAT(error_of(directory / "model"),
                AllOf(HasSubstr(kIndex), HasSubstr("tensor.a"), HasSubstr("plain file name")))
        << file;
  }
  write_index(directory / "model", {{"tensor.a", std::string("x\0y", 3)}});
  EXPECT_THAT(error_of(directory / "model"), HasSubstr("plain file name"));
  write_index(directory / "model", {{"tensor.a", 1}});
  EXPECT_THAT(error_of(directory / "model"), HasSubstr("plain file name"));
}

TEST(CheckpointTest, MissingShardIsNamed) {
  const TemporaryFolder directory;
  write_index(directory.path(), {{"a", "model-00002-of-00002.safetensors"}});
  EXPECT_THAT(error_of(directory.path()), HasSubstr("model-00002-of-00002.safetensors"));
}

TEST(CheckpointTest, TensorMissingFromItsShardIsNamed) {
  const TemporaryFolder directory;
  write_safetensors(directory / "x", {{"a", tensor_of(1)}});
  write_index(directory.path(), {{"a", "x"}, {"b", "x"}});
  EXPECT_THAT(error_of(directory.path()), AllOf(HasSubstr("\"b\""), HasSubstr("/x")));
}

TEST(CheckpointTest, DamagedIndexIsAnInputError) {
  const TemporaryFolder directory;
  for (const std::string text :
       {"", "[]", "{}", "{\"weight_map\": []}", "{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}",
        "{\"weight_map\": {\"a\": null}}"}) {
    write_file(directory / kIndex, text);
    EXPECT_THAT(error_of(directory.path()), HasSubstr(kIndex)) << text;
  }
}

TEST(CheckpointTest, DamagedShardIsAnInputErrorThatNamesIt) {
  const TemporaryFolder directory;
  write_file(directory / "x", "12345678");
  write_index(directory.path(), {{"a", "x"}});
  EXPECT_THAT(error_of(directory.path()), HasSubstr("/x: "));
}

TEST(CheckpointTest, WeightHasTheShapeAndTypeOfAWeight) {
  const TemporaryFolder directory;
  write_safetensors(directory / "model.safetensors",
                    {{"a", tensor_of(1)}, {"codes", HostTensor(DType::kU8, {1})}});
  const Checkpoint checkpoint(directory.path());
  EXPECT_EQ(checkpoint.weight("a", {1}).bytes.size(), 4u);
  EXPECT_THAT(input_error_of([&] {
                (void)checkpoint.weight("a", {2, 3});
              }),
              AllOf(HasSubstr("\"a\""), HasSubstr("[1]"), HasSubstr("[2, 3]")));
  EXPECT_THAT(input_error_of([&] { (void)checkpoint.weight("codes", {1}); }),
              AllOf(HasSubstr("\"codes\""), HasSubstr("U8")));
  EXPECT_THAT(input_error_of([&] { (void)checkpoint.weight("b", {1}); }),
              AllOf(HasSubstr("\"b\""), HasSubstr(directory.path().string())));
}

}  // namespace
}  // namespace roundhouse
