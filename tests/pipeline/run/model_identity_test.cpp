// Which model a run is of, on any number of ranks.
#include "pipeline/run/model_identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "base/file.h"
#include "model/architectures/tensor_names.h"
#include "pipeline/run/sealed_json.h"
#include "tests/comm/mpi_world.h"
#include "tests/comm/shared_folder.h"
#include "tests/model/model_files.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

class ModelIdentityTest : public testing::Test {
 protected:
  ModelIdentityTest() {
    if (world_.rank() == 0) {
      fs::create_directories(run());
      fs::copy(tiny_world(), model());
    }
    world_.barrier();
  }
  fs::path run() const { return folder_.path() / "run"; }
  fs::path model() const { return folder_.path() / "model"; }
  // Every rank reads two blocks; what they and the embedding hold, as a record would say it.
  ContentsByTensor read_all() {
    const CausalLM lm(model());
    ModelIdentity identity(lm, run(), world_, monitor_, true);
    identity.settle({});
    identity.note_outside_blocks();
    ContentsByTensor all;
    for (int block = 0; block < 2; ++block) {
      for (const TensorInfo& tensor : tensors_of_block(lm.config(), block)) {
        lm.checkpoint().note_content(tensor.name);
      }
      all.merge(contents_of_block(lm, block));
    }
    identity.join(world_);
    return all;
  }
  // A later start; how many tensors it read.
  int settle(const std::vector<ContentsByTensor>& recorded) {
    const CausalLM lm(model());
    ModelIdentity identity(lm, run(), world_, monitor_, true);
    identity.settle(recorded);
    return static_cast<int>(lm.checkpoint().contents().all().size());
  }
  // On one rank: a bit of a tensor, far behind its beginning.
  void flip(const std::string& tensor) {
    if (world_.rank() == 0) {
      std::size_t at = 0;
      {
        const Checkpoint checkpoint(model());
        const MappedFile file(model() / "model.safetensors");
        const auto bytes = checkpoint.view(tensor).bytes;
        ASSERT_GT(bytes.size(), 8192u);
        // The mapping of the checkpoint is another one: found by content, which random weights do not repeat.
        const auto found = std::search(file.bytes().begin(), file.bytes().end(), bytes.begin(),
                                       bytes.begin() + 64);
        at = static_cast<std::size_t>(found - file.bytes().begin()) + 8000;
      }
      std::fstream file(model() / "model.safetensors",
                        std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(static_cast<std::streamoff>(at));
      const char byte = static_cast<char>(file.get() ^ 1);
      file.seekp(static_cast<std::streamoff>(at));
      file.put(byte);
    }
    world_.barrier();
  }

  Communicator& world_ = test_world();
  SharedFolder folder_{world_};
  NullMonitor monitor_;
};

TEST_F(ModelIdentityTest, UnchangedFilesAreBelieved) {
  const ContentsByTensor recorded = read_all();
  EXPECT_EQ(settle({recorded}), static_cast<int>(recorded.size())) << "nothing else is looked at";
}

TEST_F(ModelIdentityTest, ACopyIsHashedAgainAndAccepted) {
  const ContentsByTensor recorded = read_all();
  if (world_.rank() == 0) {
    fs::rename(model(), folder_.path() / "old");
    fs::copy(folder_.path() / "old", model());
  }
  world_.barrier();
  EXPECT_NO_THROW(settle({recorded}));
}

TEST_F(ModelIdentityTest, WhatChangedIsNamedOnEveryRank) {
  const ContentsByTensor recorded = read_all();
  flip("model.layers.1.mlp.up_proj.weight");
  EXPECT_THAT(input_error_of([&] { settle({recorded}); }),
              AllOf(HasSubstr("1 of "), HasSubstr("model.layers.1.mlp.up_proj.weight")));
  flip("model.layers.1.mlp.up_proj.weight");
  EXPECT_NO_THROW(settle({recorded})) << "it was put back";
  flip("model.embed_tokens.weight");
  EXPECT_THAT(input_error_of([&] { settle({recorded}); }), HasSubstr("model.embed_tokens.weight"));
}

TEST_F(ModelIdentityTest, RecordsAreEnough) {
  const ContentsByTensor recorded = read_all();
  if (world_.rank() == 0) fs::remove(run() / kModelFile);
  world_.barrier();
  EXPECT_NO_THROW(settle({recorded}));
  if (world_.rank() == 0) fs::remove(run() / kModelFile);
  world_.barrier();
  flip("model.layers.0.mlp.up_proj.weight");
  EXPECT_THAT(input_error_of([&] { settle({recorded}); }),
              HasSubstr("model.layers.0.mlp.up_proj.weight"));
}

// Records know the embedding, the final norm and the head, too.
TEST_F(ModelIdentityTest, WhatLiesOutsideTheBlocksIsKeptInRecords) {
  const ContentsByTensor recorded = read_all();
  for (const char* tensor : {"model.embed_tokens.weight", "lm_head.weight"}) {
    if (world_.rank() == 0) fs::remove(run() / kModelFile);
    world_.barrier();
    flip(tensor);
    EXPECT_THAT(input_error_of([&] { settle({recorded}); }), HasSubstr(tensor));
    flip(tensor);
    EXPECT_NO_THROW(settle({recorded})) << tensor << " was put back";
  }
  EXPECT_TRUE(recorded.contains("model.norm.weight"));
}

// Between the mapping and the first look at the file's times.
TEST_F(ModelIdentityTest, AFileThatIsReplacedWhileAJobStartsIsNotTakenForWhatWasRead) {
  if (world_.rank() == 0) fs::copy(model() / "model.safetensors", folder_.path() / "old");
  world_.barrier();
  ContentsByTensor recorded;
  {
    const CausalLM lm(model());
    world_.barrier();
    if (world_.rank() == 0) {
      fs::copy(folder_.path() / "old", folder_.path() / "other");
      fs::rename(folder_.path() / "other", model() / "model.safetensors");
    }
    flip("model.layers.1.mlp.up_proj.weight");  // in the new file: what is mapped stays
    ModelIdentity identity(lm, run(), world_, monitor_, true);
    identity.settle({});
    identity.note_outside_blocks();
    for (const TensorInfo& tensor : tensors_of_block(lm.config(), 1))
      lm.checkpoint().note_content(tensor.name);
    recorded = contents_of_block(lm, 1);
    identity.join(world_);
  }
  EXPECT_THAT(input_error_of([&] { settle({recorded}); }),
              HasSubstr("model.layers.1.mlp.up_proj.weight"));
}

TEST_F(ModelIdentityTest, WhereNoBlockIsKeptAnotherModelMayBegin) {
  (void)read_all();
  flip("model.embed_tokens.weight");
  EXPECT_NO_THROW(settle({{}}));
}

TEST_F(ModelIdentityTest, RecordsOfTwoModelsAreRefused) {
  const ContentsByTensor recorded = read_all();
  ContentsByTensor other = recorded;
  other.begin()->second = std::string(32, '0');
  EXPECT_THAT(input_error_of([&] { settle({recorded, other}); }), HasSubstr(other.begin()->first));
}

TEST_F(ModelIdentityTest, AFileThatChangesUnderAJobIsNoticed) {
  const CausalLM lm(model());
  lm.checkpoint().note_content("model.layers.0.mlp.up_proj.weight");
  world_.barrier();
  flip("model.layers.0.mlp.up_proj.weight");  // written into, not replaced
  EXPECT_THAT(
      input_error_of([&] { lm.checkpoint().note_content("model.layers.0.mlp.up_proj.weight"); }),
      AllOf(HasSubstr("model.safetensors"), HasSubstr("the file has changed")));
}

TEST_F(ModelIdentityTest, TheWholeContentIsKnownOnceAllWasRead) {
  std::string first;
  for (const bool again : {false, true}) {
    const CausalLM lm(model());
    ModelIdentity identity(lm, run(), world_, monitor_, true);
    identity.settle({});
    EXPECT_EQ(identity.content(), "");
    int number = 0;
    for (const std::string& name : lm.checkpoint().names()) {
      if (number++ % world_.size() == world_.rank()) lm.checkpoint().note_content(name);
    }
    identity.join(world_);
    EXPECT_EQ(identity.content().size(), 32u);
    if (again) {
      EXPECT_EQ(identity.content(), first);
    }
    first = identity.content();
  }
}

}  // namespace
}  // namespace roundhouse
