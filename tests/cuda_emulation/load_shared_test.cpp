// Ranks with emulated GPUs load a block together: with the bits of one that loads alone, each from its own part of the files, and with
// the messages that the planner reckons. Every rank has a model's directory of its own, so that what it reads can be told.
#include "stages/flow/load_shared.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "comm/counted_communicator.h"
#include "comm/device/device_transport.h"
#include "tests/comm/mpi_world.h"
#include "tests/model/model_files.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

struct Case {
  const char* architecture;
  DType type;  // of the checkpoint; the emulated GPU's is BF16
};

// Linears of one piece and of several, the last one short: of 1027 rows.
json config_of(const std::string& architecture) {
  json config = architecture == "Llama" ? small_config() : small_config_of(architecture);
  config.update({{"hidden_size", 512}, {"intermediate_size", 1027}, {"num_hidden_layers", 1}});
  return config;
}

// Made once: it takes as long as everything else.
const Tensors& tensors_of(const Case& model) {
  static std::map<std::string, Tensors> made;
  const auto [place, is_new] =
      made.try_emplace(model.architecture + std::string(name_of(model.type)));
  if (is_new) place->second = formula_tensors(config_of(model.architecture), model.type);
  return place->second;
}

class LoadSharedTest : public testing::TestWithParam<Case> {
 protected:
  LoadSharedTest() {
    if (world_->size() == 1) return;
    device_world_ = make_device_transport({.direct = true, .description = "emulated GPUs"}, *world_,
                                          {.name = "the team", .peers = all_peers(*world_)}, {});
  }

  int rank() const { return world_->rank(); }
  WeightPart mine() const { return {world_->rank(), world_->size()}; }
  const std::vector<LinearSpec>& linears() const { return decoder_->linears(); }
  HostTensor& tensor_of(Tensors& tensors, int linear) const {
    return tensors.at(decoder_->module(0, static_cast<std::size_t>(linear)) + ".weight");
  }

  std::unique_ptr<Checkpoint> checkpoint_with(const char* folder, const Tensors& tensors) {
    std::filesystem::create_directories(directory_ / folder);
    write_model(directory_ / folder, config_, tensors);
    return std::make_unique<Checkpoint>(directory_ / folder);
  }

  BlockWeights load(const Checkpoint& checkpoint, Backend& backend) {
    return load_shared(checkpoint, {.backend = backend,
                                    .team = *world_,
                                    .device_team = device_world_ ? *device_world_ : *world_,
                                    .decoder = *decoder_,
                                    .block = 0,
                                    .samples = nullptr,
                                    .monitor = monitor_});
  }
  void expect_same(BlockWeights got, BlockWeights want) {
    const auto compare = [&](std::vector<Tensor>& these, std::vector<Tensor>& those,
                             const char* what) {
      ASSERT_EQ(these.size(), those.size()) << what;
      for (std::size_t i = 0; i < these.size(); ++i) {
        ASSERT_EQ(these[i].bytes(), those[i].bytes()) << what << " " << i;
        EXPECT_TRUE(std::ranges::equal(bytes_of(these[i]), bytes_of(those[i]))) << what << " " << i;
      }
    };
    compare(got.linears, want.linears, "linears");
    compare(got.biases, want.biases, "biases");
    compare(got.norms, want.norms, "norms");
    EXPECT_EQ(got.block, want.block);
  }
  // On every rank the same.
  std::string error_of_all(const Checkpoint& checkpoint) {
    const std::string mine = input_error_of([&] { (void)load(checkpoint, *backend_); });
    for (const auto& theirs : test_world().all_gather(std::as_bytes(std::span(mine)))) {
      // The ranks' folders are their own.
      EXPECT_EQ(std::string(reinterpret_cast<const char*>(theirs.data()), theirs.size()), mine);
    }
    return mine;
  }

  const TemporaryFolder directory_;
  const json config_ = config_of(GetParam().architecture);
  const Tensors& tensors_ = tensors_of(GetParam());
  std::atomic<std::uint64_t> sent_ = 0;
  std::unique_ptr<Communicator> world_ = count_bytes(test_world().split(0, 0), sent_);
  std::unique_ptr<Transport> device_world_;
  std::unique_ptr<Backend> backend_ = make_backend("cuda", {});
  std::unique_ptr<Checkpoint> intact_ = checkpoint_with("intact", tensors_);
  std::unique_ptr<DecoderBlock> decoder_ =
      make_decoder_block(read_model_config(directory_ / "intact"), 8, *backend_);
  NullMonitor monitor_;
};

INSTANTIATE_TEST_SUITE_P(Models, LoadSharedTest,
                         testing::Values(Case{"Llama", DType::kF16}, Case{"Llama", DType::kBF16},
                                         Case{"Granite", DType::kF32}, Case{"Phi3", DType::kF16}),
                         [](const auto& test) {
                           return test.param.architecture + std::string(name_of(test.param.type));
                         });

TEST_P(LoadSharedTest, EachRankReadsItsPartAndAllHaveTheBitsOfALoadByOne) {
  const BlockWeights want = decoder_->load(*intact_, 0, *backend_);
  Tensors spoiled = tensors_;
  for (int i = 0; i < static_cast<int>(linears().size()); ++i) {
    HostTensor& tensor = tensor_of(spoiled, i);
    std::vector<std::byte> nothing(tensor.bytes().size(), std::byte{0xff});  // NaN
    for (const auto& [linear, pieces] : pieces_of_part(linears(), mine())) {
      if (linear != i) continue;
      const auto kept = bytes_of_pieces(tensor.bytes(), size_of(tensor.type()), pieces);
      std::ranges::copy(kept, nothing.begin() + (kept.data() - tensor.bytes().data()));
    }
    std::ranges::copy(nothing, tensor.bytes().begin());
  }
  const auto parts = checkpoint_with("parts", spoiled);
  expect_same(load(*parts, *backend_), want.borrowed());
  EXPECT_EQ(parts->contents().all(), intact_->contents().all()) << "hashes are of the whole";
}

TEST_P(LoadSharedTest, WhatOneRankCannotReadAllName) {
  const bool last = rank() + 1 == world_->size();
  const int down = static_cast<int>(linears().size()) - 1;
  const std::string name = decoder_->module(0, static_cast<std::size_t>(down)) + ".weight";
  Tensors tensors = tensors_;
  if (last) {
    HostTensor& tensor = tensor_of(tensors, down);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::size_t each = size_of(tensor.type());
    convert(DType::kF32, &nan, tensor.type(), tensor.bytes().last(each).data(), 1);
  }
  EXPECT_THAT(error_of_all(*checkpoint_with("nan", tensors)),
              AllOf(HasSubstr(name), HasSubstr("NaN")));
  if (last) tensors.erase(name);
  EXPECT_THAT(error_of_all(*checkpoint_with("missing", tensors)),
              HasSubstr("no tensor \"" + name + "\""));
}

TEST_P(LoadSharedTest, WhatOneRankHasReadOtherwiseAllName) {
  const std::string name = decoder_->module(0, 0) + ".weight";
  if (rank() == 0) {
    ASSERT_TRUE(intact_->contents().add(name, "another"));
  }
  EXPECT_THAT(error_of_all(*intact_), AllOf(HasSubstr(name), HasSubstr("has changed")));
}

TEST_P(LoadSharedTest, SendsWhatIsReckoned) {
  sent_ = 0;
  (void)load(*intact_, *backend_);
  const auto sent = test_world().all_reduce_sum(static_cast<std::int64_t>(sent_));
  const int ranks = world_->size();
  const auto each = static_cast<double>(size_of(backend_->activation_type()));
  // Twice each tells all others that it goes on.
  EXPECT_EQ(static_cast<double>(sent),
            load_traffic(linears(), ranks, each).sent + 2 * ranks * (ranks - 1));
}

TEST_P(LoadSharedTest, InHostMemoryEachRankLoadsAll) {
  const auto host = make_backend("cpu", {.threads = 1});
  sent_ = 0;
  expect_same(load(*intact_, *host), decoder_->load(*intact_, 0, *host));
  EXPECT_EQ(sent_, 0u);
}

}  // namespace
}  // namespace roundhouse
